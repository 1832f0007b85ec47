"""Exploring crashes: scenarios, the states they are cut into, and how to replay a single one.

A *case* is written ``SCENARIO/SEED[/STEP:KEEP…]``: run the scenario with that seed, crash at that step of it
with that fate of unflushed writes (`mirrorfs.sim.world.Frozen.restart`), crash again at that step of the
recovery, and so on; then check the recovery.  Every failure names its case, and

    .venv/bin/python tests/crashtools.py SCENARIO/SEED/STEP:KEEP

replays it with all that happened.
"""

import random
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mirrorfs.sim import explore, resting, verbs
from mirrorfs.sim import world as worlds
from mirrorfs.sim.crash import Frozen
from mirrorfs.sim.crashleg import Call
from mirrorfs.sim.faults import planned
from mirrorfs.sim.resting import Operation
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import CHUNK_BLOCKS

FATES = ('none', 'all', 'd0', 'd1', 'kill', 'tear:1', 'tear:2', 'tear:3')


class World(worlds.World):
    """A world that tests lead by the hand."""

    async def do(self, operation: Operation) -> None:
        await verbs.perform(self, operation)

    async def run(self, history: Sequence[Operation]) -> None:
        """Start the volume, perform the operations, stop it."""
        async with self.running():
            for operation in history:
                await self.do(operation)
            await self.stop()

    async def check_recovery(self) -> None:
        await self.do(('check',))

    def rest(self, *operation: object) -> None:
        resting.prepare(self, operation)

    def go_wrong(self, faults: Mapping[tuple[str, str, int], int]) -> None:
        """From now on calls fail as planned."""
        self.plan = planned(faults)
        self.troubled |= bool(faults)

    @property
    def calls(self) -> list[Call]:
        return [item for item in self.trace if isinstance(item, Call)]

    def data_reads(self, since: int = 0) -> int:
        """Return the bytes of data areas that were read from disks since a step."""
        return sum(
            c.length for c in self.calls[since:] if c.kind == 'read' and c.offset >= self.layout.data_offset
        )


@dataclass(frozen=True)
class Scenario:
    """A history and the volume that it happens to.  `prelude` runs, and stops, before anything is cut."""

    history: Sequence[Operation]
    legs: int = 2
    logged: bool = True
    chunks: int = 3
    prelude: Sequence[Operation] = ()


def w(block: int, count: int = 1) -> Operation:
    return ('write', block, count)


B = CHUNK_BLOCKS  # the first block of chunk 1
WROTE = (w(0), w(B, 2), w(2 * B), ('sweep',))

SCENARIOS = {
    'write': Scenario([w(0), ('flush',), w(0), w(B + 1, 2), ('read', 0), ('sweep',), w(0)]),
    'wide': Scenario([w(B - 2, 4), ('read', B - 2, 4), w(0, 3 * B), ('flush',), w(B - 2, 4)]),
    'overlap': Scenario([('both', w(3), w(3)), ('both', w(4, 3), w(5, 3)), ('read', 3, 5), ('flush',), w(3)]),
    'flush-race': Scenario([w(0), ('both', ('flush',), w(0)), ('both', ('flush',), w(B)), ('sweep',)]),
    'sweep-race': Scenario([w(0), w(B), ('sweep',), ('both', w(0), ('sweep',)), ('both', w(B), ('sweep',))]),
    'read-race': Scenario(
        [w(0), ('both', ('read', 0), w(0)), ('both', ('read', 0, B), w(1)), ('read', 0, 2)]
    ),
    'discard': Scenario(
        [('discard', 0, B), w(3), ('flush',), ('discard', B - 2, 2), ('discard', B, 2 * B), w(B)],
        prelude=WROTE,
    ),
    'discard-race': Scenario(
        [
            ('both', ('discard', 0, B), w(2)),
            ('flush',),
            ('both', w(B), ('discard', 0, 2 * B)),
            ('read', 0, B),
        ],
        prelude=WROTE,
    ),
    'fail': Scenario([w(0), ('fail', 1), w(B), ('sweep',), w(0), ('flush',), ('readd', 1), ('quiet',), w(1)]),
    'fail-dirty': Scenario([w(0), w(B), ('fail', 1), ('sweep',), ('readd', 1), ('quiet',), ('sweep',)]),
    'fail-race': Scenario(
        [w(0), ('both', w(1), ('fail', 1)), w(B), ('both', ('readd', 1), w(0)), w(B), ('quiet',)]
    ),
    'fail-first': Scenario(
        [('fail', 0), w(0), ('discard', B, B), ('readd', 0), ('both', ('read', 0, B), w(1))], prelude=WROTE
    ),
    'readd-fail': Scenario([('fail', 1), w(0), w(B), ('readd', 1), ('fail', 1), w(1), ('readd', 1), w(B)]),
    'replace': Scenario(
        [w(0), ('fail', 1), ('remove', 1), w(B), ('add', 2), w(0), ('quiet',), w(1)], prelude=WROTE
    ),
    'three': Scenario(
        [w(0), ('fail', 2), w(1), ('fail', 1), w(2), ('readd', 2), ('readd', 1), w(3), ('quiet',)], legs=3
    ),
    'grow-legs': Scenario(
        [('add', 2), ('both', w(0), w(B)), ('quiet',), ('fail', 0), w(0), ('flush',)], prelude=WROTE
    ),
    'no-log': Scenario([w(0), ('flush',), w(B), ('discard', 0, B), w(2)], logged=False, prelude=WROTE),
    'no-log-fail': Scenario(
        [w(0), ('fail', 1), w(B), ('readd', 1), ('both', w(0), w(B)), w(1), ('quiet',), w(0)],
        logged=False,
        prelude=WROTE,
    ),
    'old-copy': Scenario(
        [('fail', 1), w(0), ('exchange', 1), ('readd', 1), ('quiet',), w(0)],
        prelude=[w(0), w(B), ('sweep',), ('copy', 1), ('fail', 1), ('readd', 1), ('quiet',), w(0), w(2 * B)],
    ),
    'grow': Scenario(
        [
            w(0),
            ('grow', 5),
            w(4 * B),
            ('both', w(1), ('grow', 6)),
            ('fail', 1),
            ('grow', 7),
            w(6 * B),
            ('readd', 1),
        ],
        prelude=WROTE,
    ),
    'grow-race': Scenario(
        [
            ('both', ('grow', 5), ('fail', 1)),
            ('both', ('grow', 6), ('grow', 8)),
            ('both', w(5 * B), ('readd', 1)),
        ],
        prelude=WROTE,
    ),
    'single': Scenario([w(0), ('flush',), w(0), ('discard', 0, B), w(1)], legs=1),
}


