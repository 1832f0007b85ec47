"""The data lane against trio, step by step: the real lane and the real volume, interleaved in every way.

A *script* is a request that the lane serves and what trio does meanwhile.  Each is played again and again,
with the lane held at another point each time (a line of its code, or a step of a system call):

    held    the lane stands at point K; trio goes as far as it can; then the lane goes on
    stuck   the lane stands at point K until it is superseded; trio does its part; then the lane comes back

After each, all checkers look, every request has been answered once, legs are equal, the stop is clean.
"""

import itertools
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from crashtools import B, Failed, simulate, w
from plants import Plant
from plants_blind import BLIND
from trio.testing import wait_all_tasks_blocked

from mirrorfs.limits import FETCH_PATIENCE
from mirrorfs.sim import verbs
from mirrorfs.sim.lockstep import Lockstep
from mirrorfs.sim.resting import Operation
from mirrorfs.sim.simlane import Freely, Held, LaneWorld, SimMount
from mirrorfs.sim.violation import Violation

ALL = bool(os.environ.get('MIRRORFS_LANE_ALL'))
"""Whether all scripts are played, or a part of them, as there is time for in every run."""
CHUNKS = 2
HELD_SECONDS = 0.003
"""How long trio's part may take while a lane is held: some looks of `settle`, and far from the watchdog's."""
STUCK_SECONDS = 0.4

HOT = (w(0), w(B), ('flush',), w(0), w(B))
"""Leaves both chunks to the lane."""
UNFLUSHED = (w(0), w(B), w(0), w(B))
"""The same, and no thread has synced yet."""


@dataclass(frozen=True)
class Script:
    """`asked` of the lane, after the `prelude`, and what trio does `meanwhile`."""

    asked: Operation
    meanwhile: tuple[Operation, ...]
    prelude: tuple[Operation, ...] = HOT
    hot: bool = True
    """Whether the lane does it by itself if nothing disturbs it."""
    troubled: bool = False
    """Whether it may be refused."""
    cold: bool = False
    """Whether nothing is in the page cache."""


ALONE = (*HOT, ('fail', 1), w(0), w(B))
ALONE0 = (*HOT, ('fail', 0), w(0), w(B))
MEANWHILE: dict[str, tuple[Operation, ...]] = {
    'write': (w(0),),
    'overlap': (w(1, 3),),
    'wide': (w(B - 2, 4),),
    'twice': (w(1), w(0, 2)),
    'read': (('read', 0, 2),),
    'fail': (('fail', 1), ('read', 0, 2)),
    'fail-home': (('fail', 0), ('read', 0, 2)),
    'fail-write': (('fail', 1), w(0)),
    'fail-readd': (('fail', 1), ('readd', 1)),
    'discard': (('discard', 0, B),),
    'discard-part': (('discard', 0, 2), ('read', 0, 2)),
    'sweep': (('sweep',),),
    'sweep-write': (('sweep',), w(0)),
    'flush': (('flush',),),
    'grow': (('grow', CHUNKS + 1), w(CHUNKS * B)),
    'stop': (('stop',),),
}
ASKED = {'write': w(0, 2), 'across': w(B - 1, 2), 'read': ('read', 0, 2), 'read-across': ('read', B - 1, 2)}
READ = ASKED['read']
TWO_LARGE: Operation = ('both', w(0, 6), w(4, 6), w(4, 1), ('read', 0, 2))
"""The first of them the mate's, as long as the others wait."""
SCRIPTS = {
    f'{asked} {what}': Script(ASKED[asked], MEANWHILE[what], troubled=what == 'stop')
    for asked, what in itertools.product(ASKED, MEANWHILE)
}
for _asked in ASKED:
    SCRIPTS |= {
        f'{_asked} readd': Script(ASKED[_asked], (('readd', 1),), ALONE),
        f'{_asked} remove-add': Script(ASKED[_asked], (('remove', 1), ('add', 2)), ALONE),
        f'{_asked} recovery': Script(ASKED[_asked], (('readd', 1), ('quiet',), ('fail', 0)), ALONE),
    }
