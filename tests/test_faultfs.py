"""The fault filesystem does what it says: else what is tested on it proves nothing."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultfs import SECTOR, Medium
from faulttools import FaultLeg
from mounts import KEEP_SIZE, PUNCH_HOLE, MountedPool, child, exit_code, fallocate, in_child, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]
SIZE = 64 << 10
OLD, NEW = b'o' * SIZE, b'n' * SIZE
BLOCK = 4096


@pytest.fixture(scope='module')
def one_leg() -> Iterator[FaultLeg]:
    with MountedPool() as pool:
        leg = FaultLeg(pool.base, 0)
        try:
            yield leg.start()
        finally:
            leg.stop()


@pytest.fixture
def leg(one_leg: FaultLeg) -> FaultLeg:
    """A leg of SIZE bytes, durably OLD, without rules."""
    one_leg.clear()
    one_leg.release()
    with opened(one_leg) as fd:
        os.ftruncate(fd, SIZE)
        os.pwrite(fd, OLD, 0)
        os.fsync(fd)
    return one_leg


@contextmanager
def opened(leg: FaultLeg, flags: int = 0) -> Iterator[int]:
    fd = os.open(leg.path, os.O_RDWR | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def write(leg: FaultLeg, offset: int, data: bytes, flags: int = 0) -> int:
    """Write as pwritev2 does: with RWF_DSYNC among the flags, durably."""
    with opened(leg) as fd:
        return os.pwritev(fd, [data], offset, flags)


def read(leg: FaultLeg) -> bytes:
    with opened(leg) as fd:
        return os.pread(fd, SIZE, 0)


def sync(leg: FaultLeg) -> None:
    with opened(leg) as fd:
        os.fsync(fd)


def punch(leg: FaultLeg) -> None:
    with opened(leg) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, BLOCK)


CALLS: dict[str, Callable[[FaultLeg], object]] = {
    'read': read,
    'plain': lambda leg: write(leg, 0, NEW[:BLOCK]),
    'dsync': lambda leg: write(leg, 0, NEW[:BLOCK], os.RWF_DSYNC),
    'punch': punch,
    'fsync': sync,
}
"""One call of each kind; those that change anything change the first BLOCK."""
PUNCHED, WRITTEN = bytes(BLOCK) + OLD[BLOCK:], NEW[:BLOCK] + OLD[BLOCK:]
EFFECT = {'plain': WRITTEN, 'dsync': WRITTEN, 'punch': PUNCHED}


def error_of(call: Callable[[FaultLeg], object], leg: FaultLeg) -> int:
    """Return the errno that a call fails with; 0 if it does not."""
    try:
        call(leg)
    except OSError as error:
        return error.errno or -1
    return 0


@contextmanager
def under_way(leg: FaultLeg, call: Callable[[FaultLeg], object]) -> Iterator[Future[int]]:
    """Make a call that is slow to return; yield its errno to come.  In the end nothing hangs."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(error_of, call, leg)
        try:
            yield future
        finally:
            leg.clear()
            while not future.done():
                leg.release()
                time.sleep(0.01)


@contextmanager
def hanging(leg: FaultLeg, kind: str, **options: float) -> Iterator[Future[int]]:
    """Make a call of a kind, which hangs."""
    leg.rule(kind, 'hang', **options)
    with under_way(leg, CALLS[kind]) as future:
        wait_for(lambda: leg.facts()['hanging'] == 1, 'a call that hangs')
        yield future


# What is durable


def test_what_was_written_is_seen_at_once_and_volatile(leg: FaultLeg) -> None:
    assert write(leg, 5, b'hello') == 5
    assert read(leg)[:12] == b'ooooohellooo'
    assert leg.durable() == OLD
    facts = leg.facts()
    assert (facts['volatile'], facts['volatile_bytes']) == (1, 5)


@pytest.mark.parametrize('how', [os.fsync, os.fdatasync])
def test_fsync_and_fdatasync_make_all_durable(leg: FaultLeg, how: Callable[[int], None]) -> None:
    write(leg, 0, b'a' * 700)
    write(leg, 9000, b'b' * 9000)
    with opened(leg) as fd:
        how(fd)
    assert leg.durable() == read(leg) != OLD
    assert leg.facts()['volatile'] == 0
    leg.power_cut(1, 'none')
    assert leg.durable() == read(leg)


