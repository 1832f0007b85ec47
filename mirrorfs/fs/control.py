"""Control files: a table from a name to how it is read and what a write to it does.

One write is one command.  A refused one fails in the ``write(2)`` with an errno that says why, changes
nothing, and leaves one line in ``events``.  Words are md's, in the spellings it documents and those it has
in its code; printed are the latter.
"""

import errno
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.fs import mdstat, mounting
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, WORDS
from mirrorfs.model import LegState
from mirrorfs.pool import Entry, Pool
from mirrorfs.units import parse_size
from mirrorfs.volume.creation import Request
from mirrorfs.volume.logplace import INTERNAL, NONE, place_of
from mirrorfs.volume.rebuild import Rebuilder


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the tree a file is opened: the pool, a volume of it, a slot of that."""

    pool: Pool
    mountpoint: str
    entry: Entry | None = None
    slot: int = -1

    @property
    def volume(self) -> Entry:
        assert self.entry
        return self.entry


Reader = Callable[[Place], str]
Action = Callable[[Place, list[str]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ControlFile:
    """`read` gives the text, `act` does what the words of one write say; None where that cannot be done."""

    read: Reader | None = None
    act: Action | None = None

    @property
    def mode(self) -> int:
        """Permission bits: everybody with access to the mount may read, the mounting user may write."""
        return (0o444 if self.read else 0) | (0o200 if self.act else 0)


def parse(data: bytes) -> list[str]:
    """Return the words of one write; quotes as in a shell.  Raises Refused(EINVAL, E2BIG)."""
    if len(data) > limits.CONTROL_WRITE_MAX:
        raise Refused(errno.E2BIG, f'a command has {limits.CONTROL_WRITE_MAX} bytes at most')
    try:
        text = data.decode()
        lines = [line for line in text.split('\n') if line.strip()]
        if len(lines) > 1:
            raise Refused(errno.EINVAL, 'one line a write, please')
        words = shlex.split(text)
    except (UnicodeDecodeError, ValueError) as error:
        raise Refused(errno.EINVAL, f'not a command: {error}') from None
    if not words or '\0' in text:
        raise Refused(errno.EINVAL, 'an empty command')
    return words


# Readers


def _running(read: Callable[[Entry], object]) -> Reader:
    """Make a reader of a fact that only a started volume has; others read as an empty line."""
    return lambda place: f'{read(place.volume)}\n' if place.volume.started else '\n'


def _recorded(read: Callable[[Entry], object]) -> Reader:
    """Make a reader of a fact that the record holds."""
    return lambda place: f'{read(place.volume)}\n' if place.volume.record else '\n'


def _rebuilder(entry: Entry) -> Rebuilder:
    assert entry.started
    return entry.started.rebuilder


def _sync_completed(entry: Entry) -> str:
    progress = _rebuilder(entry).progress
    if not progress:
        return 'none'
    return f'{progress.done // limits.SECTOR} / {progress.total // limits.SECTOR}'


def _sync_speed(entry: Entry) -> str:
    progress = _rebuilder(entry).progress
    return f'{int(progress.speed(trio.current_time())) // 1024}' if progress else 'none'


def _states(place: Place) -> str:
    """How many chunks have each flag, and how many have none."""
    started, _ = place.volume.require()
    log = started.volume.log
    lines = [f'{word} {log.count(flag)}' for flag, word in WORDS.items()]
    clean = len(log.where(0, DIRTY | MODIFIED | NEEDS_RESYNC | UNWRITTEN))
    return '\n'.join([f'clean {clean}', *lines, ''])


def _time_base(entry: Entry) -> str:
    assert entry.record
    whole, part = divmod(entry.record.time_base_ms, 1000)
    return f'{whole}.{part:03d}' if part else f'{whole}'


def _recovery_start(place: Place) -> str:
    record = place.volume.record
    slot = record.slots[place.slot] if record else None
    if not record or not slot or slot.state is not LegState.SPARE:
        return 'none\n'
    return f'{slot.mark * record.chunk_size // limits.SECTOR}\n'


def _errors(place: Place) -> str:
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    return f'{member.read_errors + member.write_errors if member else 0}\n'


# Actions


def _one(words: list[str], what: str) -> str:
    if len(words) != 1:
        raise Refused(errno.EINVAL, f'{len(words)} words; wanted is just {what}')
    return words[0]


async def _create(place: Place, words: list[str]) -> None:
    """NAME SIZE LEG [LEG…] [chunk=SIZE] [log=none|internal|PATH] [force]"""
    plain = [word for word in words if '=' not in word or word.startswith(('/', '.'))]
    options = dict(word.split('=', 1) for word in words if word not in plain)
    force = 'force' in plain
    plain = [word for word in plain if word != 'force']
    unknown = set(options) - {'chunk', 'log'}
    if unknown:
        raise Refused(errno.EINVAL, f'{" ".join(sorted(unknown))}: not an option')
    if len(plain) < 3:
        raise Refused(errno.EINVAL, 'wanted is NAME SIZE LEG [LEG…]')
    chunk = parse_size(options['chunk']) if 'chunk' in options else 0
    log = options.get('log', INTERNAL)
    outside = '' if log in (NONE, INTERNAL) else await _outside_the_mount(place, log)
    legs = [_absolute(path) for path in plain[2:]]
    request = Request(plain[0], parse_size(plain[1]), legs, chunk, log != NONE, force, outside)
    await place.pool.create(request)


def _absolute(path: str) -> str:
    """The daemon has no working directory to speak of."""
    if path != 'missing' and not path.startswith('/'):
        raise Refused(errno.EINVAL, f'{path!r} is not an absolute path')
    return path


async def _outside_the_mount(place: Place, path: str) -> str:
    """Return a path for a log, which no volume of this mount may hold: it would wait for itself."""
    patience = place.pool.settings.leg_timeout
    real = ''
    with trio.move_on_after(patience):
        real = await trio.to_thread.run_sync(mounting.real_path, _absolute(path), abandon_on_cancel=True)
    if not real:
        raise Refused(errno.ETIMEDOUT, f'{path} did not answer within {patience:g} s')
    if place.mountpoint in (real, *(str(parent) for parent in Path(real).parents)):
        raise Refused(errno.EINVAL, f'{path} is in this very mount')
    return path


async def _destroy(place: Place, words: list[str]) -> None:
    await place.pool.destroy(_one(words, 'NAME'))


async def _add(place: Place, words: list[str]) -> None:
    path, *flags = words
    unknown = set(flags) - {'force'}
    if unknown:
        raise Refused(errno.EINVAL, f'{" ".join(sorted(unknown))}: not a flag of add')
    await place.volume.require()[1].add(_absolute(path), force='force' in flags)


async def _remove(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].remove(_one(words, 'LEG'))


async def _fail(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].fail(_one(words, 'LEG'))


async def _re_add(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].re_add(_one(words, 'LEG or missing'))


async def _set_size(place: Place, words: list[str]) -> None:
    started, _ = place.volume.require()
    await started.volume.grow(parse_size(_one(words, 'SIZE')))


async def _sync_action(place: Place, words: list[str]) -> None:
    """md's words, with its rules: idle may begin what is needed, a named action is EBUSY while one runs."""
    word = _one(words, 'idle, frozen, resync or recover')
    rebuilder = place.volume.require()[0].rebuilder
    if word in ('check', 'repair'):
        raise Refused(errno.EOPNOTSUPP, f'{word} is not there yet in this version')
    if word == 'frozen':
        await rebuilder.freeze()
    elif word == 'idle':
        await rebuilder.interrupt()
        rebuilder.thaw()
    elif word in ('resync', 'recover', 'recovery'):
        if rebuilder.progress:
            raise Refused(errno.EBUSY, f'{rebuilder.action} is under way')
        rebuilder.thaw()
    else:
        raise Refused(errno.EINVAL, f'{word!r} is not one of idle, frozen, resync, recover')


