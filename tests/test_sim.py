"""The simulator's own searches: random runs by seed, and the runs that once showed a defect.

MIRRORFS_SIM_SEED is the first seed and MIRRORFS_SIM_RUNS how many runs are explored.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.sim.explore import Explorer, Failed, begin, play, replay
from mirrorfs.sim.history import Composer, Run, Session
from mirrorfs.sim.shrink import shrink
from mirrorfs.sim.violation import CHECKERS
from mirrorfs.volume.volume import Volume

SEED = int(os.environ.get('MIRRORFS_SIM_SEED', '0'))
RUNS = int(os.environ.get('MIRRORFS_SIM_RUNS', '60'))
GROUP = 20

FOUND = {
    # The chunks that a faulty leg lacks were forgotten in the log before the superblocks said so.
    'modified forgotten before the promise': '(261, (3, 2, True, False, False, (0,)), [((("away", 0),), '
    '(("write", 32, 16),), "stop", 0, []), ((), (("fail", 0), ("add", 2)), "pool", 87, []), '
    '((), (), "stop", 0, []), ((), (("check", "reads"),), "stop", 0, [])])',
    # A flush failed, the process died before it could tell: pages that look clean were taken for durable.
    'cache believed after a failed flush': '(147, (2, 2, True, False, False, (0,)), [((("swap", 0, 1),), '
    '(("write", 2, 2), ("write", 0, 16), ("vanish", 1), ("flush",)), "kill", 36, []), '
    '((), (("check", "reads"),), "stop", 0, [])])',
    # Legs that changed places while one of them was away: both slots kept the same path.
    'legs that changed places': '(28, (4, 2, True, False, False, (0,)), [((("swap", 0, 1),), (), "tear:486", '
    '186, []), ((("away", 1),), (("write", 48, 2),), "d1", 22, []), '
    '((), (("check", "reads"),), "stop", 0, [])])',
    # A leg that had joined made the next start write, though nobody had written.
    'a start that writes': '(25, (3, 2, False, False, False, (0,)), [((("away", 1),), (("write", 32, 2),), '
    '"tear:678", 21, []), ((), (("check", "resync"),), "stop", 0, []), '
    '((("remember",),), (), "stop", 0, []), ((("unchanged",),), (), "stop", 0, [])])',
}


@pytest.mark.parametrize('first', range(SEED, SEED + RUNS, GROUP))
def test_random_runs_keep_every_promise(first: int) -> None:
    explorer = Explorer()
    for seed in range(first, first + GROUP):
        try:
            explorer.explore(Composer(seed).run())
        except Failed as failed:
            pytest.fail(f'{failed}\nreplay: python -m mirrorfs.sim --seed {seed}\ncase: {failed.run.text}')
    assert explorer.tally.states > 10 * GROUP


@pytest.mark.parametrize('name', FOUND)
def test_what_was_found_once_is_not_found_again(name: str) -> None:
    run = Run.parse(FOUND[name])
    replay(run)
    Explorer(cut=0.5, nested=0.0, states_max=60).explore(run.but(sessions=run.sessions[:-1]))


def test_the_searches_look_at_everything() -> None:
    explorer = Explorer(cut=0.05, fates=1)
    for seed in range(25):
        explorer.explore(Composer(seed).run())
    looked_at = {name for name, count in explorer.tally.checks.items() if count}
    only_by_raising = {'one-order', 'last-copy', 'defect'}
    assert looked_at >= CHECKERS.keys() - only_by_raising - {'window'}


def test_one_seed_gives_one_run_also_in_another_process() -> None:
    code = (
        'import zlib\n'
        'from mirrorfs.sim.explore import begin, play\n'
        'from mirrorfs.sim.history import Composer\n'
        'run = Composer(12).run(); world = begin(run); play(world, run.sessions[0])\n'
        'print(zlib.crc32(repr(world.trace).encode()))'
    )
    outputs = set()
    for hash_seed in ('1', '2'):
        env = {**os.environ, 'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': str(Path(__file__).parent.parent)}
        done = subprocess.run(
            [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_a_run_survives_being_written_down() -> None:
    for seed in range(50):
        run = Composer(seed).run()
        assert Run.parse(run.text) == run
    with pytest.raises(ValueError, match='this is no run'):
        Run.parse('nothing')


def test_a_failure_is_shortened_and_fails_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flush(self: Volume) -> None:
        await self.members[0].leg.flush()

    monkeypatch.setattr(Volume, 'flush', flush)
    run = Run(3, (Session((('write', 0, 1), ('read', 0, 1), ('write', 20, 2), ('flush',), ('sweep',))),))
    with pytest.raises(Failed) as failed:
        Explorer().explore(run)
    short = shrink(run, failed.value.violation.checker, 20)
    assert len(short.sessions[0].operations) < 4
    with pytest.raises(Failed, match=failed.value.violation.checker):
        replay(short)


def test_a_world_is_played_session_by_session() -> None:
    world = begin(Run(5))
    play(world, Session((('write', 0, 1), ('flush',))))
    assert world.checkers.made['fsync-durable'] == 1
    assert any(line == '> flush' for line in world.trace)