def by_open(leg: FaultLeg) -> None:
    with opened(leg, os.O_DSYNC) as fd:
        os.pwrite(fd, NEW[:BLOCK], BLOCK)


def by_call(leg: FaultLeg) -> None:
    write(leg, BLOCK, NEW[:BLOCK], os.RWF_DSYNC)


@pytest.mark.parametrize('durably', [by_open, by_call])
def test_a_durable_write_makes_its_own_bytes_durable_and_no_others(
    leg: FaultLeg, durably: Callable[[FaultLeg], None]
) -> None:
    write(leg, 0, b'v' * 4 * BLOCK)
    durably(leg)
    durable = OLD[:BLOCK] + NEW[:BLOCK] + OLD[2 * BLOCK :]
    assert leg.durable() == durable
    assert leg.facts()['volatile_bytes'] == 3 * BLOCK
    leg.power_cut(1, 'all')  # the older write is not written over it either
    assert read(leg) == b'v' * BLOCK + NEW[:BLOCK] + b'v' * 2 * BLOCK + OLD[4 * BLOCK :]


def test_a_volatile_write_over_a_durable_one_can_be_lost(leg: FaultLeg) -> None:
    by_call(leg)
    write(leg, BLOCK, b'v' * BLOCK)
    leg.power_cut(1, 'none')
    assert read(leg)[BLOCK : 2 * BLOCK] == NEW[:BLOCK]


def test_a_hole_is_volatile_until_synced(leg: FaultLeg) -> None:
    punch(leg)
    assert read(leg) == PUNCHED and leg.durable() == OLD
    sync(leg)
    assert leg.durable() == PUNCHED


def test_a_new_size_is_durable_at_once(leg: FaultLeg) -> None:
    os.truncate(leg.path, SIZE + BLOCK)
    leg.power_cut(1, 'none')
    assert leg.durable() == OLD + bytes(BLOCK)
    os.truncate(leg.path, BLOCK)
    leg.power_cut(1, 'none')
    assert leg.durable() == OLD[:BLOCK] and leg.path.stat().st_size == BLOCK
    os.truncate(leg.path, 2 * BLOCK)
    assert read(leg) == OLD[:BLOCK] + bytes(BLOCK), 'what was cut off does not come back'


def test_a_write_beyond_the_end_makes_the_size_durable_and_not_the_bytes(leg: FaultLeg) -> None:
    write(leg, SIZE, NEW[:BLOCK])
    leg.power_cut(1, 'none')
    assert leg.durable() == OLD + bytes(BLOCK)


def test_sigkill_of_a_user_loses_nothing_and_makes_nothing_durable(leg: FaultLeg) -> None:
    def use() -> None:
        with opened(leg) as fd:
            os.pwrite(fd, NEW[:BLOCK], 0)
            signal.pause()

    with child(use) as pid:
        wait_for(lambda: leg.facts()['volatile'] == 1, 'the write')
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
    assert read(leg) == WRITTEN and leg.durable() == OLD
    assert in_child(lambda: sync(leg)) == 0, 'somebody else can make it durable'
    assert leg.durable() == WRITTEN


# Power cuts


@pytest.mark.parametrize(('fate', 'left'), [('all', WRITTEN), ('none', OLD)])
def test_a_power_cut_keeps_or_drops_what_was_volatile(leg: FaultLeg, fate: str, left: bytes) -> None:
    CALLS['plain'](leg)
    leg.power_cut(1, fate)
    assert read(leg) == leg.durable() == left
    assert leg.facts()['volatile'] == 0


WRITES = [(256, b'a' * 4 * SECTOR), (1024, b'b' * BLOCK)]
"""Two writes that overlap, the first of which begins and ends within a sector."""


def states_after_cuts(leg: FaultLeg, fate: str, seeds: range) -> list[bytes]:
    """Return what power cuts leave of the volatile WRITES over OLD."""
    states = []
    for seed in seeds:
        write(leg, 0, OLD, os.RWF_DSYNC)
        for offset, data in WRITES:
            write(leg, offset, data)
        leg.power_cut(seed, fate)
        states.append(read(leg))
        assert leg.durable() == states[-1]
    return states


