"""Control files: a table from a name to how it is read and what a write to it does.

One write is one command.  A refused one fails in the ``write(2)`` with an errno that says why, changes
nothing, and leaves one line in ``events``.  Words are md's, in the spellings it documents and those it has
in its code; printed are the latter.
"""

import errno
import shlex
from dataclasses import dataclass

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.fs import chunkmap, commands, facts, mdstat
from mirrorfs.fs.facts import rebuilder, recorded, running
from mirrorfs.fs.metrics import metrics
from mirrorfs.fs.place import Action, Gatherer, Place, Reader
from mirrorfs.mirror.comparing import UNIT_SECTORS
from mirrorfs.volume.logplace import place_of


@dataclass(frozen=True, slots=True)
class ControlFile:
    """`read` gives the text, `act` does what the words of one write say; None where that cannot be done.

    `gather` is in the place of `read` where that takes long, and gives way meanwhile.
    """

    read: Reader | None = None
    act: Action | None = None
    gather: Gatherer | None = None

    @property
    def mode(self) -> int:
        """Permission bits: everybody with access to the mount may read, the mounting user may write."""
        return (0o444 if self.read or self.gather else 0) | (0o200 if self.act else 0)

    async def text(self, place: Place) -> bytes:
        """Return what the file says now; nothing where it cannot be read."""
        if self.gather:
            return await self.gather(place)
        return self.read(place).encode() if self.read else b''


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


# The tables

POOL_FILES: dict[str, ControlFile] = {
    'mdstat': ControlFile(lambda place: mdstat.mdstat(place.pool.entries.values())),
    'status.json': ControlFile(lambda place: mdstat.status(place.pool, place.mountpoint) + '\n'),
    'metrics': ControlFile(gather=metrics),
    'events': ControlFile(lambda place: ''),  # a stream: served by the handlers from `EventLog`
    'create': ControlFile(act=commands.create),
    'destroy': ControlFile(act=commands.destroy),
    'spares': ControlFile(facts.shared_spares, commands.shared_spares),
}

VOLUME_FILES: dict[str, ControlFile] = {
    'add': ControlFile(act=commands.add),
    'remove': ControlFile(act=commands.remove),
    'fail': ControlFile(act=commands.fail),
    're-add': ControlFile(act=commands.re_add),
    'replace': ControlFile(act=commands.replace),
    'spare_delay': ControlFile(recorded(facts.spare_delay), commands.set_spare_delay),
    're_add_policy': ControlFile(
        recorded(lambda e: e.record and e.record.return_policy.name.lower()), commands.set_return_policy
    ),
    'split': ControlFile(act=commands.split),
    'merge': ControlFile(act=commands.merge),
    'resolve': ControlFile(facts.sides, commands.resolve),
    'array_state': ControlFile(lambda place: f'{mdstat.array_state(place.volume)}\n'),
    'degraded': ControlFile(recorded(lambda e: mdstat.volume_status(e)['degraded'])),
    'raid_disks': ControlFile(recorded(lambda e: e.record and e.record.raid_disks), commands.set_raid_disks),
    'size': ControlFile(recorded(lambda e: e.record and e.record.size), commands.set_size),
    'uuid': ControlFile(recorded(lambda e: e.record and e.record.uuid)),
    'events': ControlFile(recorded(lambda e: e.record and e.record.events)),
    'quorum': ControlFile(recorded(lambda e: e.record and e.record.quorum), commands.set_quorum),
    'quorum_policy': ControlFile(
        recorded(lambda e: e.record and e.record.quorum_policy.name.lower()), commands.set_quorum_policy
    ),
    'detect_zeroes': ControlFile(
        recorded(lambda e: e.record and e.record.detect_zeroes.name.lower()), commands.set_detect_zeroes
    ),
    'sync_action': ControlFile(running(lambda e: rebuilder(e).action), commands.sync_action),
    'sync_completed': ControlFile(running(facts.sync_completed)),
    'sync_speed': ControlFile(running(facts.sync_speed)),
    'max_read_errors': ControlFile(
        recorded(lambda e: e.record and e.record.max_read_errors), commands.set_max_read_errors
    ),
    'sync_speed_min': ControlFile(
        recorded(lambda e: e.record and facts.speed(e.record.speed_min, limits.SPEED_MIN)),
        commands.speed_setter('speed_min'),
    ),
    'sync_speed_max': ControlFile(
        recorded(lambda e: e.record and facts.speed(e.record.speed_max, limits.SPEED_MAX)),
        commands.speed_setter('speed_max'),
    ),
    'sync_mode': ControlFile(running(lambda e: rebuilder(e).scrub.state.mode), commands.set_sync_mode),
    'sync_min': ControlFile(running(lambda e: rebuilder(e).scrub.state.sync_min), commands.set_sync_min),
    'sync_max': ControlFile(running(facts.sync_max), commands.set_sync_max),
    'last_sync_action': ControlFile(running(facts.last_action)),
    'mismatch_cnt': ControlFile(running(lambda e: rebuilder(e).scrub.state.differing * UNIT_SECTORS)),
    'mismatches': ControlFile(facts.mismatches),
    'map.json': ControlFile(gather=chunkmap.chunk_map),
}

BITMAP_FILES: dict[str, ControlFile] = {
    'metadata': ControlFile(recorded(lambda e: e.record and mdstat.bitmap_word(e.record))),
    'location': ControlFile(recorded(lambda e: e.record and place_of(e.record)), commands.set_location),
    'chunksize': ControlFile(recorded(lambda e: e.record and e.record.chunk_size)),
    'time_base': ControlFile(recorded(facts.time_base), commands.set_time_base),
    'backlog': ControlFile(recorded(lambda e: e.record and e.record.backlog), commands.set_backlog),
    'max_backlog_used': ControlFile(running(facts.max_backlog), commands.reset_max_backlog),
    'can_clear': ControlFile(
        running(lambda e: str(bool(e.started and e.started.clearer.allowed)).lower()), commands.can_clear
    ),
    'states': ControlFile(facts.states),
}

LEG_FILES: dict[str, ControlFile] = {
    'state': ControlFile(lambda place: f'{mdstat.leg_state(place.volume, place.slot)}\n', commands.set_state),
    'path': ControlFile(facts.path, commands.set_path),
    'uuid': ControlFile(facts.leg_uuid),
    'errors': ControlFile(facts.errors, commands.set_errors),
    'recovery_start': ControlFile(facts.recovery_start),
    'bad_blocks': ControlFile(facts.bad_blocks, commands.list_bad),
    'unacknowledged_bad_blocks': ControlFile(facts.unacknowledged, commands.list_bad),
}
