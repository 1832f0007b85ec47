"""What writes to control files do.  Words are md's, in the spellings it documents and those in its code."""

import errno
import re
from enum import Enum
from typing import TypeVar

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.fs import facts
from mirrorfs.fs.place import Action, Place
from mirrorfs.mirror.comparing import MODES, Scrub
from mirrorfs.model import DetectZeroes, ReturnPolicy, WriterPolicy
from mirrorfs.pool import Entry
from mirrorfs.units import format_size, parse_size
from mirrorfs.volume.admin import FLAGS
from mirrorfs.volume.creation import Request
from mirrorfs.volume.logplace import INTERNAL, NONE, refuse_to_forget
from mirrorfs.volume.splitting import SUFFIX

_SECTORS_MAX = (1 << 63) // limits.SECTOR
E = TypeVar('E', bound=Enum)


def _one(words: list[str], what: str) -> str:
    if len(words) != 1:
        raise Refused(errno.EINVAL, f'{len(words)} words; wanted is just {what}')
    return words[0]


async def create(place: Place, words: list[str]) -> None:
    """NAME SIZE LEG [LEG…] [chunk=SIZE] [log=none|internal|PATH] [detect_zeroes=off|on|unmap] [force]"""
    plain = [word for word in words if '=' not in word or word.startswith(('/', '.'))]
    options = dict(word.split('=', 1) for word in words if word not in plain)
    force = 'force' in plain
    plain = [word for word in plain if word != 'force']
    unknown = set(options) - {'chunk', 'log', 'detect_zeroes'}
    if unknown:
        raise Refused(errno.EINVAL, f'{" ".join(sorted(unknown))}: not an option')
    if len(plain) < 3:
        raise Refused(errno.EINVAL, 'wanted is NAME SIZE LEG [LEG…]')
    chunk = parse_size(options['chunk']) if 'chunk' in options else 0
    log = options.get('log', INTERNAL)
    outside = '' if log in (NONE, INTERNAL) else _absolute(log)
    legs = [_absolute(path) for path in plain[2:]]
    zeroes = _choice([options.get('detect_zeroes', 'off')], DetectZeroes)
    request = Request(plain[0], parse_size(plain[1]), legs, chunk, log != NONE, force, outside, zeroes)
    await place.pool.create(request)


def _absolute(path: str) -> str:
    """The daemon has no working directory to speak of."""
    if path != 'missing' and not path.startswith('/'):
        raise Refused(errno.EINVAL, f'{path!r} is not an absolute path')
    return path


async def destroy(place: Place, words: list[str]) -> None:
    """NAME [force]"""
    name, *flags = words
    if flags not in ([], ['force']):
        raise Refused(errno.EINVAL, f'{len(words)} words; wanted is just NAME, and perhaps force')
    if not flags:
        _refuse_to_destroy(place.pool.find(name))
    await place.pool.destroy(name)


def _refuse_to_destroy(entry: Entry) -> None:
    """Raise Refused(EBUSY) where more would be lost than legs can tell."""
    if not entry.started:
        lost = 'what the pool knows of its legs, which of them are stale, would be lost'
        raise Refused(errno.EBUSY, f'{entry.name} does not run: {entry.refusal}; {lost}; say force to do it')
    if entry.split_off:
        leg, size = entry.split_off.leg.path, format_size(entry.split_off.size)
        lost = f'it could be merged no more but by copying all {size}'
        raise Refused(errno.EBUSY, f'{leg} of {entry.name} is split off, and {lost}; merge it, or say force')


async def add(place: Place, words: list[str]) -> None:
    """PATH [force] [spare] [write_mostly] [failfast]"""
    path, *flags = words
    known = {'force': 'force', 'spare': 'spare', 'failfast': 'failfast'}
    known |= {'write_mostly': 'write_mostly', 'writemostly': 'write_mostly'}
    unknown = set(flags) - set(known)
    if unknown:
        raise Refused(errno.EINVAL, f'{" ".join(sorted(unknown))}: not a flag of add')
    await place.volume.require()[1].add(_absolute(path), **{known[flag]: True for flag in flags})


async def shared_spares(place: Place, words: list[str]) -> None:
    """add PATH [SIZE] [force], or remove PATH|UUID; with SIZE a file is made"""
    verb, *rest = words
    if verb == 'remove':
        await place.pool.spares.remove(_one(rest, 'PATH or UUID'))
        return
    path, *more = rest or ['']
    sizes = [word for word in more if word != 'force']
    if verb != 'add' or not path or len(sizes) > 1:
        raise Refused(errno.EINVAL, 'wanted is add PATH [SIZE] [force], or remove PATH')
    size = parse_size(sizes[0]) if sizes else 0
    await place.pool.spares.add(_absolute(path), size=size, force='force' in more)