def after(*writes: tuple[int, bytes]) -> bytes:
    """Return OLD with some writes over it."""
    state = bytearray(OLD)
    for offset, data in writes:
        state[offset : offset + len(data)] = data
    return bytes(state)


@pytest.mark.parametrize('fate', ['tear', 'random'])
def test_a_power_cut_tears_at_sectors_and_only_there(leg: FaultLeg, fate: str) -> None:
    """Each sector is as some of the writes leave it; in one state or another there is all that can be."""
    first, second = WRITES
    whole = [OLD, after(first), after(second), after(first, second)]
    states = states_after_cuts(leg, fate, range(60))
    for state in states:
        for at in range(0, SIZE, SECTOR):
            assert state[at : at + SECTOR] in {one[at : at + SECTOR] for one in whole}, at
    assert len(set(states) - set(whole)) > 10, 'torn'
    assert any(b'a' in state and b'b' not in state for state in states), 'the newest can be lost'
    assert any(b'b' in state and b'a' not in state for state in states), 'so can what is older, alone'
    if fate == 'random':
        assert set(whole) <= set(states)


def test_the_same_seed_cuts_alike(leg: FaultLeg) -> None:
    assert states_after_cuts(leg, 'random', range(10)) == states_after_cuts(leg, 'random', range(10))


@pytest.mark.parametrize('kind', ['plain', 'dsync', 'punch'])
def test_a_call_that_hangs_in_a_power_cut_never_takes_effect(leg: FaultLeg, kind: str) -> None:
    with hanging(leg, kind) as future:
        leg.power_cut(1, 'all')
        assert future.result(10) == errno.EIO
    assert read(leg) == leg.durable() == OLD


def test_parts_of_one_sector_from_one_call_are_not_torn_apart(tmp_path: Path) -> None:
    """The kernel sends a large call in parts that need not end at sectors."""
    path = tmp_path / 'backing'
    for seed in range(30):
        path.write_bytes(OLD[:BLOCK])
        medium = Medium(str(path))
        medium.write(0, b'n' * 700)
        medium.write(700, b'n' * (BLOCK - 700))
        medium.cut(random.Random(seed), 'tear')
        assert path.read_bytes()[SECTOR : 2 * SECTOR] in (OLD[:SECTOR], NEW[:SECTOR])


# Which calls a rule hits


@pytest.mark.parametrize(
    ('kind', 'hit'),
    [
        *((kind, {kind}) for kind in CALLS),
        ('write', {'plain', 'dsync'}),
        ('any', set(CALLS)),
    ],
)
def test_a_rule_hits_the_calls_of_its_kind(leg: FaultLeg, kind: str, hit: set[str]) -> None:
    leg.rule(kind, 'EIO', every=True)
    assert {name for name, call in CALLS.items() if error_of(call, leg)} == hit


@pytest.mark.parametrize(
    ('options', 'hit'),
    [
        ('', [1]),
        ('nth=3', [3]),
        ('every', [1, 2, 3, 4, 5, 6, 7, 8]),
        ('nth=4 every', [4, 5, 6, 7, 8]),
        ('nth=2 every step=3', [2, 5, 8]),
    ],
)
def test_a_rule_hits_the_nth_call_from_now_on(leg: FaultLeg, options: str, hit: list[int]) -> None:
    read(leg)
    leg.order(f'rule read do=EIO {options}')
    CALLS['plain'](leg)  # of another kind: not counted
    fired = leg.facts()['fired']
    assert [number for number in range(1, 9) if error_of(read, leg)] == hit
    assert leg.facts()['fired'] - fired == len(hit)


def test_the_first_rule_that_applies_is_taken_and_each_counts_all_calls(leg: FaultLeg) -> None:
    leg.rule('read', 'EIO', nth=2)
    leg.rule('any', 'ENOSPC', nth=2, every=True)
    assert [error_of(read, leg) for _ in range(3)] == [0, errno.EIO, errno.ENOSPC]


