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
from mirrorfs.mirror.badblocks import only_there
from mirrorfs.mirror.behind import Backlog
from mirrorfs.mirror.comparing import MODES, UNIT_SECTORS, with_names
from mirrorfs.model import LegState, ReturnPolicy, Slot, WriterPolicy
from mirrorfs.pool import Entry, Pool
from mirrorfs.units import parse_size
from mirrorfs.volume.admin import FLAGS
from mirrorfs.volume.creation import Request
from mirrorfs.volume.logplace import INTERNAL, NONE, place_of
from mirrorfs.volume.rebuild import Rebuilder

_SECTORS_MAX = (1 << 63) // limits.SECTOR


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the tree a file is opened: the pool, a volume of it, a slot of that."""

    pool: Pool
    mountpoint: str
    entry: Entry | None = None
    slot: int = -1

    @property
    def number(self) -> int:
        """The number that people know the slot by."""
        assert self.entry and self.entry.record
        return self.entry.record.place(self.slot)

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
    if progress.position is not None:
        return f'{progress.position // limits.SECTOR} / {progress.end // limits.SECTOR}'
    return f'{progress.done // limits.SECTOR} / {progress.total // limits.SECTOR}'


def _sync_speed(entry: Entry) -> str:
    progress = _rebuilder(entry).progress
    return f'{int(progress.speed(trio.current_time())) // 1024}' if progress else 'none'


def _sync_max(entry: Entry) -> str:
    sync_max = _rebuilder(entry).scrub.state.sync_max
    return 'max' if sync_max is None else str(sync_max)


def _last_action(entry: Entry) -> str:
    last = _rebuilder(entry).progress or _rebuilder(entry).last
    return last.action if last else 'idle'


def _mismatches(place: Place) -> str:
    """Where legs differ, which, and a digest of what each holds: a line for each place."""
    started, _ = place.volume.require()
    scrub, record = started.rebuilder.scrub.state, started.volume.record
    lines = [with_names(mismatch, record.place).line for mismatch in scrub.listed]
    if scrub.more:
        lines.append(f'and {scrub.more} more')
    return ''.join(f'{line}\n' for line in lines)


def _speed(own: int, default: int) -> str:
    """md's form: whose value it is in brackets."""
    return f'{own} (local)' if own else f'{default} (system)'


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


def _backlogs(entry: Entry) -> list[Backlog]:
    members = entry.require()[0].volume.members
    return [member.backlog for member in members if member.backlog]


def _max_backlog(entry: Entry) -> int:
    return max((backlog.most for backlog in _backlogs(entry)), default=0)


def _spare_delay(entry: Entry) -> str:
    assert entry.record
    return f'{entry.record.spare_delay_ms / 1000:g}'


def _slot(place: Place) -> Slot:
    assert place.volume.record
    return place.volume.record.slots[place.slot]


def _path(place: Place) -> str:
    return f'{_slot(place).path}\n'


def _leg_uuid(place: Place) -> str:
    return f'{_slot(place).leg}\n'


def _recovery_start(place: Place) -> str:
    record = place.volume.record
    slot = record.slots[place.slot] if record else None
    if not record or not slot or slot.state is not LegState.SPARE:
        return 'none\n'
    return f'{slot.mark * record.chunk_size // limits.SECTOR}\n'


def _errors(place: Place) -> str:
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    return f'{member.corrected if member else 0}\n'


def _bad_blocks(place: Place) -> str:
    """md's form: a line ``sector length`` for each range that is durably listed."""
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    return member.bad_stored.lines() if member else ''


def _unacknowledged(place: Place) -> str:
    """What is to be listed, and is not yet so on the leg."""
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    if not member or member.bad is member.bad_stored:
        return ''
    return only_there(member.bad_stored, [member.bad]).lines()


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
    """PATH [force] [spare] [write_mostly] [failfast]"""
    path, *flags = words
    known = {'force': 'force', 'spare': 'spare', 'failfast': 'failfast'}
    known |= {'write_mostly': 'write_mostly', 'writemostly': 'write_mostly'}
    unknown = set(flags) - set(known)
    if unknown:
        raise Refused(errno.EINVAL, f'{" ".join(sorted(unknown))}: not a flag of add')
    await place.volume.require()[1].add(_absolute(path), **{known[flag]: True for flag in flags})


