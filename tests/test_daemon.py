"""The daemon as a process: how it starts, stops, is killed, and what its mount survives."""

import errno
import json
import os
import random
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from faulttools import Daemon, abort_mount
from mounts import (
    CLI,
    MIB,
    MOUNT,
    MountedPool,
    Volume,
    adopt_orphans,
    await_end,
    child,
    cli,
    examine,
    exit_code,
    mountpoints,
    run,
    wait_for,
)

from mirrorfs.definitions import PoolDirectory
from mirrorfs.fs import daemon, mounting
from mirrorfs.fs.names import Names
from mirrorfs.leg.opening import FileOpener
from mirrorfs.volume.creation import Request, create
from mirrorfs.volume.lifecycle import Settings

pytestmark = [pytest.mark.mount, pytest.mark.timeout(150)]
NOBODY = 65534
KILLING_SECONDS = 60 if os.environ.get('CI') else 20
GAP_MAX = 1.0


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    """A pool that is not mounted yet."""
    with MountedPool() as made:
        yield made.make()


def mount(pool: Path, mountpoint: Path, *more: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Mount in the background."""
    return run(*MOUNT, pool, mountpoint, *more, **options)


def assert_clean(volume: Volume) -> None:
    """The legs say: stopped cleanly, nothing to resync."""
    for leg in examine(*volume.legs):
        assert leg['active'] is False
        assert leg['chunks']['dirty'] == leg['chunks']['needs_resync'] == leg['chunks']['modified'] == 0


def assert_no_resync(pool: MountedPool, volume: Volume) -> None:
    """Mount again: nothing is copied."""
    pool.start()
    assert not [event for event in pool.events() if 'Rebuild' in event or 'Degraded' in event]
    status = volume.status()
    assert status['resynced_bytes'] == status['recovered_bytes'] == 0
    assert status['state'] == 'clean'


# Starting


def test_background_mount_returns_when_the_mount_answers_and_ends_with_0(pool: MountedPool) -> None:
    adopt_orphans()
    for _ in range(3):
        done = mount(pool.directory, pool.mountpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
        pid = pool.status()['pid']
        pool.write('create', f'v{pid} 1M {pool.legs}/{pid}')
        assert os.getsid(pid) == pid, 'the daemon has a session of its own'
        assert os.readlink(f'/proc/{pid}/fd/0') == '/dev/null'
        assert run('umount', pool.mountpoint).returncode == 0
        assert exit_code(pid) == 0


def test_the_mount_is_seen_as_fuse_mirrorfs_of_the_pool(pool: MountedPool) -> None:
    pool.start()
    done = run('findmnt', '-n', '-o', 'FSTYPE,SOURCE', pool.mountpoint)
    assert done.stdout.split() == ['fuse.mirrorfs', str(pool.directory)]
    pool.stop()


def test_fstab_words_are_accepted_and_relative_paths_work(pool: MountedPool) -> None:
    words = 'rw,defaults,nofail,_netdev,x-systemd.automount,noatime,user,comment=a=b'
    done = run(*MOUNT, 'pool', 'mnt', '-o', words, '-o', 'leg_timeout=5', cwd=pool.base)
    assert done.returncode == 0, done.stderr
    pid = pool.status()['pid']
    assert pool.status()['pool'] == str(pool.directory)
    assert cli('umount', 'pool', cwd=pool.base).returncode == 0
    await_end(pid)


BAD_MOUNTS: dict[str, tuple[Callable[[MountedPool], list[str | Path]], int, str]] = {
    'pool missing': (lambda p: [p.base / 'nothing', p.mountpoint], 32, 'nothing'),
    'no pool': (lambda p: [p.legs, p.mountpoint], 32, 'is no pool'),
    'mount point missing': (lambda p: [p.directory, p.base / 'nothing'], 32, 'No such file or directory'),
    'mount point a file': (lambda p: [p.directory, p.directory / 'mirrorfs.json'], 32, 'not a directory'),
    'mount point over the pool': (lambda p: [p.directory, p.directory], 32, 'would hide the pool'),
    'mount point above the pool': (lambda p: [p.directory, p.base], 32, 'would hide the pool'),
    'unknown option': (lambda p: [p.directory, p.mountpoint, '-o', 'colour=red'], 1, 'colour=red'),
    'bad value': (lambda p: [p.directory, p.mountpoint, '-o', 'leg_timeout=soon'], 1, 'leg_timeout=soon'),
    'no such mode': (lambda p: [p.directory, p.mountpoint, '-o', 'cache=on'], 1, 'wanted is none or auto'),
    'unknown flag': (lambda p: [p.directory, p.mountpoint, '--colour'], 1, ''),
    'too few words': (lambda p: [p.directory], 1, ''),
    'too many words': (lambda p: [p.directory, p.mountpoint, 'more'], 1, ''),
    'force of no volume': (lambda p: [p.directory, p.mountpoint, '-o', 'force=nothing'], 32, 'nothing'),
}


@pytest.mark.parametrize('foreground', [False, True])
@pytest.mark.parametrize('case', BAD_MOUNTS)
def test_a_mount_that_fails_says_why_and_leaves_nothing(
    pool: MountedPool, case: str, foreground: bool
) -> None:
    words, code, text = BAD_MOUNTS[case]
    done = run(*MOUNT, *map(str, words(pool)), *(['-f'] if foreground else []), timeout=30)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stderr.strip() and 'Traceback' not in done.stderr and 'unexpected' not in done.stderr
    assert mountpoints(pool.base) == []
    assert not (pool.base / 'nothing').exists()
    assert not any(pool.legs.iterdir()), 'not even a log in what is no pool'
    pool.start()
    pool.stop()


def test_a_second_daemon_is_refused_naming_the_first(pool: MountedPool) -> None:
    pool.start()
    elsewhere = pool.base / 'elsewhere'
    elsewhere.mkdir()
    done = mount(pool.directory, elsewhere)
    assert done.returncode == 32
    assert f'in use by process {pool.pid} ' in done.stderr
    done = mount(pool.directory, pool.mountpoint)
    assert done.returncode == 32 and 'mounted already' in done.stderr
    assert mountpoints(pool.base) == [str(pool.mountpoint)]
    assert pool.status()['pid'] == pool.pid
    pool.stop()


def test_a_leg_in_use_by_another_pool_is_refused_naming_who(pool: MountedPool) -> None:
    volume = pool.start().volume('disk', 4 * MIB)
    volume.image.write_bytes(b'mine')
    with MountedPool() as other:
        other.start()
        with pytest.raises(OSError) as caught:
            other.write('create', f'thief 4M {volume.legs[0]} {other.legs}/own force')
        assert caught.value.errno == errno.EBUSY
        assert f'{volume.legs[0]} is in use by process {pool.pid} ' in other.events()[-1]
        assert not (other.legs / 'own').exists()
        words = ['--size', '4M', '--leg', volume.legs[0], '--force']
        done = cli('create', other.base / 'pool2', 'thief', *words)
        assert done.returncode == 1 and f'in use by process {pool.pid} ' in done.stderr
        # The same definition in two pools, as after a copy: only one may have the legs.
        other.stop()
        definition = (pool.directory / 'volumes/disk.json').read_text()
        (other.directory / 'volumes/disk.json').write_text(definition)
        other.start()
        assert any(f'in use by process {pool.pid} ' in event for event in other.events())
        assert other.volume_status('disk')['state'] == 'inactive'
    assert volume.status()['degraded'] == 0
    assert volume.image.read_bytes()[:4] == b'mine'


def test_damaged_definitions_refuse_their_volume_and_no_other(pool: MountedPool) -> None:
    good = pool.volume_at_rest('good', 4 * MIB)
    text = (pool.directory / 'volumes/good.json').read_text()
    damaged = {
        'cut': text[:100],
        'empty': '',
        'binary': '\x00\x01',
        'list': '[]',
        'misnamed': text,
        'later': text.replace('"format": 1', '"format": 99').replace('"good"', '"later"'),
        'legless': text.replace('"good"', '"legless"').replace('"lineage"', '"line"'),
    }
    for name, content in damaged.items():
        (pool.directory / f'volumes/{name}.json').write_text(content)
    pool.start()
    good.image.write_bytes(b'works')
    for name in damaged:
        status = pool.volume_status(name)
        assert status['state'] == 'inactive' and f'{name}.json' in status['refusal']
        with pytest.raises(OSError) as caught:
            (pool.mountpoint / name).read_bytes()
        assert caught.value.errno == errno.EIO
        assert any(f' Refused {name} ' in event for event in pool.events())
        for folder, _, files in os.walk(pool.control / 'volumes' / name):
            for file in files:
                try:
                    (Path(folder) / file).read_text()
                except OSError as error:
                    assert error.errno in (errno.EIO, errno.EACCES)
    assert 'CRITICAL' not in pool.log()
    assert cli('status', pool.directory).returncode == 0
    pool.stop()
    for name, content in damaged.items():
        assert (pool.directory / f'volumes/{name}.json').read_text() == content


# Stopping


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_idle_stops_cleanly(pool: MountedPool, number: int) -> None:
    volume = pool.start().volume('disk', 8 * MIB)
    volume.image.write_bytes(os.urandom(3 * MIB))
    with open(pool.control / 'events'):  # held open by somebody: no reason to stay
        pool.signal(number)
        assert pool.wait() == 0, pool.log()
    assert mountpoints(pool.base) == []
    assert_clean(volume)
    assert_no_resync(pool, volume)


class Writer(threading.Thread):
    """Writes ascending numbers to a block of its own until the mount ends."""

    def __init__(self, volume: Volume, block: int) -> None:
        super().__init__()
        self.fd = os.open(volume.image, os.O_RDWR)
        self.block = block
        self.acknowledged = 0
        self.error = 0

    def run(self) -> None:
        try:
            while True:
                number = self.acknowledged + 1
                os.pwrite(self.fd, number.to_bytes(8, 'little') * 512, self.block * MIB)
                self.acknowledged = number
        except OSError as error:
            self.error = error.errno or -1
        finally:
            os.close(self.fd)

    def check(self, volume: Volume) -> None:
        """The last acknowledged write, or the one after it, is there, whole."""
        with volume.open() as fd:
            data = os.pread(fd, 4096, self.block * MIB)
        assert data == data[:8] * 512
        assert int.from_bytes(data[:8], 'little') in (self.acknowledged, self.acknowledged + 1)


@contextmanager
def writers(volume: Volume, count: int) -> Iterator[list[Writer]]:
    """Run writers; they have each been acknowledged some writes when this begins."""
    started = [Writer(volume, block) for block in range(count)]
    for writer in started:
        writer.start()
    wait_for(lambda: all(writer.acknowledged > 50 for writer in started), 'some writes of each')
    yield started
    for writer in started:
        writer.join(30)
        assert not writer.is_alive(), 'a writer hangs though the mount has ended'


def test_sigterm_under_load_stops_cleanly_and_keeps_what_was_acknowledged(pool: MountedPool) -> None:
    volume = pool.start().volume('disk', 8 * MIB)
    with writers(volume, 6) as load:
        pool.signal(signal.SIGTERM)
        assert pool.wait() == 0, pool.log()
    assert {writer.error for writer in load} <= {errno.ENOTCONN, errno.EIO, errno.ECONNABORTED, errno.EBADF}
    assert_clean(volume)
    assert_no_resync(pool, volume)
    for writer in load:
        writer.check(volume)
    pool.stop()
    volume.assert_legs_equal()


def test_a_busy_mount_is_not_unmounted_and_goes_on(pool: MountedPool) -> None:
    volume = pool.start().volume('disk', 4 * MIB)
    with volume.open() as fd:
        assert run('umount', pool.mountpoint).returncode == 32
        done = cli('umount', pool.directory)
        assert done.returncode == 1 and 'busy' in done.stderr.lower()
        assert os.pwrite(fd, b'on', 0) == 2
        assert pool.process and pool.process.poll() is None
    pool.stop()
    assert_clean(volume)


@pytest.mark.parametrize('how', ['umount', 'mirrorfs'])
def test_lazy_unmount_serves_open_files_to_the_last_close_then_stops_cleanly(
    pool: MountedPool, how: str
) -> None:
    volume = pool.start().volume('disk', 4 * MIB)
    with volume.open() as fd:
        os.pwrite(fd, b'before', 0)
        if how == 'umount':
            assert run('umount', '-l', pool.mountpoint).returncode == 0
        else:
            assert cli('umount', '--lazy', pool.directory).returncode == 0
        assert mountpoints(pool.base) == []
        for at in range(0, 4 * MIB, 8192):
            assert os.pwrite(fd, b'after', at) == 5
            assert os.pread(fd, 5, at) == b'after'
        os.fsync(fd)
        assert os.fstat(fd).st_size == 4 * MIB
        assert pool.process and pool.process.poll() is None
    assert pool.wait() == 0, pool.log()
    assert_clean(volume)
    assert volume.assert_legs_equal()[:6] == b'aftere'


@pytest.mark.parametrize('how', ['fusermount3 -u', 'umount', 'mirrorfs umount'])
def test_every_way_to_unmount_ends_the_daemon_with_0(pool: MountedPool, how: str) -> None:
    volume = pool.start().volume('disk', 4 * MIB)
    volume.image.write_bytes(b'x')
    if how == 'mirrorfs umount':
        assert cli('umount', pool.mountpoint).returncode == 0
        # the command has waited for the daemon to be done with the pool
        assert_clean(volume)
    else:
        assert run(*how.split(), pool.mountpoint).returncode == 0
    assert pool.wait() == 0
    assert_clean(volume)
    assert_no_resync(pool, volume)


def test_a_session_without_writes_changes_nothing_on_the_legs(pool: MountedPool) -> None:
    volume = pool.start().volume('disk', 4 * MIB)
    volume.image.write_bytes(b'x')
    pool.stop()
    before = [leg.read_bytes() for leg in volume.legs]
    pool.start()
    assert volume.image.read_bytes()[:1] == b'x'
    pool.stop()
    assert [leg.read_bytes() for leg in volume.legs] == before


# Being killed


def test_kill_9_then_mount_again_over_the_dead_mount_resyncs_only_what_was_dirty(pool: MountedPool) -> None:
    volume = pool.start().volume('disk', 64 * MIB)
    with volume.open() as fd:
        for at in range(0, 64 * MIB, MIB):
            os.pwrite(fd, os.urandom(MIB), at)
    pool.stop()
    pool.start()
    with writers(volume, 4) as load:
        dirty = volume.status()['chunks']['dirty']
        pool.kill()
    with pytest.raises(OSError) as caught:
        os.stat(pool.mountpoint)
    assert caught.value.errno == errno.ENOTCONN
    assert cli('status', pool.directory).returncode == 0
    assert all(leg['active'] for leg in examine(*volume.legs))
    pool.start()
    status = volume.settled()
    assert 0 < status['resynced_bytes'] <= dirty * MIB < 64 * MIB
    for writer in load:
        writer.check(volume)
    assert len(mountpoints(pool.base)) == 1, 'the dead mount is still below'
    assert any('resync of' in event for event in pool.events())
    pool.stop()
    assert_clean(volume)
    volume.assert_legs_equal()


def test_kill_9_in_the_midst_of_a_recovery_goes_on_after(pool: MountedPool) -> None:
    volume = pool.start().volume('disk', 128 * MIB, options='chunk=64K')
    content = os.urandom(MIB)
    with volume.open() as fd:
        for at in range(0, volume.size, MIB):
            os.pwrite(fd, content, at)
    volume.write('fail', '1')
    volume.write('remove', '1')
    volume.legs[1].unlink()
    volume.write('add', str(volume.legs[1]))
    wait_for(lambda: (volume.status()['sync'] or {}).get('done_bytes', 0) > 0, 'recovery under way')
    pool.kill()
    pool.start()
    status = volume.settled()
    assert status['degraded'] == 0
    pool.stop()
    assert volume.assert_legs_equal() == content * 128


def test_umount_clears_a_dead_mount(pool: MountedPool) -> None:
    pool.start()
    pool.kill()
    assert mountpoints(pool.base) == [str(pool.mountpoint)]
    done = cli('umount', pool.directory)
    assert done.returncode == 0 and 'had died' in done.stderr
    assert mountpoints(pool.base) == []


# Mounts that do not answer

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def answer_nothing(asked: Path) -> None:
    """In a daemon to be: leave who asks for attributes waiting, and note that somebody did."""

    async def hang(*_: object) -> NoReturn:
        asked.with_suffix('.new').write_text(str(os.getpid()))
        asked.with_suffix('.new').rename(asked)
        await trio.sleep_forever()

    Names.getattr = hang  # type: ignore[method-assign]


def works(pool: MountedPool) -> None:
    """The pool can be mounted, written to and unmounted, all within seconds."""
    began = time.monotonic()
    volume = pool.start().volume('disk', MIB)
    volume.image.write_bytes(b'works')
    assert volume.image.read_bytes()[:5] == b'works'
    assert mountpoints(pool.base) == [str(pool.mountpoint)], 'the old mount is still below'
    pool.stop()
    assert time.monotonic() - began < 10


def test_kill_9_before_the_mount_has_answered_ends_the_daemon_at_once(pool: MountedPool) -> None:
    """No thread of its own may wait for its mount: it could not be killed."""
    asked = pool.base / 'asked'
    words = [str(pool.directory), str(pool.mountpoint), '-f']
    process = Daemon(words, pool.log_file, partial(answer_nothing, asked))
    wait_for(lambda: mountpoints(pool.base), 'the mount')
    with child(lambda: os.stat(pool.mountpoint)) as asker:
        try:
            wait_for(asked.exists, 'a request that is not answered')
            process.send_signal(signal.SIGSTOP)
            process.kill()
            assert process.wait(5) == -signal.SIGKILL
            assert exit_code(asker, 5) in DEAD
        finally:
            process.kill()
            abort_mount(pool.mountpoint)
    works(pool)


def test_a_background_mount_whose_daemon_is_killed_before_it_answers_has_failed(pool: MountedPool) -> None:
    asked = pool.base / 'asked'

    def background() -> int:
        answer_nothing(asked)
        return daemon.main([str(pool.directory), str(pool.mountpoint)])

    with child(background) as caller:
        try:
            wait_for(asked.exists, 'a request that is not answered')
            os.kill(int(asked.read_text()), signal.SIGKILL)
            assert exit_code(caller, 5) not in (0, daemon.EXIT_USAGE)
        finally:
            abort_mount(pool.mountpoint)
    works(pool)


@pytest.mark.parametrize('verb', ['mount', 'status', 'umount'])
def test_a_mount_that_nobody_serves_is_aborted_and_cleared(pool: MountedPool, verb: str) -> None:
    """Somebody keeps its descriptor open, so it does not fail by itself: it hangs."""

    def keep_silent() -> None:
        mounting.mount(str(pool.directory), str(pool.mountpoint), mounting.Options())
        signal.pause()

    (pool.directory / 'lock').touch()  # as a daemon leaves it
    with child(keep_silent):
        wait_for(lambda: mountpoints(pool.base), 'the mount')
        with child(lambda: os.stat(pool.mountpoint)) as victim:
            if verb == 'mount':
                assert mount(pool.directory, pool.mountpoint, timeout=10).returncode == 0
                assert run('umount', pool.mountpoint).returncode == 0
            else:
                done = cli(verb, pool.mountpoint, timeout=10)
                assert done.returncode == 0, done.stderr
                assert ('had died' in done.stderr) == (verb == 'umount')
            assert exit_code(victim, 5) in DEAD
            assert len(mountpoints(pool.base)) == (verb == 'status')
        works(pool)


def test_a_mount_that_is_slow_to_answer_is_left_alone(pool: MountedPool) -> None:
    """A stopped daemon still holds its pool: nobody takes its mount away, nor waits for ever."""
    volume = pool.start().volume('disk', MIB)
    pool.signal(signal.SIGSTOP)
    began = time.monotonic()
    done = mount(pool.directory, pool.mountpoint)
    assert time.monotonic() - began < 10
    assert done.returncode == 32 and 'mounted already' in done.stderr
    pool.signal(signal.SIGCONT)
    volume.image.write_bytes(b'goes on')
    pool.stop()
    assert volume.assert_legs_equal()[:7] == b'goes on'


@pytest.mark.parametrize(
    'path', ['dir', 'dir/', 'dir/./file', 'link', 'link/file', 'link/..', 'far', 'far/file', 'loop', 'loop/x',
             'missing/x', '/', '.', '..', '//', 'dangling', 'up/..', 'dir/../dir//file'],
)  # fmt: skip
def test_paths_are_resolved_as_ever(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'dir/sub').mkdir(parents=True)
    (tmp_path / 'dir/file').touch()
    links = {'link': 'dir', 'far': f'{tmp_path}/link', 'loop': 'loop', 'dangling': 'no/such', 'up': 'dir/sub'}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    assert mounting.real_path(path) == os.path.realpath(path)


# Many volumes, other users


def make_at_rest(pool: MountedPool, names: list[str], size: int) -> list[Volume]:
    """Create volumes of a pool that is not mounted, without a process for each."""

    async def make() -> None:
        for name in names:
            request = Request(name, size, [str(leg) for leg in pool.leg_paths(name, 2)])
            PoolDirectory(str(pool.directory)).save_now(await create(request, FileOpener(), Settings()))

    trio.run(make)
    return [Volume(pool, name, size, pool.leg_paths(name, 2)) for name in names]


def test_64_volumes_mount_quickly_and_are_all_served(pool: MountedPool) -> None:
    volumes = make_at_rest(pool, [f'disk{number}' for number in range(64)], 2 * MIB)
    began = time.monotonic()
    pool.start()
    assert time.monotonic() - began < 15
    assert len(pool.status()['volumes']) == 64
    data = {volume.name: os.urandom(64 << 10) for volume in volumes}

    def write(some: list[Volume]) -> None:
        for volume in some:
            with volume.open() as fd:
                os.pwrite(fd, data[volume.name], 12345)
                os.fsync(fd)

    threads = [threading.Thread(target=write, args=(volumes[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert (pool.control / 'mdstat').read_text().count('[UU]') == 64
    pool.stop()
    for volume in volumes:
        assert volume.assert_legs_equal()[12345 : 12345 + (64 << 10)] == data[volume.name]
    facts = examine(*[leg for volume in volumes for leg in volume.legs])
    assert not any(leg['active'] or leg['chunks']['dirty'] for leg in facts)


@pytest.fixture
def fuse_for_all() -> Iterator[None]:
    """/dev/fuse as every distribution sets it up."""
    mode = os.stat('/dev/fuse').st_mode & 0o7777
    os.chmod('/dev/fuse', 0o666)
    yield
    os.chmod('/dev/fuse', mode)


def test_an_ordinary_user_creates_mounts_writes_fails_readds_and_unmounts(
    pool: MountedPool, fuse_for_all: None
) -> None:
    user: dict[str, Any] = {'user': NOBODY, 'group': NOBODY, 'extra_groups': []}
    if run(*MOUNT, '--version', **user).returncode:
        pytest.skip('this Python cannot be run by an ordinary user')
    home = pool.base / 'home'
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    own, mnt = home / 'pool', home / 'mnt'

    def ok(*words: str | Path) -> str:
        done = run(*words, cwd=home, **user)
        assert done.returncode == 0, f'{words}: {done.stderr}'
        return done.stdout

    ok('mkdir', mnt)
    ok(*CLI, 'create', own, 'disk', '--size', '16M', '--leg', 'a', '--leg', 'b')
    ok(*CLI, 'mount', own, mnt)
    ok('sh', '-c', f'head -c 2M /dev/urandom > data && cat data > {mnt}/disk')
    found = run('findmnt', '-n', '-o', 'FSTYPE,SOURCE', mnt).stdout.split()
    assert found == ['fuse.mirrorfs', str(own)]
    ok(*CLI, 'fail', own, 'disk', '1')
    done = run(*CLI, 'fail', own, 'disk', '0', cwd=home, **user)
    assert done.returncode == 1 and 'last in-sync leg' in done.stderr
    overwrite = f'dd if=data of={mnt}/disk bs=1M seek=1 conv=notrunc status=none'
    ok('sh', '-c', f'head -c 3M {mnt}/disk > data && {overwrite}')
    big = f'head -c 1M /dev/zero > {mnt}/.mirrorfs/volumes/disk/fail'
    assert run('sh', '-c', big, **user).returncode != 0
    ok(*CLI, 're-add', own, 'disk', 'missing')
    ok(*CLI, 'wait', own, '--timeout', '30')
    status = json.loads(ok(*CLI, 'status', own, '--json'))[0]
    assert status['degraded'] == 0
    pid = json.loads(ok('cat', mnt / '.mirrorfs/status.json'))['pid']
    assert run('ls', mnt).returncode != 0, 'not even root gets in without allow_other'
    ok(*CLI, 'umount', own)
    await_end(pid)
    volume = Volume(pool, 'disk', 16 * MIB, [home / 'a', home / 'b'])
    assert_clean(volume)
    data = (home / 'data').read_bytes()
    assert volume.assert_legs_equal()[MIB : MIB + len(data)] == data
    refused = run(*CLI, 'mount', own, mnt, '-o', 'allow_other', cwd=home, **user)
    if 'user_allow_other' not in Path('/etc/fuse.conf').read_text().splitlines():
        assert refused.returncode == 32 and 'user_allow_other' in refused.stderr
        ok(*CLI, 'mount', own, mnt)
    ok('fusermount3', '-u', mnt)


def test_who_may_not_use_a_pool_is_told_so(pool: MountedPool) -> None:
    user: dict[str, Any] = {'user': NOBODY, 'group': NOBODY, 'extra_groups': []}
    if run(*MOUNT, '--version', **user).returncode:
        pytest.skip('this Python cannot be run by an ordinary user')
    for mode in (0o700, 0o755):
        pool.directory.chmod(mode)
        for words in (
            [*MOUNT, pool.directory, pool.mountpoint],
            [*MOUNT, pool.directory, pool.mountpoint, '-f'],
            [*CLI, 'mount', pool.directory, pool.mountpoint],
            [*CLI, 'create', pool.directory, 'disk', '--size', '1M', '--leg', '/tmp/mirrorfs-nobody'],
            [*CLI, 'destroy', pool.directory, 'disk', '--yes'],
        ):
            done = run(*words, **user, cwd='/')
            assert done.returncode in (1, 2, 32), words
            assert str(pool.directory) in done.stderr
            assert 'ermission denied' in done.stderr or 'is not readable' in done.stderr
            assert 'Traceback' not in done.stderr and 'unexpected' not in done.stderr
    assert not Path('/tmp/mirrorfs-nobody').exists()


# Planted faults


def with_fault(pool: MountedPool, fault: str) -> Volume:
    volume = pool.start().volume('disk', 4 * MIB)
    volume.image.write_bytes(b'content')
    pool.stop()
    pool.start(env={'MIRRORFS_TEST_FAULT': fault})
    return volume


FAULTS: dict[str, Callable[[Volume], object]] = {
    'setattr': lambda v: v.image.chmod(0o600),
    'statfs': lambda v: os.statvfs(v.image),
    'opendir': lambda v: os.listdir(v.pool.mountpoint),
    'readdir': lambda v: os.listdir(v.pool.mountpoint),
    'write': lambda v: v.write('fail', '1'),
    'lane15': lambda v: v.image.read_bytes(),
    'lane16': lambda v: v.image.write_bytes(b'x'),
    'lane20': lambda v: sync(v),
    'lane46': lambda v: seek_hole(v),
}
OTHERS: dict[str, Callable[[Volume], object]] = {
    'status': lambda v: v.status(),
    'content': lambda v: v.image.read_bytes()[:7] == b'content',
    'append': lambda v: v.image.write_bytes(b'content'),
}


def sync(volume: Volume) -> None:
    with volume.open() as fd:
        os.fsync(fd)


def seek_hole(volume: Volume) -> None:
    with volume.open() as fd:
        os.lseek(fd, 0, os.SEEK_HOLE)


@pytest.mark.parametrize('fault', FAULTS)
def test_a_defect_costs_its_caller_eio_and_no_one_else_anything(pool: MountedPool, fault: str) -> None:
    volume = with_fault(pool, fault)
    for count in range(1, 4):
        with pytest.raises(OSError) as caught:
            FAULTS[fault](volume)
        assert caught.value.errno == errno.EIO
        assert pool.log().count('CRITICAL') == count
    assert 'ZeroDivisionError: planted in' in pool.log()
    spared = {'lane15': 'content', 'lane16': 'append'}.get(fault)
    for name, other in OTHERS.items():
        if name != spared:
            assert other(volume)
    pool.stop()
    assert_clean(volume)
    volume.assert_legs_equal()


def test_a_defect_in_poll_loses_no_events(pool: MountedPool) -> None:
    volume = with_fault(pool, 'poll')
    with open(pool.control / 'events', 'rb', buffering=0) as stream:
        poller = select.poll()
        poller.register(stream, select.POLLIN)
        assert poller.poll(1000), 'a poll that fails must not sleep for ever'
    assert 'CRITICAL' in pool.log()
    assert volume.image.read_bytes()[:7] == b'content'
    pool.stop()


def test_a_mount_that_cannot_answer_is_reported_and_taken_away(pool: MountedPool) -> None:
    done = run(
        *MOUNT, pool.directory, pool.mountpoint, timeout=30,
        env={**os.environ, 'MIRRORFS_TEST_FAULT': 'getattr'},
    )  # fmt: skip
    assert done.returncode not in (0, 1)
    assert done.stderr.startswith('mirrorfs: ')
    wait_for(lambda: not mountpoints(pool.base), 'the mount taken away')
    pool.start()
    pool.stop()


# Clients that are killed


class Heartbeat(threading.Thread):
    """Writes and reads every 50 ms, and notes the longest that it had to wait."""

    def __init__(self, volume: Volume) -> None:
        super().__init__()
        self.fd = os.open(volume.image, os.O_RDWR)
        self.over = threading.Event()
        self.worst = 0.0
        self.beats = 0
        self.failure: OSError | AssertionError | None = None

    def run(self) -> None:
        try:
            while not self.over.wait(0.05):
                began = time.monotonic()
                data = self.beats.to_bytes(8, 'little') * 64
                os.pwrite(self.fd, data, self.beats % 64 * 512)
                assert os.pread(self.fd, 512, self.beats % 64 * 512) == data
                self.beats += 1
                self.worst = max(self.worst, time.monotonic() - began)
        except (OSError, AssertionError) as error:
            self.failure = error
        finally:
            os.close(self.fd)


def client(volume: Volume, seed: int) -> None:
    """Do a bit of everything until killed."""
    dice = random.Random(seed)
    fd = os.open(volume.image, os.O_RDWR)
    direct = os.open(volume.image, os.O_RDWR | os.O_DSYNC)
    events = os.open(volume.pool.control / 'events', os.O_RDONLY)
    poller = select.poll()
    poller.register(events, select.POLLIN)
    while True:
        at = dice.randrange(volume.size - MIB)
        match dice.randrange(8):
            case 0 | 1:
                os.pwrite(fd, bytes(dice.choice((512, 4096, 300_000, MIB))), at)
            case 2 | 3:
                os.pread(fd, dice.choice((512, 4096, MIB)), at)
            case 4:
                os.pwrite(direct, b'd' * 4096, at)
            case 5:
                os.fsync(fd)
            case 6:
                volume.read(dice.choice(('array_state', 'bitmap/states')))
                os.listdir(volume.control)
            case 7:
                poller.poll(0)
                os.read(events, 1 << 16)


@pytest.mark.timeout(60 + 2 * KILLING_SECONDS)
def test_killed_clients_stop_nobody_else(pool: MountedPool) -> None:
    pool.start()
    volume, calm = pool.volume('disk', 16 * MIB), pool.volume('calm', 4 * MIB)
    heart = Heartbeat(calm)
    heart.start()
    dice = random.Random(1)
    killed = 0
    try:
        until = time.monotonic() + KILLING_SECONDS
        while time.monotonic() < until:
            assert heart.failure is None
            clients = [child(lambda seed=killed + n: client(volume, seed)) for n in range(2)]
            pids = [each.__enter__() for each in clients]
            heart.over.wait(dice.uniform(0.001, 0.03))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid, each in zip(pids, clients, strict=True):
                assert exit_code(pid) == -signal.SIGKILL, 'a client had an error'
                each.__exit__(None, None, None)
            killed += len(pids)
    finally:
        heart.over.set()
        heart.join(30)
    assert heart.failure is None and not heart.is_alive()
    assert heart.beats > KILLING_SECONDS * 3 and killed > KILLING_SECONDS * 10
    assert heart.worst < GAP_MAX, f'the heart stood still for {heart.worst:.2f} s'
    assert 'CRITICAL' not in pool.log()
    wait_for(lambda: run('umount', pool.mountpoint).returncode == 0, 'nothing is left open')
    assert pool.wait() == 0
    volume.assert_legs_equal()
    calm.assert_legs_equal()


def test_who_waits_for_a_mount_is_shown_that_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        shown.append('begins')
        yield
        shown.append('ends')

    def await_child(pid: int, pipe: int, mountpoint: str) -> int:
        os.close(pipe)
        assert shown == ['begins']
        return 0

    monkeypatch.setattr(os, 'fork', lambda: 1 << 30)
    monkeypatch.setattr(daemon, '_await_child', await_child)
    assert daemon.run_in_background('/pool', '/mnt', mounting.Options(), waiting) == 0
    assert shown == ['begins', 'ends']
