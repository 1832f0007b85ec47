"""What control files say: functions from a place to a text, in md's forms."""

from collections.abc import Callable

import trio

from mirrorfs import limits
from mirrorfs.fs.place import Place, Reader
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, WORDS
from mirrorfs.mirror.badblocks import only_there
from mirrorfs.mirror.behind import Backlog
from mirrorfs.mirror.comparing import with_names
from mirrorfs.model import LegState, Slot
from mirrorfs.pool import Entry
from mirrorfs.volume.rebuild import Rebuilder


def running(read: Callable[[Entry], object]) -> Reader:
    """Make a reader of a fact that only a started volume has; others read as an empty line."""
    return lambda place: f'{read(place.volume)}\n' if place.volume.started else '\n'


def recorded(read: Callable[[Entry], object]) -> Reader:
    """Make a reader of a fact that the record holds."""
    return lambda place: f'{read(place.volume)}\n' if place.volume.record else '\n'


def rebuilder(entry: Entry) -> Rebuilder:
    assert entry.started
    return entry.started.rebuilder


def sync_completed(entry: Entry) -> str:
    progress = rebuilder(entry).progress
    if not progress:
        return 'none'
    if progress.position is not None:
        return f'{progress.position // limits.SECTOR} / {progress.end // limits.SECTOR}'
    return f'{progress.done // limits.SECTOR} / {progress.total // limits.SECTOR}'


def sync_speed(entry: Entry) -> str:
    progress = rebuilder(entry).progress
    return f'{int(progress.speed(trio.current_time())) // 1024}' if progress else 'none'


def sync_max(entry: Entry) -> str:
    sync_max = rebuilder(entry).scrub.state.sync_max
    return 'max' if sync_max is None else str(sync_max)


def last_action(entry: Entry) -> str:
    last = rebuilder(entry).progress or rebuilder(entry).last
    return last.action if last else 'idle'


def mismatches(place: Place) -> str:
    """Where legs differ, which, and a digest of what each holds: a line for each place."""
    started, _ = place.volume.require()
    scrub, record = started.rebuilder.scrub.state, started.volume.record
    lines = [with_names(mismatch, record.place).line for mismatch in scrub.listed]
    if scrub.more:
        lines.append(f'and {scrub.more} more')
    return ''.join(f'{line}\n' for line in lines)


def speed(own: int, default: int) -> str:
    """md's form: whose value it is in brackets."""
    return f'{own} (local)' if own else f'{default} (system)'


def states(place: Place) -> str:
    """How many chunks have each flag, and how many have none."""
    started, _ = place.volume.require()
    log = started.volume.log
    lines = [f'{word} {log.count(flag)}' for flag, word in WORDS.items()]
    clean = len(log.where(0, DIRTY | MODIFIED | NEEDS_RESYNC | UNWRITTEN))
    return '\n'.join([f'clean {clean}', *lines, ''])


def time_base(entry: Entry) -> str:
    assert entry.record
    whole, part = divmod(entry.record.time_base_ms, 1000)
    return f'{whole}.{part:03d}' if part else f'{whole}'


def backlogs(entry: Entry) -> list[Backlog]:
    members = entry.require()[0].volume.members
    return [member.backlog for member in members if member.backlog]


def max_backlog(entry: Entry) -> int:
    return max((backlog.most for backlog in backlogs(entry)), default=0)


def spare_delay(entry: Entry) -> str:
    assert entry.record
    return f'{entry.record.spare_delay_ms / 1000:g}'


def _slot(place: Place) -> Slot:
    assert place.volume.record
    return place.volume.record.slots[place.slot]


def path(place: Place) -> str:
    return f'{_slot(place).path}\n'


def leg_uuid(place: Place) -> str:
    return f'{_slot(place).leg}\n'


def recovery_start(place: Place) -> str:
    record = place.volume.record
    slot = record.slots[place.slot] if record else None
    if not record or not slot or slot.state is not LegState.SPARE:
        return 'none\n'
    return f'{slot.mark * record.chunk_size // limits.SECTOR}\n'


def errors(place: Place) -> str:
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    return f'{member.corrected if member else 0}\n'


def bad_blocks(place: Place) -> str:
    """md's form: a line ``sector length`` for each range that is durably listed."""
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    return member.bad_stored.lines() if member else ''


def unacknowledged(place: Place) -> str:
    """What is to be listed, and is not yet so on the leg."""
    started, _ = place.volume.require()
    member = started.volume.keeper.members.get(place.slot)
    if not member or member.bad is member.bad_stored:
        return ''
    return only_there(member.bad_stored, [member.bad]).lines()


def sides(place: Place) -> str:
    """The histories to choose from, a line each."""
    split = place.volume.split
    return ''.join(f'{line}\n' for line in split.lines()) if split else 'none\n'


def shared_spares(place: Place) -> str:
    """The spares that volumes share, a line each: path, UUID, size in bytes, state."""
    spares = place.pool.spares.spares
    return ''.join(f'{spare.path} {spare.listed.uuid} {spare.size} {spare.state}\n' for spare in spares)
