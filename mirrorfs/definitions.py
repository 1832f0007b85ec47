"""A pool's files: the definitions of its volumes, and what is kept beside them.

On disk a pool is a directory::

    mirrorfs.json         says that this is a pool, and of which format
    volumes/NAME.json     one definition a volume: `VolumeRecord` in JSON, replaced atomically
    volumes/NAME.scrub    how far its scrub is and what that found: `Scrub` in JSON, likewise
    spares.json           the spares that volumes share (`mirrorfs.mirror.sparelist`), once there were any
    lock                  held by the daemon that serves the pool (flock)

The definitions are the witness of `mirrorfs.mirror.assembly`: each is written to a temporary file, synced,
renamed, and the directory synced, before the change that it records is acknowledged to anyone.
"""

import errno
import fcntl
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.files import Files, OsFiles
from mirrorfs.leg.opening import lock_holder
from mirrorfs.model import (
    NO_UUID,
    DetectZeroes,
    Generation,
    LegState,
    ReturnPolicy,
    Slot,
    VolumeRecord,
    WriterPolicy,
)
from mirrorfs.volume.creation import check_name

FORMAT = 1
_MARK = 'mirrorfs.json'
_SPARES = 'spares.json'
_NUMBERS = ['size', 'chunk_size', 'raid_disks', 'events', 'created_us', 'time_base_ms', 'mode', 'uid', 'gid']
_SETTINGS = ['backlog', 'quorum', 'spare_delay_ms', 'max_read_errors', 'speed_min', 'speed_max']
_FLAGS = ['full', 'write_mostly', 'failfast', 'want_replacement', 'behind']


def encode(record: VolumeRecord) -> str:
    """Return a record as the JSON text of a definition."""
    return json.dumps(
        {
            'format': FORMAT,
            'uuid': str(record.uuid),
            'name': record.name,
            **{number: getattr(record, number) for number in (*_NUMBERS, *_SETTINGS)},
            'logged': record.logged,
            'log_id': str(record.log_id),
            'log_path': record.log_path,
            'quorum_policy': record.quorum_policy.name.lower(),
            'return_policy': record.return_policy.name.lower(),
            'detect_zeroes': record.detect_zeroes.name.lower(),
            'lineage': [[str(step.uuid), step.time_us, step.events] for step in record.lineage],
            'slots': {
                str(number): {
                    'state': slot.state.name.lower(),
                    'leg': str(slot.leg),
                    'path': slot.path,
                    'tracked_since': slot.tracked_since,
                    'replaces': slot.replaces,
                    'place': slot.place,
                    'stamp': slot.stamp,
                    **{flag: getattr(slot, flag) for flag in _FLAGS},
                }
                for number, slot in enumerate(record.slots)
                if slot != Slot()
            },
        },
        indent=1,
    )


def decode(text: str) -> VolumeRecord:
    """Return the record that a definition's text holds.  Raises BadMetadata."""
    try:
        raw = json.loads(text)
        if raw['format'] != FORMAT:
            raise BadMetadata(f'definition format {raw["format"]} is not known')
        slots = [Slot()] * limits.SLOTS
        for number, slot in raw['slots'].items():
            slots[int(number)] = Slot(
                state=LegState[slot['state'].upper()],
                leg=uuid.UUID(slot['leg']),
                path=str(slot['path']),
                tracked_since=int(slot['tracked_since']),
                replaces=int(slot.get('replaces', -1)),
                place=int(slot.get('place', -1)),
                stamp=str(slot.get('stamp', '')),
                **{flag: bool(slot.get(flag)) for flag in _FLAGS},
            )
        check_name(raw['name'])
        lineage = tuple(Generation(uuid.UUID(step), int(time), int(at)) for step, time, at in raw['lineage'])
        numbers: dict[str, Any] = {key: int(raw[key]) for key in _NUMBERS}
        numbers |= {key: int(raw[key]) for key in _SETTINGS if key in raw}
        record = VolumeRecord(
            uuid=uuid.UUID(raw['uuid']),
            name=raw['name'],
            slots=tuple(slots),
            lineage=lineage,
            logged=bool(raw['logged']),
            log_id=uuid.UUID(raw.get('log_id', str(NO_UUID))),
            log_path=str(raw.get('log_path', '')),
            quorum_policy=WriterPolicy[raw.get('quorum_policy', 'error').upper()],
            return_policy=ReturnPolicy[raw.get('return_policy', 'partial').upper()],
            detect_zeroes=DetectZeroes[raw.get('detect_zeroes', 'off').upper()],
            **numbers,
        )
    except BadMetadata:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError, Refused) as error:
        raise BadMetadata(f'damaged definition: {type(error).__name__} {error}') from None
    return record