async def _replace(place: Place, words: list[str]) -> None:
    """LEG NEWPATH [force]; NEWPATH may be a spare's, or `spare`."""
    if len(words) not in (2, 3) or words[2:] not in ([], ['force']):
        raise Refused(errno.EINVAL, 'wanted is LEG NEWPATH [force]')
    leg, path = words[:2]
    path = path if path == 'spare' else _absolute(path)
    await place.volume.require()[1].replace(leg, path, force=len(words) == 3)


async def _set_raid_disks(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].set_raid_disks(_whole_number(_one(words, 'a number of legs')))


def _whole_number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 19):
        raise Refused(errno.EINVAL, f'{word[:40]!r} is not a whole number')
    return int(word)


async def _set_path(place: Place, words: list[str]) -> None:
    """The leg lies there, or shall: see `Admin.move`."""
    path = _absolute(_one(words, 'PATH'))
    await place.volume.require()[1].move(str(place.number), path)


async def _set_state(place: Place, words: list[str]) -> None:
    """md's words for one leg, in all their spellings."""
    word = _one(words, 'a word')
    _, admin = place.volume.require()
    wanted, name = not word.startswith('-'), word.removeprefix('-').replace('writemostly', 'write_mostly')
    if name in FLAGS:
        await admin.set_flag(place.slot, name, wanted)
    elif name == 'blocked':
        await (admin.block(place.slot) if wanted else admin.unblock(place.slot))
    elif word == 'faulty':
        await admin.fail(str(place.number))
    elif word == 'remove':
        await admin.remove(str(place.number))
    elif word == 're-add':
        await admin.re_add(str(place.number))
    else:
        known = 'faulty, remove, re-add, and [-]writemostly, [-]failfast, [-]blocked, [-]want_replacement'
        raise Refused(errno.EINVAL, f'{word!r} is not one of {known}')


async def _set_backlog(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].set_backlog(_whole_number(_one(words, 'a number of writes')))


async def _reset_max_backlog(place: Place, words: list[str]) -> None:
    for backlog in _backlogs(place.volume):
        backlog.most = 0


async def _set_spare_delay(place: Place, words: list[str]) -> None:
    seconds = _seconds(words)
    if not 0 <= seconds <= limits.SPARE_DELAY_MAX:
        raise Refused(errno.EINVAL, f'{seconds:g} seconds; wanted is 0 to {limits.SPARE_DELAY_MAX:g}')
    await _settle_record(place, spare_delay_ms=round(seconds * 1000))


async def _set_return_policy(place: Place, words: list[str]) -> None:
    known = {policy.name.lower(): policy for policy in ReturnPolicy}
    word = _one(words, ', '.join(known))
    if word not in known:
        raise Refused(errno.EINVAL, f'{word!r} is not one of {", ".join(known)}')
    await _settle_record(place, return_policy=known[word])


async def _settle_record(place: Place, **changes: object) -> None:
    """Have settings of a volume durable."""
    keeper = place.volume.require()[0].volume.keeper
    await keeper.open_session()
    keeper.record = keeper.record.but(**changes)
    await keeper.commit()


def _seconds(words: list[str]) -> float:
    try:
        return float(_one(words, 'SECONDS'))
    except ValueError:
        raise Refused(errno.EINVAL, f'{words[0]!r} is not a number of seconds') from None


async def _remove(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].remove(_one(words, 'LEG'))


async def _fail(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].fail(_one(words, 'LEG'))


async def _re_add(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].re_add(_one(words, 'LEG or missing'))


async def _resolve(place: Place, words: list[str]) -> None:
    if len(words) != 2 or words[0] != 'keep':
        raise Refused(errno.EINVAL, f'{" ".join(words)!r}; wanted is: keep LEG')
    await place.pool.resolve(place.volume.name, words[1])


def _sides(place: Place) -> str:
    """The histories to choose from, a line each."""
    split = place.volume.split
    return ''.join(f'{line}\n' for line in split.lines()) if split else 'none\n'


async def _set_size(place: Place, words: list[str]) -> None:
    started, _ = place.volume.require()
    await started.volume.grow(parse_size(_one(words, 'SIZE')))