def test_clear_forgets_all_rules(leg: FaultLeg) -> None:
    leg.rule('any', 'EIO', every=True)
    assert leg.facts()['rules'] == 1
    leg.clear()
    assert leg.facts()['rules'] == 0
    assert not any(error_of(call, leg) for call in CALLS.values())


def test_calls_of_each_kind_are_counted(leg: FaultLeg) -> None:
    before = leg.facts()['calls']
    for count, call in enumerate(CALLS.values(), 1):
        for _ in range(count):
            call(leg)
    after = leg.facts()['calls']
    made = {kind: after[kind] - before[kind] for kind in after}
    assert made == {'read': 1, 'plain': 2, 'dsync': 3, 'punch': 4, 'fsync': 5, 'write': 5, 'any': 15}


# What goes wrong


@pytest.mark.parametrize('name', ['EIO', 'ENOSPC', 'EROFS'])
@pytest.mark.parametrize('kind', CALLS)
def test_a_call_fails_with_an_errno_and_has_no_effect(leg: FaultLeg, kind: str, name: str) -> None:
    if kind == 'fsync':
        CALLS['plain'](leg)
    leg.rule(kind, name)
    assert error_of(CALLS[kind], leg) == getattr(errno, name)
    assert leg.durable() == OLD
    assert read(leg) == (WRITTEN if kind == 'fsync' else OLD)
    assert error_of(CALLS[kind], leg) == 0, 'once'