class Failed(AssertionError):
    """A checker's complaint, with the case that shows it."""


def simulate(main: Callable[[], Awaitable[None]], seed: int, case: str) -> None:
    """Run `main` deterministically; whatever goes wrong names the case."""
    try:
        explore.simulate(main, seed)
    except Violation as violation:
        known = case.split('/')[0] in SCENARIOS and ' ' not in case
        how = f'replay: .venv/bin/python tests/crashtools.py {case}' if known else f'in the case: {case}'
        raise Failed(f'{violation}\n{how}') from violation


def play(name: str, seed: int, freeze_at: Callable[[int], bool] = lambda step: False) -> World:
    """Perform a scenario to its end; return its world, with the moments that were frozen."""
    scenario = SCENARIOS[name]
    world = World(scenario.chunks, scenario.legs, seed, scenario.logged)

    async def main() -> None:
        await world.make()
        if scenario.prelude:
            await world.run(scenario.prelude)
        world.steps = 0
        world.freeze_at = freeze_at
        await world.run(scenario.history)

    simulate(main, seed, f'{name}/{seed}')
    return world


def perform(world: World, history: Sequence[Operation], case: str) -> World:
    """Create the world's volume, then perform a history, with the world's faults from then on."""
    plan, world.plan = world.plan, {}

    async def main() -> None:
        await world.make()
        world.plan = plan
        await world.run(history)

    simulate(main, world.seed, case)
    return world


def recover(
    frozen: Frozen, keep: str, case: str, freeze_at: Callable[[int], bool] = lambda step: False
) -> World:
    """Start after a crash, check everything, stop; return the world, with its own frozen moments."""
    world = frozen.restart(keep)
    world.freeze_at = freeze_at

    async def main() -> None:
        async with world.running():
            await world.check_recovery()
            await world.stop()

    simulate(main, world.seed, case)
    return world


@dataclass
class Explorer:
    """Cuts scenarios into states and checks each; everything follows from the seed."""

    seed: int = 0
    states: int = 0
    fates: Sequence[str] = FATES
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._turn: list[str] = []

    def explore(self, name: str, *, each: int = 1, nested: float = 0.1, depth: int = 2) -> None:
        """Cut a scenario at every step, with `each` fates a step; cut a share of the recoveries again."""
        world = play(name, self.seed, lambda step: True)
        assert world.frozen
        for frozen in world.frozen:
            for fate in self._fates(each):
                self._crash(frozen, fate, f'{name}/{self.seed}', nested, depth)

    def _fates(self, count: int) -> list[str]:
        """Return some fates, such that steps in a row take turns over all of them."""
        fates = []
        while len(fates) < count:
            self._turn = self._turn or self.rng.sample(self.fates, len(self.fates))
            fates.append(self._turn.pop())
        return fates

    def _crash(self, frozen: Frozen, fate: str, case: str, nested: float, depth: int) -> None:
        case = f'{case}/{frozen.step}:{fate}'
        again = depth > 1 and self.rng.random() < nested
        world = recover(frozen, fate, case, (lambda step: True) if again else (lambda step: False))
        self.states += 1
        if again:
            for inner in self.rng.sample(world.frozen, min(6, len(world.frozen))):
                self._crash(inner, self.rng.choice(self.fates), case, 0.1, depth - 1)


def replay(case: str) -> World:
    """Perform one case again; raises Failed as it did."""
    name, seed, *cuts = case.split('/')
    steps = [int(cut.split(':')[0]) for cut in cuts]
    world = play(name, int(seed), lambda step: bool(steps) and step == steps[0])
    path = f'{name}/{seed}'
    for number, cut in enumerate(cuts):
        path += f'/{cut}'
        following = steps[number + 1] if number + 1 < len(cuts) else 0
        world = recover(world.frozen[0], cut.partition(':')[2], path, lambda step, at=following: step == at)
    return world


def main() -> None:
    for case in sys.argv[1:]:
        try:
            world = replay(case)
        except Failed:
            traceback.print_exc()
            sys.exit(1)
        print(*world.events, f'{case}: {world.steps} steps, all well', sep='\n')


if __name__ == '__main__':
    main()
