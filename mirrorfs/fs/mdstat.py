"""What the mount says of itself: ``mdstat`` in the form of /proc/mdstat, ``status.json`` for programs."""

import json
import os
from collections.abc import Iterable
from typing import Any

import trio

import mirrorfs
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.leg.base import Leg
from mirrorfs.metadata.wibm import pages_for
from mirrorfs.mirror.comparing import UNIT_SECTORS, Mismatch, with_names
from mirrorfs.model import LegState, Slot, VolumeRecord, WriterPolicy
from mirrorfs.pool import Entry, Pool
from mirrorfs.sharing import SharedSpare
from mirrorfs.volume.logplace import place_of
from mirrorfs.volume.passes import Progress
from mirrorfs.volume.splitting import SUFFIX

_BAR = 20


def mdstat(entries: Iterable[Entry]) -> str:
    """Return all volumes in the format of /proc/mdstat (md's `md_seq_show`)."""
    lines = ['Personalities : [raid1] ']
    for entry in entries:
        lines += _volume_lines(entry)
        lines.append('')
    return '\n'.join([*lines, 'unused devices: <none>', ''])


def _volume_lines(entry: Entry) -> list[str]:
    record = entry.record
    if record is None or not entry.started:
        return [f'{entry.name} : inactive', f'      {record.size // 1024 if record else 0} blocks']
    rebuilder, volume = entry.started.rebuilder, entry.started.volume
    apart = (LegState.VACANT, LegState.SPLIT)
    present = [(n, s) for n, s in enumerate(record.slots) if s.state not in apart]
    present.sort(key=lambda pair: record.place(pair[0]), reverse=True)
    legs = ' '.join(f'{slot.path}[{record.place(number)}]{_mark(slot)}' for number, slot in present)
    up = len(volume.keeper.counting)
    kib = record.size // 1024
    lines = [
        f'{entry.name} : active raid1 {legs}',
        f'      {kib} blocks super wibm [{record.raid_disks}/{up}] [{_map(record, volume.keeper.counting)}]',
    ]
    if rebuilder.progress:
        lines.append(_progress_line(rebuilder.progress))
    elif rebuilder.doubtful():
        lines.append('      \tresync=PENDING')
    if record.logged:
        chunk = record.chunk_size // 1024
        pages = pages_for(record.chunks)
        used = pages if volume.log.count(DIRTY) else 0
        file = f', file: {record.log_path}' if record.log_is_outside else ''
        lines.append(f'      bitmap: {used}/{pages} pages [{pages * 4}KB], {chunk}KB chunk{file}')
    return lines


def _mark(slot: Slot) -> str:
    """Return md's letters for a leg: write-mostly, then failed, or idle spare or replacement."""
    mostly = '(W)' if slot.write_mostly else ''
    if slot.state.is_stale:
        return f'{mostly}(F)'
    idle = '(S)' if slot.state is LegState.STANDBY else ''
    return f'{mostly}{idle}(R)' if slot.replaces >= 0 else f'{mostly}{idle}'


def bitmap_word(record: VolumeRecord) -> str:
    """Return md's word for where the log is."""
    return 'external' if record.log_is_outside else place_of(record)


def _map(record: VolumeRecord, in_sync: list[int]) -> str:
    """Return md's map of the array, ``UU_``: a letter for each leg that is wanted, those there first."""
    known = [n for n in record.where(LegState.IN_SYNC, LegState.SPARE) if record.slots[n].replaces < 0]
    known += [n for n, s in enumerate(record.slots) if s.state.is_stale]
    places = sorted(known[: record.raid_disks], key=record.place)
    letters = ['U' if number in in_sync else '_' for number in places]
    return ''.join(letters).ljust(record.raid_disks, '_')


