"""The control file ``metrics``: what the mount says of itself, for Prometheus.

What something is, of several, is a set of series, one for each word, 1 for that which holds and 0 for the
others, as node_exporter has it for md.  Nothing here goes through an array, and trio's thread is not held for
longer than one volume takes.
"""

import functools
import os
import time

import trio

import mirrorfs
from mirrorfs import limits
from mirrorfs.fs import mdstat
from mirrorfs.fs.exposition import Exposition, Family, labels
from mirrorfs.fs.place import Place
from mirrorfs.intent.states import WORDS
from mirrorfs.mirror.comparing import UNIT_SECTORS
from mirrorfs.mirror.member import Member
from mirrorfs.model import LegState
from mirrorfs.pool import Entry
from mirrorfs.volume.passes import Progress
from mirrorfs.volume.volume import Volume

VOLUME_STATES = ('inactive', 'clean', 'active', 'write-pending', 'readonly', 'broken')
ACTIONS = ('idle', 'frozen', 'resync', 'recover', 'check', 'repair')
LEG_STATES = tuple(dict.fromkeys(state.word for state in LegState if state is not LegState.VACANT))
LEG_FLAGS = ('write_mostly', 'blocked', 'want_replacement', 'replacement', 'failfast', 'behind')
SPARE_STATES = ('spare', 'claimed', 'faulty', 'missing')
_BEGAN = time.monotonic()
_counter, _gauge, _histogram = (functools.partial(Family, kind) for kind in ('counter', 'gauge', 'histogram'))

_POOL = {
    'up': _gauge('Whether the pool is served.'),
    'info': _gauge('Version, pool directory, mount point and process of the daemon; always 1.'),
    'uptime_seconds': _gauge('How long the daemon has been running.'),
    'lanes_superseded_total': _counter('Lanes that hung in a call on a leg and were replaced.'),
    'events_total': _counter('Events since the daemon began, by name.'),
    'shared_spares': _gauge('Spares that the volumes share, by state.'),
}
_VOLUME = {
    'state': _gauge("md's word for the volume's state: 1 for the one that holds."),
    'size_bytes': _gauge('Size of the image.'),
    'legs_wanted': _gauge('Legs that the volume is to have.'),
    'legs_missing': _gauge('Legs that it lacks: degraded if above 0.'),
    'quorum_lost': _gauge('Whether fewer legs are in sync than writes need.'),
    'writes_waiting': _gauge('Writes that wait for legs.'),
    'chunks': _gauge('Chunks of the intent log.'),
    'chunks_flagged': _gauge('Chunks with a flag; flags combine, so this does not add up to all.'),
    'log_info': _gauge('Where the intent log is: internal, external or none; always 1.'),
    'log_lost': _gauge('Whether the log failed and nobody has said yet where a new one is to be.'),
    'log_commits_total': _counter('Rounds in which the log and superblocks were made durable.'),
    'log_commits_served_total': _counter('Who waited for them: writers, and the daemon itself.'),
    'log_commit_seconds': _histogram('How long a round took.'),
    'log_commit_served': _histogram('How many one round served.'),
    'reads_total': _counter('Reads that succeeded.'),
    'writes_total': _counter('Writes that succeeded.'),
    'flushes_total': _counter('Flushes: fsync and fdatasync, and those of the daemon itself.'),
    'read_bytes_total': _counter('Bytes read.'),
    'written_bytes_total': _counter('Bytes written.'),
    'lane_reads_total': _counter('Of the reads, those that the data lane served alone.'),
    'lane_writes_total': _counter('Of the writes, those that the data lane served alone.'),
    'request_errors_total': _counter('Requests that failed to the caller.'),
    'request_seconds': _histogram('How long requests took that the lane did not serve alone.'),
    'lane_sample_seconds': _histogram(
        'How long requests took that the lane served alone: of samples, and so is the count.'
    ),
    'lane_flush_seconds': _histogram('How long flushes took that went from the lane straight to the legs.'),
    'sync_action': _gauge('What is done in the background: 1 for what holds.'),
    'sync_done_bytes': _gauge('How much of the pass under way is done.'),
    'sync_total_bytes': _gauge('How much the pass under way has to do.'),
    'sync_speed_bytes': _gauge('Bytes a second of the pass under way, lately.'),
    'resynced_bytes_total': _counter('Bytes copied to make legs equal.'),
    'recovered_bytes_total': _counter('Bytes copied to bring legs up to date.'),
    'mismatch_bytes': _gauge('How much differed when legs were last compared, by 64 KiB.'),
}
_LEG = {
    'state': _gauge("The leg's state: 1 for the one that holds."),
    'flag': _gauge('What else holds of the leg: 1, or 0.'),
    'call_seconds': _histogram('How long calls on it took, by kind, without those of the lane.'),
    'call_bytes_total': _counter('Bytes of the calls that succeeded.'),
    'call_errors_total': _counter(
        'Calls that failed; what fails in the lane is tried again, and so is here.'
    ),
    'calls_in_flight': _gauge('Calls under way, abandoned ones included.'),
    'mended_blocks': _gauge('Blocks that were unreadable and are mended; the admin may reset it.'),
    'bad_blocks': _gauge('Entries of the bad-block list.'),
    'backlog_writes': _gauge('Writes that a write-mostly leg is behind.'),
}
FAMILIES = {
    f'mirrorfs_{prefix}{name}': family
    for prefix, families in (('', _POOL), ('volume_', _VOLUME), ('leg_', _LEG))
    for name, family in families.items()
}