async def _set_time_base(place: Place, words: list[str]) -> None:
    started, _ = place.volume.require()
    try:
        seconds = float(_one(words, 'SECONDS'))
    except ValueError:
        raise Refused(errno.EINVAL, f'{words[0]!r} is not a number of seconds') from None
    if not limits.TIME_BASE_MIN <= seconds <= limits.TIME_BASE_MAX:
        most = f'{limits.TIME_BASE_MIN} to {limits.TIME_BASE_MAX}'
        raise Refused(errno.EINVAL, f'{seconds:g} seconds; wanted is {most}')
    keeper = started.volume.keeper
    await keeper.open_session()
    keeper.record = keeper.record.but(time_base_ms=round(seconds * 1000))
    await keeper.commit()


async def _set_location(place: Place, words: list[str]) -> None:
    """none, internal or a path, with md's spellings for internal: +N, -N, N; force overwrites a file."""
    word, *flags = words
    if set(flags) - {'force'}:
        raise Refused(errno.EINVAL, f'{" ".join(flags)}: wanted is none, internal or PATH, and perhaps force')
    if re.fullmatch(r'[+-]?\d*[1-9]\d*', word):
        word = INTERNAL
    if word not in (NONE, INTERNAL):
        word = await _outside_the_mount(place, word)
    await place.volume.require()[1].move_log(word, force='force' in flags)


