"""Quorum: how many legs must be in sync for writes, and what becomes of writes below it."""

import errno
import os
import threading
from collections.abc import Iterator

import pytest
from mounts import (
    KEEP_SIZE,
    MIB,
    PUNCH_HOLE,
    MountedPool,
    Volume,
    cli,
    cli_ok,
    fallocate,
    in_child,
    wait_for,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


def put(volume: Volume, at: int, data: bytes = b'x') -> None:
    with volume.open() as fd:
        os.pwrite(fd, data, at)


def error_of_put(volume: Volume, at: int = 0) -> int:
    try:
        put(volume, at)
    except OSError as error:
        return error.errno or -1
    return 0


def below(pool: MountedPool, policy: str, legs: int = 2) -> Volume:
    """A volume with something written, and one leg fewer than its writes need."""
    volume = pool.volume(size=16 * MIB, legs=legs)
    put(volume, 0, b'before')
    put(volume, 0, b'before')  # the second time it is the lane's
    volume.write('quorum', str(legs))
    volume.write('quorum_policy', policy)
    assert error_of_put(volume, 8) == 0
    volume.write('fail', str(legs - 1))
    return volume


@pytest.mark.parametrize(
    ('policy', 'code', 'state'), [('error', errno.EIO, 'active'), ('readonly', errno.EROFS, 'readonly')]
)
def test_below_the_quorum_writes_and_discards_fail_and_all_else_goes_on(
    pool: MountedPool, policy: str, code: int, state: str
) -> None:
    volume = below(pool, policy)
    before = volume.status()['io']['lane_writes']
    for at in (0, 0, 5 * MIB):
        assert error_of_put(volume, at) == code
    assert volume.status()['io']['lane_writes'] == before
    with volume.open() as fd:
        with pytest.raises(OSError) as caught:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, MIB)
        assert caught.value.errno == code
        os.fsync(fd)
        assert os.pread(fd, 6, 0) == b'before'
    assert volume.read('array_state') == f'{state}\n'
    assert any(' QuorumLost ' in line for line in pool.events())
    assert 'quorum: 2 legs' in cli_ok('status', pool.mountpoint, volume.name)
    volume.write('re-add', '1')
    wait_for(lambda: error_of_put(volume) == 0, 'writes go on')
    assert any(' QuorumRegained ' in line for line in pool.events())
    volume.settled()
    volume.destroy()


def test_below_the_quorum_writes_wait_for_a_leg_and_keep_no_reader_out(pool: MountedPool) -> None:
    volume = below(pool, 'wait')
    done = threading.Event()

    def write() -> None:
        put(volume, 0, b'waited')
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: volume.status()['writes_waiting'] == 1, 'the write waits')
    assert volume.read('array_state') == 'write-pending\n'
    with volume.open(os.O_RDONLY) as fd:
        assert os.pread(fd, 6, 0) == b'before'  # no fsync: the kernel has it wait for writes under way
    assert not done.is_set()
    volume.write('re-add', '1')
    assert done.wait(30)
    writer.join()
    volume.settled()
    with volume.open(os.O_RDONLY) as fd:
        assert os.pread(fd, 6, 0) == b'waited'
    assert volume.read('degraded') == '0\n'
    volume.destroy()


def test_waiting_writes_end_with_an_error_when_the_volume_stops(pool: MountedPool) -> None:
    volume = below(pool, 'wait')
    code: list[int] = []
    writer = threading.Thread(target=lambda: code.append(error_of_put(volume)))
    writer.start()
    wait_for(lambda: volume.status()['writes_waiting'] == 1, 'the write waits')
    pool.signal(15)
    writer.join(30)
    assert code == [errno.EIO]
    assert pool.wait() == 0
    pool.start()
    assert volume.read('quorum') == '2\n'
    assert volume.read('quorum_policy') == 'wait\n'


def test_waiting_writes_go_on_when_the_quorum_is_lowered_or_fail_when_the_policy_is_error(
    pool: MountedPool,
) -> None:
    for file, value, expected in (('quorum', '1', 0), ('quorum_policy', 'error', errno.EIO)):
        volume = below(pool, 'wait')
        code: list[int] = []
        writer = threading.Thread(target=lambda v=volume, c=code: c.append(error_of_put(v)))  # type: ignore
        writer.start()
        wait_for(lambda v=volume: v.status()['writes_waiting'] == 1, 'the write waits')  # type: ignore
        cli_ok('set', pool.mountpoint, volume.name, file, value)
        writer.join(30)
        assert code == [expected]
        volume.destroy()


def test_a_volume_starts_below_its_quorum_and_is_read(pool: MountedPool) -> None:
    volume = below(pool, 'error')
    pool.stop()
    volume.legs[1].rename(f'{volume.legs[1]}.away')
    pool.start()
    with volume.open(os.O_RDONLY) as fd:
        assert os.pread(fd, 6, 0) == b'before'
    assert error_of_put(volume) == errno.EIO
    assert any(' QuorumLost ' in line for line in pool.events())
    os.rename(f'{volume.legs[1]}.away', volume.legs[1])
    volume.write('re-add', '1')
    wait_for(lambda: error_of_put(volume) == 0, 'writes go on')


@pytest.mark.parametrize('file, word', [
    ('quorum', '0'), ('quorum', '3'), ('quorum', '9'), ('quorum', '-1'), ('quorum', 'two'), ('quorum', '1 2'),
    ('quorum_policy', 'panic'), ('quorum_policy', 'wait error'),
])  # fmt: skip
def test_what_is_no_quorum_is_refused_and_changes_nothing(pool: MountedPool, file: str, word: str) -> None:
    volume = pool.volume(size=16 * MIB)
    with pytest.raises(OSError) as caught:
        volume.write(file, f'{word}\n')
    assert caught.value.errno == errno.EINVAL
    assert (volume.read('quorum'), volume.read('quorum_policy')) == ('1\n', 'error\n')
    assert volume.read('events') == '1\n'
    assert cli('set', pool.mountpoint, volume.name, file, word).returncode == 1
    volume.destroy()


def test_an_ordinary_reader_is_not_kept_out_by_a_write_that_waits_for_long(pool: MountedPool) -> None:
    """Two chunks wait; a third reader in another process is served at once."""
    volume = below(pool, 'wait')
    writers = [threading.Thread(target=lambda at=at: error_of_put(volume, at)) for at in (0, 3 * MIB)]  # type: ignore
    for writer in writers:
        writer.start()
    wait_for(lambda: volume.status()['writes_waiting'] == 2, 'both wait')
    assert in_child(lambda: volume.image.read_bytes()[:6] != b'before', seconds=10) == 0
    volume.write('quorum', '1')
    for writer in writers:
        writer.join(30)
    volume.destroy()