async def _sync_action(place: Place, words: list[str]) -> None:
    """md's words, with its rules: idle may begin what is needed, a named action is EBUSY while one runs.

    What md lacks: ``repair LEG`` makes the others equal to that leg.
    """
    started, admin = place.volume.require()
    rebuilder = started.rebuilder
    source = admin.find(words[1]) if words[0] == 'repair' and len(words) == 2 else None
    word = words[0] if source is not None else _one(words, 'idle, frozen, resync, recover, check or repair')
    if word in ('check', 'repair'):
        await rebuilder.begin_scrub(word, source)
    elif word == 'frozen':
        rebuilder.frozen = True
        await rebuilder.cancel()
    elif word == 'idle':
        await rebuilder.cancel()
        rebuilder.thaw()
    elif word in ('resync', 'recover', 'recovery'):
        if rebuilder.progress:
            raise Refused(errno.EBUSY, f'{rebuilder.action} is under way')
        rebuilder.thaw()
    else:
        message = f'{word!r} is not one of idle, frozen, resync, recover, check, repair'
        raise Refused(errno.EINVAL, message)


def _number(words: list[str], what: str, least: int, most: int) -> int:
    """Return the one number that was written.  Raises Refused(EINVAL)."""
    word = _one(words, what)
    if not (word.isascii() and word.isdigit() and len(word) < 20 and least <= int(word) <= most):
        raise Refused(errno.EINVAL, f'{word[:40]!r} is not {what}')
    return int(word)


async def _set_sync_min(place: Place, words: list[str]) -> None:
    rebuilder = place.volume.require()[0].rebuilder
    sectors = _number(words, 'a number of sectors', 0, _SECTORS_MAX)
    if rebuilder.progress:
        raise Refused(errno.EBUSY, f'{rebuilder.action} is under way')
    await rebuilder.scrub.set_sync_min(sectors)


async def _set_sync_max(place: Place, words: list[str]) -> None:
    rebuilder = place.volume.require()[0].rebuilder
    everything = _one(words, 'a number of sectors or max').startswith('max')  # all that md looks at
    sectors = None if everything else _number(words, 'a number of sectors or max', 0, _SECTORS_MAX)
    await rebuilder.scrub.set_sync_max(sectors)


async def _set_sync_mode(place: Place, words: list[str]) -> None:
    await place.volume.require()[0].rebuilder.scrub.set_mode(_one(words, ' or '.join(MODES)))


def _speed_setter(key: str) -> Action:
    async def act(place: Place, words: list[str]) -> None:
        what = 'KiB/s or system'
        system = _one(words, what).startswith('system')
        value = 0 if system else _number(words, what, 1, limits.SPEED_SET_MAX)
        await _settle_record(place, **{key: value})

    return act


async def _set_time_base(place: Place, words: list[str]) -> None:
    seconds = _seconds(words)
    if not limits.TIME_BASE_MIN <= seconds <= limits.TIME_BASE_MAX:
        most = f'{limits.TIME_BASE_MIN} to {limits.TIME_BASE_MAX}'
        raise Refused(errno.EINVAL, f'{seconds:g} seconds; wanted is {most}')
    await _settle_record(place, time_base_ms=round(seconds * 1000))


async def _set_max_read_errors(place: Place, words: list[str]) -> None:
    most = _number(words, 'a number of errors', 0, limits.MAX_READ_ERRORS_MAX)
    await _settle_record(place, max_read_errors=most)


async def _set_errors(place: Place, words: list[str]) -> None:
    count = _number(words, 'a number of errors', 0, limits.MAX_READ_ERRORS_MAX)
    await place.volume.require()[1].set_corrected(place.slot, count)


async def _list_bad(place: Place, words: list[str]) -> None:
    """SECTOR LENGTH, as it is read"""
    if len(words) != 2:
        raise Refused(errno.EINVAL, f'{len(words)} words; wanted is SECTOR LENGTH')
    sector, count = (_number([word], 'a number of sectors', 0, _SECTORS_MAX) for word in words)
    await place.volume.require()[1].list_bad(place.slot, sector, count)


async def _set_quorum(place: Place, words: list[str]) -> None:
    word = _one(words, 'the least number of legs in sync for writes')
    if not (word.isascii() and word.isdigit()):
        raise Refused(errno.EINVAL, f'{word!r} is not a number of legs')
    await place.volume.require()[0].volume.quorum.change(quorum=int(word[:9]))


