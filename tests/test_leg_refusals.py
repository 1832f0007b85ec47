"""What may not be a leg: wrong kinds, what is in use, what lies on the mount itself; and how that is seen."""

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from looptools import detach
from mounts import MIB, MountedPool, Volume, cli, in_child, run, write_control

from mirrorfs.errors import Refused
from mirrorfs.fs import mounting
from mirrorfs.leg import opening
from mirrorfs.leg.opening import FileOpener, open_leg, require_blank

SIZE = 4 * MIB


@pytest.fixture
def leg(tmp_path: Path) -> Path:
    """A file that may be a leg."""
    path = tmp_path / 'leg'
    path.write_bytes(bytes(SIZE))
    return path


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    done = run('losetup', '--find', '--show', image)
    assert done.returncode == 0, done.stderr
    try:
        yield done.stdout.strip()
    finally:
        detach(done.stdout.strip())


def refusal(path: Path | str, **options: int) -> Refused:
    """Return how a path is refused as a leg."""
    with pytest.raises(Refused) as caught:
        open_leg(str(path), **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value), caught.value
    return caught.value


# Kinds


def test_a_symbolic_link_to_a_file_is_refused_and_says_where_it_leads(leg: Path) -> None:
    link = leg.with_name('link')
    link.symlink_to(leg)
    for options in ({}, {'create_size': SIZE}):
        found = refusal(link, **options)
        assert found.errno == errno.EINVAL
        assert f'symbolic link to {leg}; name the file itself' in str(found)


def test_a_link_that_leads_nowhere_makes_no_file(leg: Path) -> None:
    link = leg.with_name('link')
    link.symlink_to('not-there')
    assert 'not there' in str(refusal(link, create_size=SIZE))
    assert not leg.with_name('not-there').exists()


def test_folders_on_the_way_may_be_links(leg: Path) -> None:
    folder = leg.parent / 'folder'
    folder.symlink_to(leg.parent)
    opened, _ = open_leg(str(folder / 'leg'))
    assert opened.is_found((leg.stat().st_dev, leg.stat().st_ino))
    opened.close()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    'FIFO': os.mkfifo,
    'directory': Path.mkdir,
    'socket': make_socket,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize('kind', KINDS)
def test_other_kinds_are_refused_by_their_names_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'x'
    KINDS[kind](path)
    for options in ({}, {'create_size': SIZE}):
        found = refusal(path, **options)
        assert found.errno == errno.EINVAL
        assert f'is a {kind}, neither a regular file nor a block device' in str(found)
    assert f'is a {kind}' in cli('assemble', tmp_path / 'pool', path).stderr or kind == 'directory'


def test_a_character_device_is_not_even_opened() -> None:
    """To open one may have effects: /dev/watchdog would start to count."""
    assert 'is a character device' in str(refusal('/dev/zero', create_size=SIZE))