async def metrics(place: Place) -> bytes:
    """Return everything, in the text format."""
    into = Exposition(FAMILIES)
    pool = labels(pool=str(place.pool.directory.path))  # on all: a host may have several
    _add_pool(into, pool, place)
    for entry in list(place.pool.entries.values()):
        while entry.started and entry.started.volume.log.count_some():
            await trio.lowlevel.checkpoint()
        _add_volume(into, f'{pool},{labels(volume=entry.name)}', entry)
        await trio.lowlevel.checkpoint()
    return b''.join([part.encode() async for part in into.text()])


def _add_pool(into: Exposition, about: str, place: Place) -> None:
    where = labels(mountpoint=place.mountpoint)
    daemon = labels(version=mirrorfs.__version__, pid=str(os.getpid()))
    into.add('mirrorfs_up', f'{about},{where}', 1)  # who looks writes 0 where nobody answers
    into.add('mirrorfs_info', f'{about},{where},{daemon}', 1)
    into.add('mirrorfs_uptime_seconds', about, time.monotonic() - _BEGAN)
    into.add('mirrorfs_lanes_superseded_total', about, place.gateway.superseded if place.gateway else 0)
    for word, count in sorted(place.pool.events.emitted.items()):
        into.add('mirrorfs_events_total', f'{about},{labels(event=word)}', count)
    states = [spare.state for spare in place.pool.spares.spares]
    for word in SPARE_STATES:
        into.add('mirrorfs_shared_spares', f'{about},{labels(state=word)}', states.count(word))


def _add_volume(into: Exposition, about: str, entry: Entry) -> None:
    record = entry.record
    into.add_set('mirrorfs_volume_state', about, 'state', VOLUME_STATES, [mdstat.array_state(entry)])
    if record is None:
        return
    into.add('mirrorfs_volume_size_bytes', about, record.size)
    into.add('mirrorfs_volume_legs_wanted', about, record.raid_disks)
    missing = record.degraded
    if entry.started:
        volume = entry.started.volume
        missing = record.raid_disks - len(volume.keeper.counting)
        _add_health(into, about, volume)
        _add_log(into, about, volume)
        _add_requests(into, about, volume)
        _add_passes(into, about, entry)
    into.add('mirrorfs_volume_legs_missing', about, missing)
    for number, slot in enumerate(record.slots):
        if slot.state is not LegState.VACANT:
            leg = labels(slot=str(record.place(number)), leg=slot.path)
            _add_leg(into, f'{about},{leg}', entry, number)


def _add_health(into: Exposition, about: str, volume: Volume) -> None:
    into.add('mirrorfs_volume_quorum_lost', about, int(volume.quorum.lost))
    into.add('mirrorfs_volume_writes_waiting', about, volume.quorum.waiting)
    into.add('mirrorfs_volume_chunks', about, len(volume.log))
    for flag, word in WORDS.items():
        into.add('mirrorfs_volume_chunks_flagged', f'{about},flag="{word}"', volume.log.count(flag))