async def _set_quorum_policy(place: Place, words: list[str]) -> None:
    word = _one(words, 'error, readonly or wait').upper()
    if word not in WriterPolicy.__members__:
        raise Refused(errno.EINVAL, f'{word.lower()!r} is not one of error, readonly, wait')
    await place.volume.require()[0].volume.quorum.change(quorum_policy=WriterPolicy[word])


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
    'replace': ControlFile(act=_replace),
    'spare_delay': ControlFile(_recorded(_spare_delay), _set_spare_delay),
    're_add_policy': ControlFile(
        _recorded(lambda e: e.record and e.record.return_policy.name.lower()), _set_return_policy
    ),
    'resolve': ControlFile(_sides, _resolve),
    'array_state': ControlFile(lambda place: f'{mdstat.array_state(place.volume)}\n'),
    'degraded': ControlFile(_recorded(lambda e: mdstat.volume_status(e)['degraded'])),
    'raid_disks': ControlFile(_recorded(lambda e: e.record and e.record.raid_disks), _set_raid_disks),
    'size': ControlFile(_recorded(lambda e: e.record and e.record.size), _set_size),
    'uuid': ControlFile(_recorded(lambda e: e.record and e.record.uuid)),
    'events': ControlFile(_recorded(lambda e: e.record and e.record.events)),
    'quorum': ControlFile(_recorded(lambda e: e.record and e.record.quorum), _set_quorum),
    'quorum_policy': ControlFile(
        _recorded(lambda e: e.record and e.record.quorum_policy.name.lower()), _set_quorum_policy
    ),
    'sync_action': ControlFile(_running(lambda e: _rebuilder(e).action), _sync_action),
    'sync_completed': ControlFile(_running(_sync_completed)),
    'sync_speed': ControlFile(_running(_sync_speed)),
    'max_read_errors': ControlFile(
        _recorded(lambda e: e.record and e.record.max_read_errors), _set_max_read_errors
    ),
    'sync_speed_min': ControlFile(
        _recorded(lambda e: e.record and _speed(e.record.speed_min, limits.SPEED_MIN)),
        _speed_setter('speed_min'),
    ),
    'sync_speed_max': ControlFile(
        _recorded(lambda e: e.record and _speed(e.record.speed_max, limits.SPEED_MAX)),
        _speed_setter('speed_max'),
    ),
    'sync_mode': ControlFile(_running(lambda e: _rebuilder(e).scrub.state.mode), _set_sync_mode),
    'sync_min': ControlFile(_running(lambda e: _rebuilder(e).scrub.state.sync_min), _set_sync_min),
    'sync_max': ControlFile(_running(_sync_max), _set_sync_max),
    'last_sync_action': ControlFile(_running(_last_action)),
    'mismatch_cnt': ControlFile(_running(lambda e: _rebuilder(e).scrub.state.differing * UNIT_SECTORS)),
    'mismatches': ControlFile(_mismatches),
}

BITMAP_FILES: dict[str, ControlFile] = {
    'metadata': ControlFile(_recorded(lambda e: e.record and mdstat.bitmap_word(e.record))),
    'location': ControlFile(_recorded(lambda e: e.record and place_of(e.record)), _set_location),
    'chunksize': ControlFile(_recorded(lambda e: e.record and e.record.chunk_size)),
    'time_base': ControlFile(_recorded(_time_base), _set_time_base),
    'backlog': ControlFile(_recorded(lambda e: e.record and e.record.backlog), _set_backlog),
    'max_backlog_used': ControlFile(_running(_max_backlog), _reset_max_backlog),
    'can_clear': ControlFile(
        _running(lambda e: str(e.started is not None and e.started.clearer.allowed).lower()), _can_clear
    ),
    'states': ControlFile(_states),
}

LEG_FILES: dict[str, ControlFile] = {
    'state': ControlFile(lambda place: f'{mdstat.leg_state(place.volume, place.slot)}\n', _set_state),
    'path': ControlFile(_path, _set_path),
    'uuid': ControlFile(_leg_uuid),
    'errors': ControlFile(_errors, _set_errors),
    'recovery_start': ControlFile(_recovery_start),
    'bad_blocks': ControlFile(_bad_blocks, _list_bad),
    'unacknowledged_bad_blocks': ControlFile(_unacknowledged, _list_bad),
}