async def _can_clear(place: Place, words: list[str]) -> None:
    word = _one(words, 'true or false')
    if word not in ('true', 'false'):
        raise Refused(errno.EINVAL, f'{word!r} is neither true nor false')
    place.volume.require()[0].clearer.allowed = word == 'true'


# The tables

POOL_FILES: dict[str, ControlFile] = {
    'mdstat': ControlFile(lambda place: mdstat.mdstat(place.pool.entries.values())),
    'status.json': ControlFile(lambda place: mdstat.status(place.pool, place.mountpoint) + '\n'),
    'events': ControlFile(lambda place: ''),  # a stream: served by the handlers from `EventLog`
    'create': ControlFile(act=_create),
    'destroy': ControlFile(act=_destroy),
}

VOLUME_FILES: dict[str, ControlFile] = {
    'add': ControlFile(act=_add),
    'remove': ControlFile(act=_remove),
    'fail': ControlFile(act=_fail),
    're-add': ControlFile(act=_re_add),
    'array_state': ControlFile(lambda place: f'{mdstat.array_state(place.volume)}\n'),
    'degraded': ControlFile(_recorded(lambda e: mdstat.volume_status(e)['degraded'])),
    'raid_disks': ControlFile(_recorded(lambda e: e.record and e.record.raid_disks)),
    'size': ControlFile(_recorded(lambda e: e.record and e.record.size), _set_size),
    'uuid': ControlFile(_recorded(lambda e: e.record and e.record.uuid)),
    'events': ControlFile(_recorded(lambda e: e.record and e.record.events)),
    'sync_action': ControlFile(_running(lambda e: _rebuilder(e).action), _sync_action),
    'sync_completed': ControlFile(_running(_sync_completed)),
    'sync_speed': ControlFile(_running(_sync_speed)),
}

BITMAP_FILES: dict[str, ControlFile] = {
    'metadata': ControlFile(_recorded(lambda e: e.record and mdstat.bitmap_word(e.record))),
    'location': ControlFile(_recorded(lambda e: e.record and place_of(e.record)), _set_location),
    'chunksize': ControlFile(_recorded(lambda e: e.record and e.record.chunk_size)),
    'time_base': ControlFile(_recorded(_time_base), _set_time_base),
    'backlog': ControlFile(_recorded(lambda e: 0)),
    'can_clear': ControlFile(
        _running(lambda e: str(e.started is not None and e.started.clearer.allowed).lower()), _can_clear
    ),
    'states': ControlFile(_states),
}

LEG_FILES: dict[str, ControlFile] = {
    'state': ControlFile(lambda place: f'{mdstat.leg_state(place.volume, place.slot)}\n'),
    'path': ControlFile(lambda place: f'{place.volume.record.slots[place.slot].path}\n'),  # type: ignore[union-attr]
    'uuid': ControlFile(lambda place: f'{place.volume.record.slots[place.slot].leg}\n'),  # type: ignore[union-attr]
    'errors': ControlFile(_errors),
    'recovery_start': ControlFile(_recovery_start),
    'bad_blocks': ControlFile(lambda place: ''),
}