@pytest.mark.parametrize('swapped', ['link', 'file', 'fifo'])
def test_what_was_looked_at_is_what_is_opened(
    leg: Path, swapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts something else at the path in between."""
    wanted, other, look = leg.stat(), leg.with_name('other'), opening.look
    other.write_bytes(b'precious' * 1024)

    def look_then_swap(path: str) -> int:
        fd = look(path)
        leg.rename(leg.with_name('away'))
        {'link': leg.symlink_to, 'file': other.rename, 'fifo': lambda _: os.mkfifo(leg)}[swapped](
            leg if swapped == 'file' else other
        )
        return fd

    monkeypatch.setattr(opening, 'look', look_then_swap)
    opened, created = open_leg(str(leg), create_size=SIZE)
    assert not created and opened.is_found((wanted.st_dev, wanted.st_ino))
    opened.close()


async def test_a_leg_that_was_made_for_nothing_is_removed_only_if_it_is_still_that(tmp_path: Path) -> None:
    opener, path = FileOpener(), tmp_path / 'leg'
    made, created = await opener.open(str(path), create_size=SIZE)
    assert created
    path.rename(tmp_path / 'away')
    path.write_text('of somebody else')
    await opener.discard_new(made)
    assert path.read_text() == 'of somebody else'
    made.close()


# In use


def test_another_name_of_a_leg_in_use_is_refused(leg: Path) -> None:
    other = leg.with_name('hard')
    other.hardlink_to(leg)
    held, _ = open_leg(str(leg))
    assert refusal(other).errno == errno.EBUSY
    held.close()


def test_a_file_with_data_is_not_overwritten_though_it_has_no_signature(leg: Path) -> None:
    opened, _ = open_leg(str(leg))
    require_blank(opened)
    with open(leg, 'r+b') as file:
        file.truncate(1 << 30)
        file.seek(SIZE * 2)
        file.write(b'tar' * 1000)
    with pytest.raises(Refused, match='of data; that would be lost: use --force') as caught:
        require_blank(opened)
    assert caught.value.errno == errno.EEXIST
    opened.close()


def test_a_signature_is_looked_for_in_what_was_opened(leg: Path) -> None:
    opened, _ = open_leg(str(leg))
    leg.rename(leg.with_name('away'))
    subprocess.run(['mkfs.ext4', '-q', '-L', 'other', leg, '8M'], check=True)
    require_blank(opened)
    opened.close()
    opened, _ = open_leg(str(leg))
    with pytest.raises(Refused, match="is ext4 'other', by its signature; that would be lost"):
        require_blank(opened)
    opened.close()


@pytest.mark.loop
def test_a_device_is_named_by_a_link_and_known_by_it(leg: Path) -> None:
    with loop_device(leg) as device:
        link = leg.with_name('by-id')
        link.symlink_to(device)
        opened, _ = open_leg(str(link))
        assert opened.is_device and opened.path == str(link)
        assert refusal(device).errno == errno.EBUSY
        opened.close()


@pytest.mark.loop
def test_a_file_that_a_loop_device_has_is_no_new_leg(leg: Path) -> None:
    with loop_device(leg) as device:
        found = refusal(leg, create_size=SIZE)
        assert found.errno == errno.EBUSY and f'in use by the device {device}' in str(found)
        open_leg(str(leg))[0].close()  # but one that is a leg already is taken


@pytest.mark.loop
def test_a_mounted_device_is_refused_with_its_mount_point(tmp_path: Path) -> None:
    image, where = tmp_path / 'ext4', tmp_path / 'mnt'
    where.mkdir()
    subprocess.run(['mkfs.ext4', '-q', image, '8M'], check=True)
    with loop_device(image) as device:
        assert run('mount', device, where).returncode == 0
        try:
            found = refusal(device)
            assert found.errno == errno.EBUSY
            assert f'in use by the filesystem mounted at {where}' in str(found)
        finally:
            assert run('umount', where).returncode == 0


# The mount itself


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


@pytest.fixture(scope='module')
def volume(pool: MountedPool) -> Volume:
    return pool.volume('disk', 16 * MIB)


COMMANDS = [
    ('create', 'new 1M {path}'),
    ('create', 'new 1M {legs}/new log={path}'),
    ('spares', 'add {path} 8M'),
    ('volumes/disk/add', '{path}'),
    ('volumes/disk/add', '{path} force'),
    ('volumes/disk/replace', '0 {path} force'),
    ('volumes/disk/bitmap/location', '{path} force'),
    ('volumes/disk/legs/0/path', '{path}'),
]


def refused_for(pool: MountedPool, file: str, text: str) -> str:
    """Write a command that must be refused with EINVAL; return why."""
    before = pool.status()['volumes'][0]['legs'], sorted(os.listdir(pool.legs))
    with pytest.raises(OSError) as caught:
        write_control(pool.control / file, text)
    assert caught.value.errno == errno.EINVAL, pool.events()[-1]
    assert (pool.status()['volumes'][0]['legs'], sorted(os.listdir(pool.legs))) == before
    return pool.events()[-1]


@pytest.mark.mount
@pytest.mark.parametrize(
    ('file', 'text'), COMMANDS, ids=[f'{n}-{f[-8:]}' for n, (f, _) in enumerate(COMMANDS)]
)
def test_nothing_in_the_mount_may_be_part_of_it(
    pool: MountedPool, volume: Volume, file: str, text: str
) -> None:
    link = pool.base / 'to-mount'
    if not link.is_symlink():
        link.symlink_to(pool.mountpoint)
    places = [volume.image, pool.mountpoint / 'new', pool.control / 'mdstat', pool.mountpoint, link / 'disk']
    for path in places:
        why = refused_for(pool, file, text.format(path=path, legs=pool.legs))
        assert 'is in this very mount' in why, why


@pytest.mark.mount
def test_nor_by_a_bind_mount_of_it(pool: MountedPool, volume: Volume) -> None:
    folder, file = pool.base / 'bound', pool.base / 'bound-image'
    folder.mkdir()
    file.touch()
    assert run('mount', '--bind', pool.mountpoint, folder).returncode == 0
    assert run('mount', '--bind', volume.image, file).returncode == 0
    try:
        for path in (folder / 'disk', file):
            assert 'is in this very mount' in refused_for(pool, 'volumes/disk/add', f'{path} force')
    finally:
        assert run('umount', file).returncode == 0 and run('umount', folder).returncode == 0


@pytest.mark.mount
def test_a_path_in_the_mount_is_refused_without_asking_the_mount(tmp_path: Path, pool: MountedPool) -> None:
    """Else a daemon that is killed meanwhile could not end."""
    (tmp_path / 'link').symlink_to(pool.mountpoint / 'x')
    pool.signal(19)  # SIGSTOP: whoever asks now waits
    try:
        for path in (pool.mountpoint / 'disk', tmp_path / 'link/y', pool.mountpoint / '.mirrorfs/../disk'):
            ask = lambda path=path: 7 if mounting.leads_into(str(path), str(pool.mountpoint)) else 1  # noqa: E731
            assert in_child(ask, seconds=10) == 7
    finally:
        pool.signal(18)


@pytest.mark.loop
def test_nor_what_lies_on_a_loop_device_over_an_image(pool: MountedPool, volume: Volume) -> None:
    where = pool.base / 'inner'
    where.mkdir()
    with loop_device(volume.image) as device:
        assert run('mkfs.ext4', '-q', device).returncode == 0
        why = refused_for(pool, 'volumes/disk/add', f'{device} force')
        assert f'{device} lies on a loop device over {volume.image}' in why
        assert run('mount', device, where).returncode == 0
        try:
            why = refused_for(pool, 'volumes/disk/add', f'{where}/leg')
            assert not (where / 'leg').exists()
            (where / 'inner').write_bytes(bytes(MIB))
            with loop_device(where / 'inner') as deeper:
                assert 'would wait for itself' in refused_for(pool, 'volumes/disk/add', f'{deeper} force')
        finally:
            assert run('umount', where).returncode == 0