SCRIPTS |= {
    'cold write': Script(w(0), (w(0, 2),), (w(B),), hot=False),
    'cold sweep': Script(w(0), (('sweep',),), (*HOT, ('sweep',)), hot=False),
    'cold discard': Script(w(1), (('discard', 0, B),), (*HOT, ('discard', 0, B)), hot=False),
    'large write': Script(w(0, B + 4), (w(B, 4),), (w(0),), hot=False),
    'discard write': Script(('discard', 0, B), (w(0),), hot=False),
    'flush write': Script(('flush',), (w(0), ('fail', 1)), UNFLUSHED),
    'zeros write': Script(('read', 0, 2), (w(0),), (w(B),)),
    'two-large write': Script(TWO_LARGE, (w(1),)),
    'two-large overlap': Script(TWO_LARGE, (w(2, 4),)),
    'two-large fail-readd': Script(TWO_LARGE, (('fail', 1), ('readd', 1))),
    'two-large fail-write': Script(TWO_LARGE, (('fail', 1), w(0))),
    'two-large sweep-write': Script(TWO_LARGE, (('sweep',), w(0))),
    'two-large discard': Script(TWO_LARGE, (('discard', 0, B),)),
    'flush fail-write': Script(('flush',), (('fail', 1), w(0)), UNFLUSHED),
    'flush sweep-write': Script(('flush',), (('sweep',), w(0)), UNFLUSHED),
    'flush remove-add': Script(('flush',), (('remove', 1), ('add', 2), ('quiet',)), UNFLUSHED),
    'flush stop': Script(('flush',), (('stop',),), UNFLUSHED, troubled=True),
    'fetch write': Script(READ, (w(0),), cold=True),
    'fetch sweep-write': Script(READ, (('sweep',), w(0), ('read', 0, 2)), cold=True),
    'fetch fail-home': Script(READ, (('fail', 0), w(0)), cold=True),
    'fetch fail-readd': Script(READ, (('fail', 0), w(0), ('readd', 0), ('quiet',), w(1)), cold=True),
    'fetch remove-add': Script(READ, (('remove', 0), ('add', 2), w(0), ('quiet',)), ALONE0, cold=True),
    'fetch discard': Script(READ, (('discard', 0, B), w(0)), cold=True),
    'fetch stop': Script(READ, (('stop',),), cold=True, troubled=True),
    'end grow': Script(w(CHUNKS * B), (('grow', CHUNKS + 1),), hot=False, troubled=True),
}


class Stage:
    """A world with a script's lane in hand: held before the first line that deals with the request."""

    def __init__(self, name: str, seed: int = 0, kind: str = 'lane') -> None:
        self.script = SCRIPTS[name]
        self.kind = kind
        self.seed = seed
        missing = float(self.script.cold)
        self.world = LaneWorld(CHUNKS, 2, seed, pace=Freely(), odd=False, missing=missing)
        self.held = Held()
        self.answered = trio.Event()

    def play(self, act: Callable[['Stage'], Awaitable[None]], case: str) -> None:
        """Have `act` do its part of the script, then all go on to the end."""
        simulate(partial(self._play, act), self.seed, case)

    async def _play(self, act: Callable[['Stage'], Awaitable[None]]) -> None:
        world, script = self.world, self.script
        await world.make()
        async with world.running():
            for operation in script.prelude:
                await verbs.perform(world, operation)
            world.model.grow((CHUNKS + 1) * B)
            world.troubled |= script.troubled
            if self.kind == 'lane':
                self.mount.paces[self.lane] = self.held
            else:
                self.mount.named[self.kind] = self.held
            async with trio.open_nursery() as self.nursery:
                self.nursery.start_soon(self._ask)
                await wait_all_tasks_blocked()
                self.thread = self.lane if self.kind == 'lane' else self.mount.threads[-1]
                await act(self)
                self.held.released.set()
            await self._finish()

    @property
    def mount(self) -> SimMount:
        assert self.world.mount
        return self.world.mount

    @property
    def lane(self) -> Lockstep:
        return self.mount.lane

    def advance(self, points: int) -> int:
        """Let the thread in hand, which is the newest of its kind, pass some points."""
        return self.thread.advance(points)

    async def _ask(self) -> None:
        await verbs.perform(self.world, self.script.asked)
        self.answered.set()

    async def meanwhile(self, *, hand_over: bool = False) -> None:
        """Trio's part, to its end: straight to the volume, or through the lane that serves then."""
        world = self.world
        world.port = self.mount if hand_over else world.volume
        for operation in self.script.meanwhile:
            if operation == ('stop',):
                await world.stop()
            else:
                await verbs.perform(world, operation)

    async def as_far_as_it_can(self) -> None:
        """Trio's part, until it is done or waits for the lane; the rest goes on with the lane."""
        done = trio.Event()

        async def part() -> None:
            await self.meanwhile()
            done.set()

        self.nursery.start_soon(part)
        with trio.move_on_after(HELD_SECONDS):
            await done.wait()

    async def _finish(self) -> None:
        """All that was done is as promised, and the volume goes on as if nothing had been."""
        world = self.world
        if world.mount:
            world.port = world.mount
            for operation in (('quiet',), ('read', 0, CHUNKS * B), w(0, 2), ('read', 0, 2), ('check',)):
                await verbs.perform(world, operation)
            await world.stop()


