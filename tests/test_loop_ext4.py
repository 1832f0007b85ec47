"""An ext4 with real files on a loop device over an image: nothing is lost, whatever happens below."""

import hashlib
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from looptools import (
    MIB,
    Field,
    Pool,
    assert_legs_equal,
    detach,
    examine,
    field,
    run,
    umount,
    wait_for,
)

pytestmark = [pytest.mark.mount, pytest.mark.loop, pytest.mark.timeout(180)]

SIZE = 192 * MIB
CHUNK = 64 << 10


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


def real_files(count: int) -> list[Path]:
    """Return some files of the standard library, always the same ones."""
    known = [p for p in Path(os.__file__).parent.rglob('*.py') if 0 < p.stat().st_size < 80_000]
    return sorted(random.Random(7).sample(sorted(known), count))


class Disk:
    """An ext4 on a loop device over an image, and what must be in it."""

    def __init__(self, ground: Field, image: Path) -> None:
        self.ground = ground
        self.image = image
        self.sums: dict[str, str] = {}
        self.device = ''
        self.root = ground.path('ext4')

    def attach(self, *options: str) -> str:
        self.device = self.ground.loop(self.image, '--direct-io=on', *options)
        dio = Path(f'/sys/block/{Path(self.device).name}/loop/dio').read_text().strip()
        assert dio == '1', 'the loop device does not use direct I/O'
        return self.device

    def mount(self, *options: str) -> None:
        self.ground.mount_fs(self.device, 'ext4', *options)

    def make(self, *options: str) -> None:
        """Attach, make the filesystem, mount."""
        self.attach()
        run('mkfs.ext4', '-q', *options, self.device)
        self.mount()

    def put(self, name: str, data: bytes) -> None:
        """Write a file and fsync it and its directory; from then on it must be there."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        with open(path, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.sums[name] = hashlib.sha256(data).hexdigest()

    def put_real(self, where: str, count: int = 300) -> None:
        """Copy real files in; one sync for all."""
        (self.root / where).mkdir(exist_ok=True)
        for number, source in enumerate(real_files(count)):
            data = source.read_bytes()
            name = f'{where}/{number}-{source.name}'
            (self.root / name).write_bytes(data)
            self.sums[name] = hashlib.sha256(data).hexdigest()
        run('sync', '-f', self.root)

    def leave(self) -> None:
        """Unmount and detach."""
        umount(self.root)
        detach(self.device)

    def check(self) -> None:
        """Unmount; fsck must find nothing; mount again; every file must be what it was."""
        umount(self.root)
        run('e2fsck', '-fn', self.device)
        run('blockdev', '--flushbufs', self.device)
        self.mount()
        for name, sum_ in self.sums.items():
            assert hashlib.sha256((self.root / name).read_bytes()).hexdigest() == sum_, name


class Author:
    """Writes and fsyncs files in a thread until stopped or until that fails."""

    def __init__(self, disk: Disk, where: str) -> None:
        self.failure: OSError | None = None
        self.count = 0
        self._disk = disk
        self._where = where
        self._stop = threading.Event()
        self._random = random.Random(where)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        disk.ground.later(self.stop)  # before the filesystem is unmounted

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                data = self._random.randbytes(self._random.randrange(1, 200_000))
                self._disk.put(f'{self._where}/{self.count}', data)
                self.count += 1
        except OSError as error:
            self.failure = error

    def write_more(self, count: int, seconds: float = 30) -> None:
        """Return when so many more files are written."""
        wanted = self.count + count
        wait_for(lambda: self.failure or self.count >= wanted, seconds, f'{count} files more')

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def at_rest(disk: Disk, pool: Pool, *legs: Path) -> None:
    """Check the files, stop all, compare the legs."""
    disk.check()
    disk.leave()
    pool.umount()
    assert_legs_equal(*legs)
    assert not any(leg['active'] or leg['chunks']['dirty'] for leg in examine(*legs))


def killed(disk: Disk, pool: Pool, author: Author) -> None:
    """SIGKILL the daemon under a running author; take the loop device down."""
    assert author.failure is None
    pool.daemon.kill()  # type: ignore[union-attr]
    pool.daemon.wait(30)  # type: ignore[union-attr]
    wait_for(lambda: author.failure, 30, 'the author meets the dead mount')
    author.stop()
    umount(disk.root)
    detach(disk.device)
    pool.kill()


def come_back(disk: Disk) -> None:
    """Attach and mount again after a kill: the journal is replayed, fsck mends, then finds nothing."""
    disk.attach()
    done = subprocess.run(['e2fsck', '-fy', disk.device], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stdout
    run('e2fsck', '-fn', disk.device)
    disk.mount()


def test_leg_failed_and_readded_under_a_filesystem(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', SIZE, *legs))
    pool.mount()
    disk.make()
    disk.put_real('first')
    author = Author(disk, 'under')
    author.write_more(10)
    pool.command('x', 'fail', 1)
    author.write_more(15)
    author.stop()
    assert author.failure is None and pool.states('x') == ['in_sync', 'faulty']
    disk.check()
    author = Author(disk, 'again')
    author.write_more(3)
    modified = pool.status('x')['chunks']['modified']
    pool.command('x', 're-add', 'missing')
    author.write_more(15)
    status = pool.settled('x', 2)
    assert 0 < status['recovered_bytes'] <= (modified + 60) * CHUNK < SIZE
    author.stop()
    assert author.failure is None
    # The copy that was away is as good as the other one.
    pool.command('x', 'fail', 0)
    disk.put('alone', b'written on the second leg only')
    disk.check()
    pool.command('x', 're-add', 0)
    pool.settled('x', 2)
    at_rest(disk, pool, *legs)


@pytest.mark.parametrize('fail_first', [False, True])
def test_daemon_killed_under_a_filesystem(ground: Field, fail_first: bool) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', SIZE, *legs))
    pool.mount()
    disk.make()
    disk.put_real('first')
    author = Author(disk, 'under')
    author.write_more(30)
    if fail_first:
        pool.command('x', 'fail', 0)
        author.write_more(2)
    killed(disk, pool, author)
    assert author.failure is not None and len(disk.sums) >= 330
    dirty = max(leg['chunks']['dirty'] for leg in examine(*legs))
    pool.mount()
    if fail_first:
        assert pool.states('x') == ['faulty', 'in_sync']
        pool.command('x', 're-add', 0)
    status = pool.settled('x', 2)
    copied = status['resynced_bytes'] + status['recovered_bytes']
    assert 0 < copied <= (dirty + status['chunks']['dirty']) * CHUNK < SIZE
    come_back(disk)
    author = Author(disk, 'later')
    author.write_more(5)
    author.stop()
    at_rest(disk, pool, *legs)


def test_leg_lost_while_stopped_comes_back_by_itself(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', SIZE, *legs))
    pool.mount()
    disk.make()
    disk.put_real('first')
    disk.leave()
    pool.umount()
    away = ground.path('away')
    for turn, leg in enumerate(legs):
        leg.rename(away)
        pool.mount()
        status = pool.status('x')
        assert status['degraded'] == 1 and status['legs'][turn]['state'] == 'missing'
        assert 'LegAbsent' in pool.events() and 'DegradedArray' in pool.events()
        disk.attach()
        disk.mount()
        for number in range(10):
            disk.put(f'without{turn}/{number}', random.Random(number).randbytes(50_000))
        disk.check()
        disk.leave()
        modified = pool.status('x')['chunks']['modified']
        pool.umount()
        away.rename(leg)
        pool.mount()
        status = pool.settled('x', 2)
        assert 0 < status['recovered_bytes'] <= (modified + 2) * CHUNK < SIZE // 4
        disk.attach()
        disk.mount()
        at_rest(disk, pool, *legs)
        pool.mount()
        disk.attach()
        disk.mount()
        disk.check()
        disk.leave()
        pool.umount()


def test_stale_leg_alone_is_refused_until_forced(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', SIZE, *legs))
    other = pool.create('y', 1 * MIB, ground.path('y0'), ground.path('y1'))
    pool.mount()
    disk.make()
    disk.put_real('first', 100)
    pool.command('x', 'fail', 1)
    known = dict(disk.sums)
    disk.put('late', b'the stale leg does not have this')
    disk.leave()
    pool.umount()
    current, away = legs[0], ground.path('away')
    current.rename(away)
    events = [leg['events'] for leg in examine(away, legs[1])]
    assert events[0] > events[1]

    pool.mount()
    status = pool.status('x')
    assert status['state'] == 'inactive'
    for side in (str(legs[0]), str(legs[1]), f'events {events[0]}', f'events {events[1]}', 'force=x'):
        assert side in status['refusal']
    assert ' Refused x ' in pool.events()
    with pytest.raises(OSError):
        disk.image.read_bytes()
    other.write_bytes(b'y goes on' * 100)
    assert other.read_bytes()[:900] == b'y goes on' * 100
    assert pool.status('y')['state'] in ('active', 'clean')
    pool.umount()

    pool.mount('force=x')
    assert pool.states('x')[1] == 'in_sync'
    disk.sums = known
    disk.attach()
    run('e2fsck', '-fy', disk.device, check=False)
    disk.mount()
    disk.put('forced', b'a new history')
    disk.check()
    disk.leave()
    pool.umount()

    # The leg with the other history was given up by force: it is not joined, not read, not written.
    away.rename(current)
    before = current.read_bytes()
    pool.mount()
    assert pool.states('x') == ['faulty', 'in_sync']
    assert f'StaleLeg x {current} slot 0 was changed apart' in pool.events()
    with pytest.raises(OSError):
        pool.command('x', 're-add', 0)
    assert 'apart' in pool.events().splitlines()[-1]
    disk.attach()
    disk.mount()
    disk.check()
    disk.leave()
    pool.umount()
    assert current.read_bytes() == before


def test_legs_that_changed_places(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', SIZE, *legs))
    pool.mount()
    disk.make()
    disk.put_real('first', 100)
    disk.leave()
    pool.umount()
    spare = ground.path('spare')
    legs[0].rename(spare)
    legs[1].rename(legs[0])
    spare.rename(legs[1])
    identities = [leg['slot'] for leg in examine(*legs)]
    assert identities == [1, 0]
    pool.mount()
    status = pool.settled('x', 2)
    assert [leg['path'] for leg in status['legs']] == [str(legs[1]), str(legs[0])]
    assert status['recovered_bytes'] == status['resynced_bytes'] == 0
    disk.attach()
    disk.mount()
    disk.check()
    author = Author(disk, 'under')
    author.write_more(5)
    killed(disk, pool, author)
    pool.mount()
    pool.settled('x', 2)
    come_back(disk)
    at_rest(disk, pool, *legs)
    # By the path at which it is now, an admin names it.
    pool.mount()
    pool.command('x', 'fail', legs[0])
    assert pool.states('x') == ['in_sync', 'faulty']
    pool.umount()


def test_trim_frees_space_and_growing_is_seen(ground: Field) -> None:
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', SIZE, *legs))
    pool.mount()
    disk.make('-E', 'nodiscard')
    disk.put_real('first', 100)
    for number in range(4):
        disk.put(f'large{number}', random.Random(number).randbytes(8 * MIB))
    pool_full = [leg.stat().st_blocks * 512 for leg in legs]
    for number in range(3):
        (disk.root / f'large{number}').unlink()
        del disk.sums[f'large{number}']
    run('sync', '-f', disk.root)
    for _ in range(2):  # the first one may find the device not yet knowing that it can discard
        run('fstrim', '-v', disk.root)
    for leg, full in zip(legs, pool_full, strict=True):
        assert leg.stat().st_blocks * 512 < full - 23 * MIB
    disk.check()
    disk.put('over', random.Random(9).randbytes(6 * MIB))  # what was freed is used again
    disk.check()

    pool.command('x', 'size', SIZE + 64 * MIB)
    assert disk.image.stat().st_size == SIZE + 64 * MIB
    assert int(run('blockdev', '--getsize64', disk.device)) == SIZE
    run('losetup', '-c', disk.device)
    assert int(run('blockdev', '--getsize64', disk.device)) == SIZE + 64 * MIB
    # Off line: to grow a mounted ext4 takes CAP_SYS_RESOURCE, which not every root has.
    umount(disk.root)
    run('e2fsck', '-fy', disk.device)
    run('resize2fs', disk.device, seconds=90)
    disk.mount()
    for number in range(3):
        disk.put(f'huge{number}', random.Random(number).randbytes(32 * MIB))
    at_rest(disk, pool, *legs)


def test_sectors_of_512_bytes(ground: Field) -> None:
    """Writes smaller than a page, direct, side by side; compared with a plain file."""
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    disk = Disk(ground, pool.create('x', 16 * MIB + 512, *legs))
    pool.mount()
    device = disk.attach('--sector-size', '512')
    assert int(run('blockdev', '--getss', device)) == 512
    assert int(run('blockdev', '--getsize64', device)) == 16 * MIB + 512
    model = bytearray(16 * MIB + 512)
    source = random.Random(5)
    end = len(model) // 512
    sectors = [*(source.randrange(end) for _ in range(150)), 0, 127, 128, end - 1]
    data = ground.path('data')
    for turn, sector in enumerate(sectors):
        if turn == 60:
            pool.command('x', 'fail', 0)
        if turn == 110:
            pool.command('x', 're-add', 0)
        count = min(source.choice((1, 1, 3, 129)), end - sector)
        piece = source.randbytes(512 * count)
        data.write_bytes(piece)
        run('dd', f'if={data}', f'of={device}', 'bs=512', f'seek={sector}', 'oflag=direct', 'conv=notrunc')
        model[sector * 512 : sector * 512 + len(piece)] = piece
    run('blockdev', '--flushbufs', device)
    assert Path(device).read_bytes() == model
    pool.settled('x', 2)
    detach(device)
    assert disk.image.read_bytes() == model
    # A small filesystem with blocks below a page.
    disk.make('-b', '1024')
    disk.put_real('first', 50)
    at_rest(disk, pool, *legs)
