"""What the mount says of itself: ``mdstat`` in the form of /proc/mdstat, ``status.json`` for programs."""

import json
import os
from collections.abc import Iterable
from typing import Any

import trio

import mirrorfs
from mirrorfs.intent.states import DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.metadata.wibm import pages_for
from mirrorfs.model import LegState, VolumeRecord, WriterPolicy
from mirrorfs.pool import Entry, Pool
from mirrorfs.volume.rebuild import Progress

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
    present = [(n, s) for n, s in enumerate(record.slots) if s.state is not LegState.VACANT]
    legs = ' '.join(f'{slot.path}[{number}]{_mark(slot.state)}' for number, slot in reversed(present))
    up = len(volume.keeper.in_sync)
    kib = record.size // 1024
    lines = [
        f'{entry.name} : active raid1 {legs}',
        f'      {kib} blocks super wibm [{record.raid_disks}/{up}] [{_map(record, volume.keeper.in_sync)}]',
    ]
    if rebuilder.progress:
        lines.append(_progress_line(rebuilder.progress))
    if record.logged:
        chunk = record.chunk_size // 1024
        pages = pages_for(record.chunks)
        used = pages if volume.log.count(DIRTY) else 0
        lines.append(f'      bitmap: {used}/{pages} pages [{pages * 4}KB], {chunk}KB chunk')
    return lines


def _mark(state: LegState) -> str:
    if state is LegState.SPARE:
        return '(S)'
    return '(F)' if state.is_stale else ''


def _map(record: VolumeRecord, in_sync: list[int]) -> str:
    """Return md's map of the array, ``UU_``: a letter for each place, legs in sync first by slot."""
    known = [n for n, s in enumerate(record.slots) if s.state in (LegState.IN_SYNC, LegState.SPARE)]
    known += [n for n, s in enumerate(record.slots) if s.state.is_stale]
    places = sorted(known[: record.raid_disks])
    letters = ['U' if number in in_sync else '_' for number in places]
    return ''.join(letters).ljust(record.raid_disks, '_')


def _progress_line(progress: Progress) -> str:
    """Return md's progress line; units KiB, minutes with tenths, K/sec."""
    done, total = progress.done // 1024, max(1, progress.total // 1024)
    permille = min(1000, done * 1000 // total)
    filled = permille // (1000 // _BAR)
    bar = '=' * filled + '>' + '.' * (_BAR - filled)
    word = 'recovery' if progress.action == 'recover' else progress.action
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
            'volumes': [volume_status(entry) for entry in pool.entries.values()],
        },
        indent=1,
    )


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
        'degraded': record.degraded,
        'events': record.events,
        'bitmap': 'internal' if record.logged else 'none',
        'quorum': record.quorum,
        'quorum_policy': record.quorum_policy.name.lower(),
        'legs': [],
    }
    if entry.started:
        facts |= _running(entry)
    for number, slot in enumerate(record.slots):
        if slot.state is not LegState.VACANT:
            facts['legs'].append(_leg(entry, number))
    return facts


def _running(entry: Entry) -> dict[str, Any]:
    assert entry.started
    volume, rebuilder = entry.started.volume, entry.started.rebuilder
    log, counters, hot = volume.log, volume.counters, volume.hot
    return {
        'state': array_state(entry),
        'broken': volume.broken,
        'quorum_lost': volume.quorum.lost,
        'writes_waiting': volume.quorum.waiting,
        'degraded': volume.record.raid_disks - len(volume.keeper.in_sync),
        'chunks': {
            'total': len(log),
            'dirty': log.count(DIRTY),
            'modified': log.count(MODIFIED),
            'needs_resync': log.count(NEEDS_RESYNC),
            'unwritten': log.count(UNWRITTEN),
        },
        'sync_action': rebuilder.action,
        'sync': _sync(rebuilder.progress),
        'last_sync': _sync(rebuilder.last),
        'io': {
            'reads': hot.reads + counters.reads,
            'writes': hot.writes + counters.writes,
            'read_bytes': hot.read_bytes + counters.read_bytes,
            'written_bytes': hot.written_bytes + counters.written_bytes,
            'flushes': counters.flushes,
            'lane_reads': hot.reads,
            'lane_writes': hot.writes,
        },
        'log': {'commits': volume.keeper.rounds, 'waiters': volume.keeper.served},
        'resynced_bytes': counters.resynced,
        'recovered_bytes': counters.recovered,
    }


def _sync(progress: Progress | None) -> dict[str, Any] | None:
    if not progress:
        return None
    speed = progress.speed(trio.current_time())
    return {
        'action': progress.action,
        'slot': progress.slot,
        'done_bytes': progress.done,
        'total_bytes': progress.total,
        'speed': int(speed),
        'eta_seconds': int((progress.total - progress.done) / speed) if speed else None,
    }


def _leg(entry: Entry, number: int) -> dict[str, Any]:
    record = entry.record
    assert record
    slot = record.slots[number]
    facts = {
        'slot': number,
        'state': leg_state(entry, number),
        'path': slot.path,
        'uuid': str(slot.leg),
        'recovery_start': slot.mark * record.chunk_size if slot.state is LegState.SPARE else None,
        'tracked_since': slot.tracked_since,
    }
    if entry.started and (member := entry.started.volume.keeper.members.get(number)):
        facts |= {'read_errors': member.read_errors, 'write_errors': member.write_errors}
    return facts


def leg_state(entry: Entry, number: int) -> str:
    """Return the word for a leg's state; one that is not there, but not yet recorded so, is missing."""
    record = entry.record
    assert record
    if entry.started and number in entry.started.volume.keeper.absent:
        return LegState.MISSING.word
    return record.slots[number].state.word


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