class PoolDirectory:
    """A pool's files.  All methods block; the record store's `save` goes through a thread."""

    def __init__(self, path: str, files: Files | None = None) -> None:
        self.path = Path(os.path.realpath(path))
        self._files = files or OsFiles()
        self._lock: int | None = None

    @property
    def _volumes(self) -> Path:
        return self.path / 'volumes'

    def exists(self) -> bool:
        return self._files.is_file(self.path / _MARK)

    def make(self) -> None:
        """Make the directory a pool.  Raises Refused(ENOTEMPTY) for one with other things in it."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            if not self.exists() and any(entry.name != 'lost+found' for entry in self.path.iterdir()):
                message = f'{self.path} is not empty and no pool; name a new directory'
                raise Refused(errno.ENOTEMPTY, message)
            self._volumes.mkdir(mode=0o700, exist_ok=True)
            self._replace(self.path / _MARK, json.dumps({'format': FORMAT}))
        except OSError as error:
            message = f'cannot make a pool at {self.path}: {error.strerror}'
            raise Refused(error.errno or errno.EIO, message) from None

    def unmake(self, *, leave_folder: bool) -> None:
        """Undo `make` where the pool has got no volume, and nothing else, meanwhile."""
        if not any(self._volumes.iterdir()):
            self._volumes.rmdir()
            for name in (_MARK, 'lock'):
                (self.path / name).unlink(missing_ok=True)
            if not leave_folder:
                self.path.rmdir()

    def require(self) -> None:
        """Raise Refused: ENOENT unless this is a pool, EACCES where that cannot be seen."""
        try:
            there = self.exists()
        except OSError as error:
            raise Refused(error.errno or errno.EIO, f'{self.path}: {error.strerror}') from None
        if not there:
            raise Refused(errno.ENOENT, f'{self.path} is no pool (it has no {_MARK})')
        self._refuse_if_open_to_all()

    def _refuse_if_open_to_all(self) -> None:
        """Raise Refused(EPERM) where anybody could put definitions, which say what the daemon opens."""
        for folder in (self.path, self._volumes):
            mode = self._files.mode(folder)
            if mode & stat.S_IWOTH:
                found = f'{folder} can be written by everybody (mode {mode:04o})'
                raise Refused(errno.EPERM, f'{found}, who could name legs; chmod o-w it first')

    def lock(self) -> None:
        """Hold the pool for this process.  Raises Refused: EBUSY with the holder's name, EACCES."""
        try:
            fd = os.open(self.path / 'lock', os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f'{self.path / "lock"} cannot be opened: {error.strerror}'
            raise Refused(error.errno or errno.EIO, message) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f'{self.path} is in use by {lock_holder(fd)}'
            os.close(fd)
            raise Refused(errno.EBUSY, message) from None
        self._lock = fd

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def load(self) -> tuple[dict[str, VolumeRecord], dict[str, str]]:
        """Return the records by name, and what is wrong with definitions that cannot be read."""
        self.require()
        records, damaged = {}, {}
        try:
            names = self._files.names(self._volumes)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, f'{self._volumes}: {error.strerror}') from None
        for name in names:
            file = self._volumes / name
            if file.suffix != '.json' or name.startswith('.'):
                continue
            try:
                record = decode(self._files.read(file).decode())
                if record.name != file.stem:
                    raise BadMetadata(f'it says that its name is {record.name}')
                records[record.name] = record
            except (BadMetadata, OSError, UnicodeDecodeError) as error:
                damaged[file.stem] = f'{file}: {error}'
        return records, damaged

    def save_now(self, record: VolumeRecord) -> None:
        """Make a definition durable, whole or not at all.  Raises OSError."""
        self._replace(self._volumes / f'{record.name}.json', encode(record))

    async def save(self, record: VolumeRecord) -> None:
        await self._files.run(self.save_now, record)

    async def load_all(self) -> tuple[dict[str, VolumeRecord], dict[str, str]]:
        """As `load`, without blocking."""
        return await self._files.run(self.load)

    async def load_scrub(self, name: str) -> str:
        """See `mirrorfs.volume.scrub.ScrubStore`."""
        file = self._volumes / f'{name}.scrub'

        def load() -> str:
            return self._files.read(file).decode(errors='replace') if self._files.is_file(file) else ''

        return await self._files.run(load)

    async def save_scrub(self, name: str, text: str) -> None:
        await self._files.run(self._replace, self._volumes / f'{name}.scrub', text)

    def load_spares_now(self) -> str:
        """Return the text that lists the shared spares; empty where there never were any.  Raises OSError."""
        file = self.path / _SPARES
        return self._files.read(file).decode(errors='replace') if self._files.is_file(file) else ''

    async def load_spares(self) -> str:
        """As `load_spares_now`, without blocking."""
        return await self._files.run(self.load_spares_now)

    async def save_spares(self, text: str) -> None:
        """Make the list of shared spares durable, whole or not at all.  Raises OSError."""
        await self._files.run(self._replace, self.path / _SPARES, text)

    async def settle(self) -> None:
        """Have durable what is seen: a daemon that was killed may have renamed files, and no more."""
        for directory in (self._volumes, self.path):
            await self._files.run(self._files.sync_directory, directory)

    def delete(self, name: str) -> None:
        """Forget a volume: its definition first, then what is of no use without it."""
        self._files.unlink(self._volumes / f'{name}.json')
        if self._files.is_file(self._volumes / f'{name}.scrub'):
            self._files.unlink(self._volumes / f'{name}.scrub')
        self._files.sync_directory(self._volumes)

    async def forget(self, name: str) -> None:
        """As `delete`, without blocking."""
        await self._files.run(self.delete, name)

    def _replace(self, path: Path, text: str) -> None:
        """Put a text in the place of a file's, durably, so that a crash leaves the one or the other."""
        temporary = path.with_name(f'.{path.name}.new')
        with self._files.create(temporary) as file:
            file.write(text.encode())
            file.sync()
        self._files.rename(temporary, path)
        self._files.sync_directory(path.parent)


def status_of_records(records: dict[str, VolumeRecord]) -> list[dict[str, Any]]:
    """Return what the definitions alone say, for a pool that is not mounted."""
    return [json.loads(encode(record)) for record in records.values()]