# The ways to interleave.  Each plays one case and returns whether there are more points.


def held(name: str, point: int, seed: int = 0, kind: str = 'lane') -> bool:
    stage, passed = Stage(name, seed, kind), 0

    async def act(stage: Stage) -> None:
        nonlocal passed
        passed = stage.advance(point)
        await stage.as_far_as_it_can()

    stage.play(act, f'held {kind} {name} {point} {seed}')
    return passed == point


def stuck(name: str, point: int, seed: int = 0, kind: str = 'lane') -> bool:
    stage, passed = Stage(name, seed, kind), 0

    async def act(stage: Stage) -> None:
        nonlocal passed
        passed = stage.advance(point)
        await trio.sleep(STUCK_SECONDS + FETCH_PATIENCE * (kind == 'fetch'))
        superseded.append(stage.mount.superseded)
        await stage.as_far_as_it_can()

    stage.play(act, f'stuck {kind} {name} {point} {seed}')
    return passed == point


superseded: list[int] = []


@pytest.mark.parametrize('name', sorted(SCRIPTS)[:: 1 if ALL else 4])
def test_a_lane_held_at_any_point_breaks_no_promise(name: str) -> None:
    points = next(k for k in itertools.count() if not held(name, k))
    assert points > 20


@pytest.mark.parametrize('name', sorted(SCRIPTS)[:: 1 if ALL else 5])
def test_a_lane_stuck_at_any_point_is_replaced_and_breaks_no_promise(name: str) -> None:
    superseded.clear()
    points = next(k for k in itertools.count() if not stuck(name, k))
    assert points > 20
    assert any(superseded)


HELPERS = [
    (script.split()[0].replace('two-large', 'mate').replace('flush', 'sync'), script)
    for script in sorted(SCRIPTS)
    if script.startswith(('two-large ', 'flush ', 'fetch '))
]


@pytest.mark.parametrize(('kind', 'name'), HELPERS[:: 1 if ALL else 3])
@pytest.mark.parametrize('mode', [held, stuck])
def test_a_thread_beside_the_lane_at_any_point_breaks_no_promise(
    kind: str, name: str, mode: Callable[..., bool]
) -> None:
    points = next(k for k in itertools.count() if not mode(name, k, kind=kind))
    assert points > 5


def test_no_thread_outlives_a_simulation() -> None:
    held('write write', 30)
    assert not [thread for thread in threading.enumerate() if thread.name == 'lockstep']


MATE = (
    Plant(
        name='small_request_overtakes_the_mate',
        target='mirrorfs.fs.lane:Lane._serve',
        old='while self._lent:',
        new='while False:',
        checker='one-order',
        also=('equal', 'promise', 'stable-reads', 'never-stale', 'window', 'clearing-last', 'defect'),
        why='The mate is between two legs with a large write; the lane does a small one over it meanwhile.',
    ),
    Plant(
        name='requests_behind_a_stuck_one_forgotten',
        target='mirrorfs.fs.gateway:Gateway._supersede',
        old='while lane.tickets:',
        new='while False:',
        checker='defect',
        also=('promise',),
        why='The mate is stuck; what waits behind it is never answered.',
    ),
)
"""Bugs that are found by holding the mate."""
PLANTS: dict[str, list[tuple[Callable[[str, int], bool], str]]] = {
    'superseded_lane_goes_on': [(stuck, 'write fail-readd')],
    'small_request_overtakes_the_mate': [(partial(held, seed=1), 'two-large overlap')],
    'requests_behind_a_stuck_one_forgotten': [(partial(stuck, kind='mate'), 'two-large write')],
}


@pytest.mark.parametrize('name', PLANTS)
def test_a_bug_planted_in_the_lane_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    next(plant for plant in (*BLIND, *MATE) if plant.name == name).sow(monkeypatch)
    with pytest.raises((Failed, Violation, AssertionError)):
        for mode, script in PLANTS[name]:
            for point in itertools.count():
                if not mode(script, point):
                    break
