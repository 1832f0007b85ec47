"""The simulator's own searches: random runs by seed, and the runs that once showed a defect.

MIRRORFS_SIM_SEED is the first seed and MIRRORFS_SIM_RUNS how many runs are explored.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorfs.sim import search
from mirrorfs.sim.__main__ import main
from mirrorfs.sim.exhaustive import BETWEEN, CRASH, runs, workloads
from mirrorfs.sim.explore import Explorer, Failed, Watch, begin, play, replay
from mirrorfs.sim.history import Composer, Run, Session
from mirrorfs.sim.shrink import shrink
from mirrorfs.sim.violation import CHECKERS
from mirrorfs.volume.volume import Volume

SEED = int(os.environ.get('MIRRORFS_SIM_SEED', '0'))
RUNS = int(os.environ.get('MIRRORFS_SIM_RUNS', '160'))

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
    # A leg that was cut short was taken back, and could not take the first write behind its end.
    'a leg cut short comes back': '(583, (2, 2, True, True, False, (0,)), [((("shrink", 1),), (("readd", 1), '
    '("write", 17, 15)), "stop", 0, []), ((), (("check", "reads"),), "stop", 0, [])])',
    # A faulty leg was being taken back while another completed the set, and its slot was forgotten.
    'a slot forgotten under a leg that returns': '(226, (2, 2, True, False, False, (1, 1, 2, 5)), [((), '
    '(("both", ("fail", 1), ("sleep", 12.0)), ("add", 2), ("readd", "missing"), ("write", 0, 1), '
    '("add", 3)), "all", 43, [(("d0", "write", 5), ("short", 5, 0.0)), (("d0", "any", 3), ("error", 28, '
    '0.0))]), '
    '((), (("check", "resync"),), "stop", 0, [])])',
    # A leg that was to be copied anew could not be emptied, for one bad block, and was not taken back.
    'a bad block in the way of a hole': '(7, (2, 2, False, False, False, (0, 0, 1, 3), False, 0.0), [((), '
    '(("write", 0, 16), ("flush",), ("bad", 1, "write", 1, 1), ("fail", 1), ("write", 0, 2), ("readd", 1), '
    '("quiet",), ("check",)), "stop", 0, []), ((), (("check", "reads"),), "stop", 0, [])])',
    # The round that failed a leg reached the spare alone; the spare was then taken for one that grew apart.
    'a spare that heard more than the others': '(0, (2, 2, True, False, False, (0,), False, 0.0, False), '
    '[((), (("add", 2),), "kill", 0, []), ((), (("fail", 0),), "kill", 39, []), '
    '((), (("check", "reads"),), "stop", 0, [])])',
    # Two legs in sync could not be read in different blocks of a window: its resync never ended.
    'bad blocks here and there in a window': '(5045, (2, 2, False, False, False, (0, 0, 0, 15), True, 5.0)'
    ', [((), (("bad", 1, "read", 15, 1), ("flush",), ("read", 16, 1)), "tear:123", 0, [(("pool", "a'
    'ny", 33), ("error", 5, 0.0))]), ((("swap", 0, 1),), (("fail", 0), ("write", 0, 32), ("discard"'
    ', 18, 1), ("both", ("bad", 1, "read", 2, 1), ("flush",), ("bad", 0, "read", 16, 3), ("read", 0'
    ', 1), ("then", ("bad", 0, "read", 0, 3), ("add", 2), ("fail", 1))), ("flush",), ("read", 16, 1'
    '), ("discard", 0, 16)), "tear:1", 167, []), ((), (("check", "resync"),), "none", 101, []), (()'
    ', (("check", "reads"),), "stop", 0, [])])',
    # A sync of a log page failed, the cache showed it still: the next start wrote over the only whole copy.
    'metadata believed after a failed sync': '(12, (2, 2, True, False, False, (0, 0, 1, 3)), '
    '[((), (("write", 0, 16), ("write", 16, 16), ("flush",), ("fail", 1), ("sleep", 35.0)), "kill", 58, '
    '[(("d0", "write", 12), ("gone", 6, 0.0))]), ((), (("check", "reads"),), "stop", 0, [])])',
}


def look(jobs: Iterable[search.Job], tell: Callable[[str], None]) -> search.Found:
    """Search on all cores; fail with how to replay what was found."""
    watch, processes = Watch(), os.cpu_count() or 1
    found = search.search(jobs, processes)
    tell(search.summary(found, watch.seconds, processes))
    assert not found.failures
    return found


@pytest.mark.timeout(1200)
def test_every_short_workload_keeps_every_promise_wherever_it_crashes(tell: Callable[[str], None]) -> None:
    """Up to three operations on two legs, crashed at every I/O, with all fates of a few volatile writes."""
    found = look(search.exhaustive_jobs(), tell)
    assert found.tally.states > 10_000
    assert found.tally.merged


@pytest.mark.timeout(1200)
def test_random_runs_keep_every_promise(tell: Callable[[str], None]) -> None:
    found = look(search.random_jobs(SEED, RUNS), tell)
    assert found.tally.states + found.tally.judged > 250 * RUNS
    looked_at = {name for name, count in found.tally.checks.items() if count}
    assert looked_at >= CHECKERS.keys() - {'one-order', 'last-copy', 'defect'}  # these have only to be raised


def test_the_exhaustive_mode_finds_a_flush_that_leaves_a_leg_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flush(self: Volume) -> None:
        await self.members[0].leg.flush()

    monkeypatch.setattr(Volume, 'flush', flush)
    found = search.short_workloads([(('write', 0, 1), ('flush',))], 2)
    assert [what.partition(':')[0] for what, _, _ in found.failures] == ['fsync-durable']
    monkeypatch.undo()
    assert not search.short_workloads([(('write', 0, 1), ('flush',))], 2).failures


def test_a_workload_with_a_crash_in_it_goes_on_from_each_way_it_may_end() -> None:
    both = list(runs((('write', 0, 1), CRASH, ('add', 0))))
    assert [run.sessions[0].end for run in both] == list(BETWEEN)
    assert {run.sessions[1].operations for run in both} == {(('add', 2),)}
    assert len(workloads()) == len(set(workloads())) == 6 + 6 * 6 + 6 * 7 * 6


@pytest.mark.parametrize('name', FOUND)
def test_what_was_found_once_is_not_found_again(name: str) -> None:
    run = Run.parse(FOUND[name])
    replay(run)
    Explorer(cut=0.5, nested=0.0, states_max=60).explore(run.but(sessions=run.sessions[:-1]))


@pytest.mark.parametrize('lane', [False, True], ids=['without lane', 'with lane'])
def test_one_seed_gives_one_run_also_in_another_process(lane: bool) -> None:
    code = (
        'import zlib\n'
        'from mirrorfs.sim.explore import begin, play\n'
        'from mirrorfs.sim.history import Composer\n'
        f'run = Composer(17).run().but(lane={lane}); world = begin(run); play(world, run.sessions[0])\n'
        'assert len(world.trace) > 50\n'
        'print(zlib.crc32(repr(world.trace).encode()), getattr(world, "digest", 0))'
    )
    outputs = set()
    for hash_seed in ('1', '2', '3'):
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


def test_a_failing_seed_is_shown_shortened_with_its_trace_and_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def flush(self: Volume) -> None:
        await self.members[0].leg.flush()

    monkeypatch.setattr(Volume, 'flush', flush)
    done = CliRunner().invoke(main, ['--seed', '17', '--shrink-seconds', '5'])
    assert done.exit_code == 1
    said = done.output
    assert 'VIOLATION of fsync-durable' in said or 'VIOLATION of clearing-last' in said
    assert '> write' in said, 'no trace'
    case = said.rpartition('case: ')[2].partition('\n')[0]
    assert len(Run.parse(case).text) < len(Composer(17).run().text)
    again = CliRunner().invoke(main, ['--case', case, '--no-trace'])
    assert again.exit_code == 1
    monkeypatch.undo()
    assert CliRunner().invoke(main, ['--case', case]).exit_code == 0


def test_a_world_is_played_session_by_session() -> None:
    world = begin(Run(5))
    play(world, Session((('write', 0, 1), ('flush',))))
    assert world.checkers.made['fsync-durable'] == 1
    assert any(line == '> flush' for line in world.trace)