@pytest.mark.parametrize('kind', ['plain', 'dsync'])
def test_a_short_write_takes_half_of_its_bytes(leg: FaultLeg, kind: str) -> None:
    leg.rule('write', 'short')
    assert CALLS[kind](leg) == BLOCK // 2
    assert read(leg) == NEW[: BLOCK // 2] + OLD[BLOCK // 2 :]
    assert leg.durable() == (read(leg) if kind == 'dsync' else OLD)


@pytest.mark.parametrize('kind', CALLS)
def test_a_delayed_call_takes_effect_at_once_and_answers_later(leg: FaultLeg, kind: str) -> None:
    if kind == 'fsync':
        CALLS['plain'](leg)
    fired = leg.facts()['fired']
    leg.rule(kind, 'delay', seconds=0.3)
    began = time.monotonic()
    with under_way(leg, CALLS[kind]) as future:
        wait_for(lambda: leg.facts()['fired'] > fired, 'the call')
        seen, durable = read(leg), leg.durable()
        assert not future.done()
        assert future.result(10) == 0
        assert time.monotonic() - began >= 0.3
    if kind == 'fsync':
        assert durable == WRITTEN
    else:
        assert seen == EFFECT.get(kind, OLD)
        assert durable == (WRITTEN if kind == 'dsync' else OLD)


@pytest.mark.parametrize('kind', CALLS)
def test_a_call_that_hangs_takes_effect_when_released(leg: FaultLeg, kind: str) -> None:
    if kind == 'fsync':
        CALLS['plain'](leg)
    with hanging(leg, kind) as future:
        leg.clear()  # no way out
        before = read(leg), leg.durable()
        assert not future.done()
        leg.release()
        assert future.result(10) == 0
    assert before == (WRITTEN if kind == 'fsync' else OLD, OLD)
    assert read(leg) == (WRITTEN if kind == 'fsync' else EFFECT.get(kind, OLD))
    assert leg.durable() == (WRITTEN if kind in ('fsync', 'dsync') else OLD)
    assert leg.facts()['hanging'] == 0


def test_a_call_can_hang_for_some_seconds(leg: FaultLeg) -> None:
    began = time.monotonic()
    with hanging(leg, 'plain', seconds=0.3) as future:
        assert future.result(10) == 0
    assert time.monotonic() - began >= 0.3
    assert read(leg) == WRITTEN


def test_other_calls_pass_one_that_hangs(leg: FaultLeg) -> None:
    with hanging(leg, 'plain') as future:
        assert write(leg, 2 * BLOCK, b'passes') == 6
        assert read(leg)[2 * BLOCK :][:6] == b'passes'
        assert not future.done()


def test_a_bit_of_what_is_read_is_wrong_once(leg: FaultLeg) -> None:
    leg.rule('read', 'flip')
    wrong = read(leg)
    assert int.from_bytes(wrong) ^ int.from_bytes(OLD) == 0x10 << 8 * (SIZE - 1 - SIZE // 2)
    assert read(leg) == OLD


@pytest.mark.parametrize('kind', ['plain', 'dsync'])
def test_a_bit_of_what_is_written_is_wrong_for_good(leg: FaultLeg, kind: str) -> None:
    leg.rule(kind, 'flip')
    CALLS[kind](leg)
    wrong = [at for at, byte in enumerate(read(leg)) if byte != WRITTEN[at]]
    assert wrong == [BLOCK // 2]
    sync(leg)
    assert leg.durable() == read(leg)


@pytest.mark.parametrize('kind', ['dsync', 'fsync'])
def test_a_lie_says_durable_and_is_not(leg: FaultLeg, kind: str) -> None:
    if kind == 'fsync':
        CALLS['plain'](leg)
    leg.rule(kind, 'lie')
    assert error_of(CALLS[kind], leg) == 0
    assert read(leg) == WRITTEN and leg.durable() == OLD
    leg.power_cut(1, 'none')
    assert read(leg) == OLD


@pytest.mark.parametrize('kind', ['plain', 'fsync'])
def test_a_process_is_killed_and_the_call_takes_effect(leg: FaultLeg, kind: str) -> None:
    def use() -> None:
        signal.pause()

    if kind == 'fsync':
        CALLS['plain'](leg)
    with child(use) as pid:
        leg.rule(kind, 'kill', nth=2, pid=pid)
        CALLS[kind](leg)
        os.kill(pid, 0)
        CALLS[kind](leg)
        assert exit_code(pid) == -signal.SIGKILL
    assert read(leg) == WRITTEN
    leg.rule('plain', 'kill', pid=pid)
    assert error_of(CALLS['plain'], leg) == 0, 'a process that is gone is no error'


# The commands, and the end


@pytest.mark.parametrize(
    'command',
    [
        '',
        'nonsense',
        'rule',
        'rule read',
        'rule read EIO',
        'rule sleep do=EIO',
        'rule read do=EMADEUP',
        'rule read do=EIO nth=0',
        'rule read do=EIO nth=x',
        'rule read do=EIO every step=0',
        'rule read do=EIO colour=red',
        'rule read do=delay',
        'rule read do=delay seconds=soon',
        'rule read do=kill',
        'rule read do=kill pid=1',
        'clear all',
        'release 1',
        'cut',
        'cut 1 half',
        'cut 1 all 2',
    ],
)
def test_a_bad_command_is_refused_and_changes_nothing(leg: FaultLeg, command: str) -> None:
    CALLS['plain'](leg)
    before = leg.facts()
    with pytest.raises(OSError) as caught:
        leg.order(command + '\n')
    assert caught.value.errno == errno.EINVAL
    assert leg.facts() == before


def test_the_mount_has_two_files_and_the_control_file_is_json(leg: FaultLeg) -> None:
    assert sorted(path.name for path in leg.mountpoint.iterdir()) == ['.control', 'leg']
    assert set(json.loads(leg.control.read_text())) == {
        'calls', 'fired', 'hanging', 'volatile', 'volatile_bytes', 'rules',
    }  # fmt: skip


def test_a_killed_leg_fails_every_call_and_keeps_what_is_durable() -> None:
    with MountedPool() as pool:
        leg = FaultLeg(pool.base, 0)
        leg.backing.write_bytes(OLD)
        try:
            leg.start()
            assert read(leg) == OLD
            CALLS['plain'](leg)
            leg.rule('fsync', 'hang')
            with ThreadPoolExecutor(1) as threads:
                future = threads.submit(error_of, sync, leg)
                wait_for(lambda: leg.facts()['hanging'] == 1, 'a call that hangs')
                leg.kill()
                assert future.result(10) in (errno.ECONNABORTED, errno.ENOTCONN)
            assert error_of(read, leg) in (errno.ECONNABORTED, errno.ENOTCONN)
            assert leg.durable() == OLD
        finally:
            leg.stop()