async def replace(place: Place, words: list[str]) -> None:
    """LEG NEWPATH [force]; NEWPATH may be a spare's, or `spare`."""
    if len(words) not in (2, 3) or words[2:] not in ([], ['force']):
        raise Refused(errno.EINVAL, 'wanted is LEG NEWPATH [force]')
    leg, path = words[:2]
    path = path if path == 'spare' else _absolute(path)
    await place.volume.require()[1].replace(leg, path, force=len(words) == 3)


async def set_raid_disks(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].set_raid_disks(_number(words, 'a number of legs', 1, limits.LEGS_MAX))


async def set_path(place: Place, words: list[str]) -> None:
    """The leg lies there, or shall: see `Admin.move`."""
    path = _absolute(_one(words, 'PATH'))
    await place.volume.require()[1].move(str(place.number), path)


async def set_state(place: Place, words: list[str]) -> None:
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


async def set_backlog(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].set_backlog(_number(words, 'a number of writes', 0, limits.BACKLOG_MAX))


async def reset_max_backlog(place: Place, words: list[str]) -> None:
    for backlog in facts.backlogs(place.volume):
        backlog.most = 0


async def set_spare_delay(place: Place, words: list[str]) -> None:
    seconds = _seconds(words)
    if not 0 <= seconds <= limits.SPARE_DELAY_MAX:
        raise Refused(errno.EINVAL, f'{seconds:g} seconds; wanted is 0 to {limits.SPARE_DELAY_MAX:g}')
    await _settle_record(place, spare_delay_ms=round(seconds * 1000))


async def set_return_policy(place: Place, words: list[str]) -> None:
    await _settle_record(place, return_policy=_choice(words, ReturnPolicy))


def _choice(words: list[str], choices: type[E]) -> E:
    """Return the one of an enumeration whose name, in small letters, was written.  Raises Refused(EINVAL)."""
    known = {choice.name.lower(): choice for choice in choices}
    word = _one(words, ', '.join(known))
    if word not in known:
        raise Refused(errno.EINVAL, f'{word[:40]!r} is not one of {", ".join(known)}')
    return known[word]


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


async def remove(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].remove(_one(words, 'LEG'))


async def fail(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].fail(_one(words, 'LEG'))


async def re_add(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].re_add(_one(words, 'LEG or missing'))


async def split(place: Place, words: list[str]) -> None:
    await place.volume.require()[1].split(_one(words, 'LEG'))


async def merge(place: Place, words: list[str]) -> None:
    """LEG, or the name of its image"""
    word = _one(words, f'LEG or {place.volume.name}{SUFFIX}')
    await place.volume.require()[1].merge('' if word == f'{place.volume.name}{SUFFIX}' else word)


async def resolve(place: Place, words: list[str]) -> None:
    if len(words) != 2 or words[0] != 'keep':
        raise Refused(errno.EINVAL, f'{" ".join(words)!r}; wanted is: keep LEG')
    await place.pool.resolve(place.volume.name, words[1])


async def set_size(place: Place, words: list[str]) -> None:
    started, _ = place.volume.require()
    await started.volume.grow(parse_size(_one(words, 'SIZE')))


async def sync_action(place: Place, words: list[str]) -> None:
    """md's words, with its rules: idle may begin what is needed, a named action is EBUSY while one runs.

    What md lacks: ``repair LEG [force]`` makes the others equal to that leg.
    """
    started, admin = place.volume.require()
    rebuilder = started.rebuilder
    force = words[0] == 'repair' and len(words) == 3 and words[2] == 'force'
    source = admin.find(words[1]) if words[0] == 'repair' and (force or len(words) == 2) else None
    if source is not None and not force:
        _refuse_to_outvote(rebuilder.scrub.state, source, f'leg {words[1]} of {place.volume.name}')
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


def _refuse_to_outvote(found: Scrub, slot: int, what: str) -> None:
    """Raise Refused(EBUSY) for a leg that, by the last pass, differs from what most legs hold."""
    places, lost = found.outvoted(slot)
    if places:
        message = f'{what} differs from what most legs hold in {places} places; their {format_size(lost)}'
        raise Refused(errno.EBUSY, f'{message} would be lost: repair takes the majority, or say force')