def _progress_line(progress: Progress) -> str:
    """Return md's progress line; units KiB, minutes with tenths, K/sec."""
    done, total = progress.done // 1024, max(1, progress.total // 1024)
    permille = min(1000, done * 1000 // total)
    filled = permille // (1000 // _BAR)
    bar = '=' * filled + '>' + '.' * (_BAR - filled)
    word = {'recover': 'recovery', 'repair': 'resync'}.get(progress.action, progress.action)
    speed = max(1, int(progress.speed(trio.current_time()) / 1024))
    tenths = (total - done) * 10 // speed // 60
    return (
        f'      [{bar}]  {word} ={permille // 10:3d}.{permille % 10}% ({done}/{total}) '
        f'finish={tenths // 10}.{tenths % 10}min speed={speed}K/sec'
    )


def status(pool: Pool, mountpoint: str) -> str:
    """Return everything, as the JSON text of status.json."""
    return json.dumps(
        {
            'version': mirrorfs.__version__,
            'pid': os.getpid(),
            'pool': str(pool.directory.path),
            'mountpoint': mountpoint,
            'spares': [_spare(spare) for spare in pool.spares.spares],
            'volumes': [volume_status(entry) for entry in pool.entries.values()],
        },
        indent=1,
    )


def _spare(spare: SharedSpare) -> dict[str, Any]:
    claim = spare.listed.claim
    return {
        'path': spare.path,
        'uuid': str(spare.listed.uuid),
        'size': spare.size,
        'state': spare.state,
        'why': spare.why,
        'volume': claim.name if claim else None,
    }


def volume_status(entry: Entry) -> dict[str, Any]:
    """Return one volume's facts.  Sizes in bytes, chunk counts as counts."""
    record = entry.record
    if record is None:
        return {'name': entry.name, 'state': 'inactive', 'refusal': entry.refusal}
    facts: dict[str, Any] = {
        'name': record.name,
        'state': 'inactive',
        'refusal': entry.refusal,
        'split': entry.split.lines() if entry.split else [],
        'uuid': str(record.uuid),
        'size': record.size,
        'chunk_size': record.chunk_size,
        'raid_disks': record.raid_disks,
        'spare_delay': record.spare_delay_ms / 1000,
        're_add_policy': record.return_policy.name.lower(),
        'degraded': record.degraded,
        'events': record.events,
        'max_read_errors': record.max_read_errors,
        'quorum': record.quorum,
        'quorum_policy': record.quorum_policy.name.lower(),
        'detect_zeroes': record.detect_zeroes.name.lower(),
        'bitmap': bitmap_word(record),
        'bitmap_location': place_of(record),
        'log_trouble': _log_trouble(entry),
        'legs': [],
    }
    if entry.started:
        facts |= _running(entry)
    for number in sorted(range(len(record.slots)), key=record.place):
        if record.slots[number].state is not LegState.VACANT:
            facts['legs'].append(_leg(entry, number))
    return facts


def _log_trouble(entry: Entry) -> str:
    """Return why there is no log, where nobody wanted that."""
    if not entry.started or entry.started.volume.record.logged:
        return ''
    return entry.started.volume.keeper.log_trouble


def _running(entry: Entry) -> dict[str, Any]:
    assert entry.started
    volume, rebuilder = entry.started.volume, entry.started.rebuilder
    log, counters, hot, scrub = volume.log, volume.counters, volume.hot, rebuilder.scrub.state
    return {
        'state': array_state(entry),
        'broken': volume.broken,
        'degraded': volume.record.raid_disks - len(volume.keeper.counting),
        'quorum_lost': volume.quorum.lost,
        'writes_waiting': volume.quorum.waiting,
        'chunks': {
            'total': len(log),
            'dirty': log.count(DIRTY),
            'modified': log.count(MODIFIED),
            'needs_resync': log.count(NEEDS_RESYNC),
            'unwritten': log.count(UNWRITTEN),
        },
        'sync_action': rebuilder.action,
        'sync': _sync(volume.record, rebuilder.progress),
        'last_sync': _sync(volume.record, rebuilder.last),
        'mismatch_cnt': scrub.differing * UNIT_SECTORS,
        'mismatches': [_mismatch(with_names(place, volume.record.place)) for place in scrub.listed],
        'mismatches_not_listed': scrub.more,
        'io': {
            'reads': hot.reads + counters.reads,
            'writes': hot.writes + counters.writes,
            'read_bytes': hot.read_bytes + counters.read_bytes,
            'written_bytes': hot.written_bytes + counters.written_bytes,
            'zeroed_bytes': counters.zeroed_bytes,
            'flushes': counters.flushes + hot.flushes,
            'lane_reads': hot.reads,
            'lane_writes': hot.writes,
        },
        'log': {'commits': volume.keeper.rounds, 'waiters': volume.keeper.served},
        'resynced_bytes': counters.resynced,
        'recovered_bytes': counters.recovered,
    }


def _mismatch(place: Mismatch) -> dict[str, Any]:
    legs = [{'slots': slots, 'digest': digest} for slots, digest in place.groups]
    return {'offset': place.offset, 'length': place.length, 'legs': legs}


def _sync(record: VolumeRecord, progress: Progress | None) -> dict[str, Any] | None:
    if not progress:
        return None
    speed = progress.speed(trio.current_time())
    place = None if progress.slot is None else record.place(progress.slot)
    return {
        'action': progress.action,
        'slot': place,
        'done_bytes': progress.done,
        'total_bytes': progress.total,
        'speed': int(speed),
        'eta_seconds': int((progress.total - progress.done) / speed) if speed else None,
    }


def _leg(entry: Entry, number: int) -> dict[str, Any]:
    record = entry.record
    assert record
    slot = record.slots[number]
    words = leg_words(entry, number)
    facts = {
        'slot': record.place(number),
        'state': words[0],
        'flags': words[1:],
        'replaces': record.place(slot.replaces) if slot.replaces >= 0 else None,
        'path': slot.path,
        'uuid': str(slot.leg),
        'recovery_start': slot.mark * record.chunk_size if slot.state is LegState.SPARE else None,
        'tracked_since': slot.tracked_since,
        'given_up': _is_given_up(slot),
        'why': _why_away(entry, number),
    }
    if entry.split_off and entry.split_off.slot == number:
        facts['image'] = f'{record.name}{SUFFIX}'
    facts |= _room(entry, number)
    if entry.started and (member := entry.started.volume.keeper.members.get(number)):
        facts |= {
            'errors': member.corrected,
            'read_errors': member.read_errors,
            'write_errors': member.write_errors,
            'bad_blocks': len(member.bad),
            'writes_behind': member.backlog.count if member.backlog else 0,
        }
    return facts


def _is_given_up(slot: Slot) -> bool:
    """Whether a leg may have a history of its own: it is not re-added, but removed and added by force."""
    return slot.state.is_stale and slot.full and not slot.mark and not slot.tracked_since


def _why_away(entry: Entry, number: int) -> str:
    """Return why a leg is not in use, as far as was seen since the start; empty for one that is."""
    if not entry.started or number in entry.started.volume.keeper.members:
        return ''
    return entry.started.volume.left.get(number) or entry.started.plan.stale.get(number, '')


def _room(entry: Entry, number: int) -> dict[str, int | None]:
    """Return what a leg's file takes, what it can take at most, and what its filesystem has left.  Bytes."""
    assert entry.record
    member = entry.started.volume.keeper.members.get(number) if entry.started else None
    leg = member.leg if member else _idle_leg(entry, number)
    room = leg.room if leg else None
    return {
        'occupied': room.occupied if room else None,
        'occupied_max': member.layout.data_offset + entry.record.size if member else None,
        'free': room.free if room else None,
    }


def _idle_leg(entry: Entry, number: int) -> Leg | None:
    """Return a leg that is held open though it takes no part."""
    if entry.split_off and entry.split_off.slot == number:
        return entry.split_off.leg
    spare = entry.admin.standby.get(number) if entry.admin else None
    return spare.leg if spare else None


def leg_words(entry: Entry, number: int) -> list[str]:
    """Return the words for a leg, its state first; one that is not there, not yet recorded so, is missing."""
    record = entry.record
    assert record
    slot, volume = record.slots[number], entry.started.volume if entry.started else None
    absent = volume is not None and number in volume.keeper.absent
    words = {
        (LegState.MISSING if absent else slot.state).word: True,
        'write_mostly': slot.write_mostly,
        'blocked': volume is not None and number in volume.blocked,
        'want_replacement': slot.want_replacement,
        'replacement': slot.replaces >= 0,
        'failfast': slot.failfast,
        'behind': slot.behind,
    }
    return [word for word, holds in words.items() if holds]


def leg_state(entry: Entry, number: int) -> str:
    """Return a leg's words as md does: faulty, in_sync, write_mostly, blocked, spare, … with commas."""
    words = leg_words(entry, number)
    if words[0] == 'spare':  # md names what a leg is after what it is good for
        at = sum(word in words for word in ('write_mostly', 'blocked'))
        words.insert(at, words.pop(0))
    return ','.join(words)


def array_state(entry: Entry) -> str:
    """Return md's word for the volume's state."""
    if not entry.started:
        return 'inactive'
    volume = entry.started.volume
    if volume.broken:
        return 'broken'
    if volume.quorum.lost and volume.record.quorum_policy is WriterPolicy.READONLY:
        return 'readonly'
    if volume.quorum.waiting:
        return 'write-pending'
    return 'active' if volume.record.active else 'clean'