def _add_log(into: Exposition, about: str, volume: Volume) -> None:
    record, keeper = volume.record, volume.keeper
    where = labels(place=mdstat.bitmap_word(record), path=record.log_path if record.log_is_outside else '')
    into.add('mirrorfs_volume_log_info', f'{about},{where}', 1)
    into.add('mirrorfs_volume_log_lost', about, int(bool(volume.keeper.log_trouble) and not record.logged))
    into.add('mirrorfs_volume_log_commits_total', about, keeper.rounds)
    into.add('mirrorfs_volume_log_commits_served_total', about, keeper.served)
    into.add_histogram('mirrorfs_volume_log_commit_seconds', about, keeper.round_seconds)
    into.add_histogram('mirrorfs_volume_log_commit_served', about, keeper.round_served)


def _add_requests(into: Exposition, about: str, volume: Volume) -> None:
    counters, hot = volume.counters, volume.hot
    into.add('mirrorfs_volume_reads_total', about, hot.reads + counters.reads)
    into.add('mirrorfs_volume_writes_total', about, hot.writes + counters.writes)
    into.add('mirrorfs_volume_flushes_total', about, hot.flushes + counters.flushes)
    into.add('mirrorfs_volume_read_bytes_total', about, hot.read_bytes + counters.read_bytes)
    into.add('mirrorfs_volume_written_bytes_total', about, hot.written_bytes + counters.written_bytes)
    into.add('mirrorfs_volume_lane_reads_total', about, hot.reads)
    into.add('mirrorfs_volume_lane_writes_total', about, hot.writes)
    for word, seconds in counters.seconds.items():
        operation = f'{about},operation="{word}"'
        into.add('mirrorfs_volume_request_errors_total', operation, counters.errors[word])
        into.add_histogram('mirrorfs_volume_request_seconds', operation, seconds)
    for word, sampled in (('read', hot.lane_reads), ('write', hot.lane_writes)):
        into.add_histogram('mirrorfs_volume_lane_sample_seconds', f'{about},operation="{word}"', sampled)
    into.add_histogram('mirrorfs_volume_lane_flush_seconds', about, hot.lane_flushes)


def _add_passes(into: Exposition, about: str, entry: Entry) -> None:
    """Add what is done in the background; how far a pass is only while there is one."""
    assert entry.started
    rebuilder, counters = entry.started.rebuilder, entry.started.volume.counters
    into.add_set('mirrorfs_volume_sync_action', about, 'action', ACTIONS, [rebuilder.action])
    progress: Progress | None = rebuilder.progress
    if progress:
        into.add('mirrorfs_volume_sync_done_bytes', about, progress.done)
        into.add('mirrorfs_volume_sync_total_bytes', about, progress.total)
        into.add('mirrorfs_volume_sync_speed_bytes', about, int(progress.speed(trio.current_time())))
    into.add('mirrorfs_volume_resynced_bytes_total', about, counters.resynced)
    into.add('mirrorfs_volume_recovered_bytes_total', about, counters.recovered)
    mismatches = rebuilder.scrub.state.differing * UNIT_SECTORS * limits.SECTOR
    into.add('mirrorfs_volume_mismatch_bytes', about, mismatches)


def _add_leg(into: Exposition, about: str, entry: Entry, number: int) -> None:
    words = mdstat.leg_words(entry, number)
    into.add_set('mirrorfs_leg_state', about, 'state', LEG_STATES, words[:1])
    into.add_set('mirrorfs_leg_flag', about, 'flag', LEG_FLAGS, words[1:])
    if not entry.started:
        return
    keeper = entry.started.volume.keeper
    member = keeper.members.get(number) or keeper.quarantine.get(number)
    if member:
        _add_member(into, about, member)


def _add_member(into: Exposition, about: str, member: Member) -> None:
    """Add what is counted of a leg that takes writes, or did so since the start."""
    for word, calls in member.made.by_kind.items():
        kind = f'{about},kind="{word}"'
        into.add_histogram('mirrorfs_leg_call_seconds', kind, calls.seconds)
        into.add('mirrorfs_leg_call_bytes_total', kind, calls.bytes)
        into.add('mirrorfs_leg_call_errors_total', kind, calls.errors)
    into.add('mirrorfs_leg_calls_in_flight', about, member.leg.calls)
    into.add('mirrorfs_leg_mended_blocks', about, member.corrected)
    into.add('mirrorfs_leg_bad_blocks', about, len(member.bad))
    into.add('mirrorfs_leg_backlog_writes', about, member.backlog.count if member.backlog else 0)