def _number(words: list[str], what: str, least: int, most: int) -> int:
    """Return the one number that was written.  Raises Refused(EINVAL)."""
    word = _one(words, what)
    if not (word.isascii() and word.isdigit() and len(word) < 20 and least <= int(word) <= most):
        raise Refused(errno.EINVAL, f'{word[:40]!r} is not {what}')
    return int(word)


async def set_sync_min(place: Place, words: list[str]) -> None:
    rebuilder = place.volume.require()[0].rebuilder
    sectors = _number(words, 'a number of sectors', 0, _SECTORS_MAX)
    if rebuilder.progress:
        raise Refused(errno.EBUSY, f'{rebuilder.action} is under way')
    await rebuilder.scrub.set_sync_min(sectors)


async def set_sync_max(place: Place, words: list[str]) -> None:
    rebuilder = place.volume.require()[0].rebuilder
    everything = _one(words, 'a number of sectors or max').startswith('max')  # all that md looks at
    sectors = None if everything else _number(words, 'a number of sectors or max', 0, _SECTORS_MAX)
    await rebuilder.scrub.set_sync_max(sectors)


async def set_sync_mode(place: Place, words: list[str]) -> None:
    await place.volume.require()[0].rebuilder.scrub.set_mode(_one(words, ' or '.join(MODES)))


def speed_setter(key: str) -> Action:
    async def act(place: Place, words: list[str]) -> None:
        what = 'KiB/s or system'
        system = _one(words, what).startswith('system')
        value = 0 if system else _number(words, what, 1, limits.SPEED_SET_MAX)
        await _settle_record(place, **{key: value})

    return act


async def set_time_base(place: Place, words: list[str]) -> None:
    seconds = _seconds(words)
    if not limits.TIME_BASE_MIN <= seconds <= limits.TIME_BASE_MAX:
        most = f'{limits.TIME_BASE_MIN} to {limits.TIME_BASE_MAX}'
        raise Refused(errno.EINVAL, f'{seconds:g} seconds; wanted is {most}')
    await _settle_record(place, time_base_ms=round(seconds * 1000))


async def set_max_read_errors(place: Place, words: list[str]) -> None:
    most = _number(words, 'a number of errors', 0, limits.MAX_READ_ERRORS_MAX)
    await _settle_record(place, max_read_errors=most)


async def set_errors(place: Place, words: list[str]) -> None:
    count = _number(words, 'a number of errors', 0, limits.MAX_READ_ERRORS_MAX)
    await place.volume.require()[1].set_corrected(place.slot, count)


async def list_bad(place: Place, words: list[str]) -> None:
    """SECTOR LENGTH, as it is read"""
    if len(words) != 2:
        raise Refused(errno.EINVAL, f'{len(words)} words; wanted is SECTOR LENGTH')
    sector, count = (_number([word], 'a number of sectors', 0, _SECTORS_MAX) for word in words)
    await place.volume.require()[1].list_bad(place.slot, sector, count)


async def set_quorum(place: Place, words: list[str]) -> None:
    least = _number(words, 'the least number of legs in sync for writes', 1, limits.LEGS_MAX)
    await place.volume.require()[0].volume.quorum.change(quorum=least)


async def set_quorum_policy(place: Place, words: list[str]) -> None:
    await place.volume.require()[0].volume.quorum.change(quorum_policy=_choice(words, WriterPolicy))


async def set_detect_zeroes(place: Place, words: list[str]) -> None:
    await place.volume.require()[0].volume.space.detect_zeroes(_choice(words, DetectZeroes))


async def set_location(place: Place, words: list[str]) -> None:
    """none, internal or a path, with md's spellings for internal: +N, -N, N; force overwrites a file."""
    word, *flags = words
    if set(flags) - {'force'}:
        raise Refused(errno.EINVAL, f'{" ".join(flags)}: wanted is none, internal or PATH, and perhaps force')
    if re.fullmatch(r'[+-]?\d*[1-9]\d*', word):
        word = INTERNAL
    if word not in (NONE, INTERNAL):
        word = _absolute(word)
    if word == NONE and not flags:
        refuse_to_forget(place.volume.require()[0].volume)
    await place.volume.require()[1].move_log(word, force='force' in flags)


async def can_clear(place: Place, words: list[str]) -> None:
    word = _one(words, 'true or false')
    if word not in ('true', 'false'):
        raise Refused(errno.EINVAL, f'{word!r} is neither true nor false')
    place.volume.require()[0].clearer.allowed = word == 'true'
