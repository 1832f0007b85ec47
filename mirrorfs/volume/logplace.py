"""Moving the intent log of a volume that is in use: to the legs, to a file outside them, or away.

The new place is complete and durable before anything names it, and until everything does, both places are
written (see `mirrorfs.mirror.keeper`): whatever record a start finds, the log that it names is whole.  All
chunks are held meanwhile, so no write is under way that only one of the places knows of.  From file to file
goes by way of the legs.
"""

import errno
import os
import uuid

import trio

from mirrorfs.errors import Refused
from mirrorfs.intent.states import DIRTY, MODIFIED, UNWRITTEN
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.metadata import logfile
from mirrorfs.mirror import membership
from mirrorfs.mirror.logfile import LogFile, format_log_file, let_go, open_for_log
from mirrorfs.model import NO_UUID, LegState, VolumeRecord
from mirrorfs.units import format_size
from mirrorfs.volume.volume import Volume

NONE, INTERNAL = 'none', 'internal'


def place_of(record: VolumeRecord) -> str:
    """Return where a volume's log is: ``none``, ``internal``, or the path of a file."""
    if not record.logged:
        return NONE
    return record.log_path if record.log_is_outside else INTERNAL


def refuse_to_forget(volume: Volume) -> None:
    """Raise Refused(EBUSY) where legs are away that need but what changed, which only a log can tell."""
    record, log = volume.record, volume.log
    away = record.where(LegState.FAULTY, LegState.MISSING, LegState.SPLIT)
    tracked = [record.slots[slot].path for slot in away if record.slots[slot].tracked_since]
    if tracked and record.logged:
        written = min((len(log) - log.count(UNWRITTEN)) * record.chunk_size, record.size)
        changed = min(log.count(MODIFIED) * record.chunk_size, written)
        lost = f'with no log all {format_size(written)} would be copied when they are back'
        lost += f', not the {format_size(changed)} that changed'
        legs = ', '.join(tracked)
        raise Refused(errno.EBUSY, f'away from {record.name}: {legs}; {lost}; say force to do it')


async def move_log(volume: Volume, opener: Opener, place: str, *, force: bool = False) -> None:
    """Move the log to a `place` as `place_of` names them.  Nothing to do where it is there already.

    Raises Refused: EINVAL for a path that is not absolute or what cannot be a log, EEXIST for a file that is
    not empty without `force`, EBUSY if it is in use, ENOSPC if it is too small, ETIMEDOUT, EIO if it fails;
    OSError where no leg or not the pool can record it.
    """
    if place == place_of(volume.record):
        volume.keeper.log_trouble = ''  # none, say, is what is wanted from now on
        return
    if place == NONE:
        await _leave_file(volume, None)
    elif place == INTERNAL:
        await _leave_file(volume, NO_UUID)
    else:
        await _to_file(volume, opener, place, force)
    volume.keeper.log_trouble = ''
    volume.emit('LogMoved', volume.name, '', place)


async def _leave_file(volume: Volume, log: uuid.UUID | None) -> None:
    """Have the log on the legs, or nowhere for None."""
    keeper = volume.keeper
    await keeper.open_session()
    async with volume.exclusive(0, len(volume.log) - 1):
        _mark_what_nobody_tracked(volume)
        volume.log.touch_all()  # legs may have but the map
        keeper.record = membership.move_log(keeper.record, log)
        volume.legs_changing()
        await keeper.commit()
        file, keeper.outside = keeper.outside, None
    if file:
        await _void(volume, file)


def _mark_what_nobody_tracked(volume: Volume) -> None:
    """Where there was no log, any chunk that was ever written may be dirty."""
    if not volume.record.logged:
        volume.log.update_chunks(volume.log.where(0, UNWRITTEN), set_=DIRTY)


async def _to_file(volume: Volume, opener: Opener, path: str, force: bool) -> None:
    keeper = volume.keeper
    if not os.path.isabs(path):
        raise Refused(errno.EINVAL, f'{path!r} is neither none nor internal nor an absolute path')
    size = logfile.new_layout(volume.record.size, volume.record.chunk_size).size
    with trio.move_on_after(keeper.leg_timeout) as scope:
        leg, created = await open_for_log(opener, path, size, force=force)
    if scope.cancelled_caught:
        raise Refused(errno.ETIMEDOUT, f'{path} did not answer within {keeper.leg_timeout:g} s')
    try:
        if keeper.outside:
            await _leave_file(volume, NO_UUID)
        await keeper.open_session()
        async with volume.exclusive(0, len(volume.log) - 1):
            await _fill(volume, leg, path)
    except BaseException:
        if volume.record.log_path != path:
            await let_go(opener, leg, created)
        raise


async def _fill(volume: Volume, leg: Leg, path: str) -> None:
    """Make an opened file the log: first all pages, then the records that name it."""
    keeper = volume.keeper
    identity = keeper.new_uuid()
    with trio.move_on_after(keeper.leg_timeout) as scope:
        file = await format_log_file(leg, identity, keeper.record, None, keeper.next_serial())
    if scope.cancelled_caught:
        raise Refused(errno.ETIMEDOUT, f'{path} did not answer within {keeper.leg_timeout:g} s')
    _mark_what_nobody_tracked(volume)
    volume.log.touch_all()
    keeper.outside = file
    try:
        # The pool is told the path before a leg is told the log: it alone knows where to look.
        keeper.record = keeper.record.but(log_path=path)
        await _commit_with(volume, file)
    except BaseException:
        keeper.outside = None
        keeper.record = keeper.record.but(log_path='')
        raise
    keeper.record = membership.move_log(keeper.record, identity, path)
    volume.legs_changing()
    await _commit_with(volume, file)


async def _commit_with(volume: Volume, file: LogFile) -> None:
    """Commit; Refused(EIO) where the file was given up meanwhile."""
    await volume.keeper.commit()
    if volume.keeper.outside is not file:
        why = volume.keeper.log_trouble
        raise Refused(errno.EIO, f'{file.leg.path} failed while the log was moved there: {why}')


async def _void(volume: Volume, file: LogFile) -> None:
    """The old file is no log any more; if it cannot be told so, nothing names it all the same."""
    try:
        with trio.fail_after(volume.keeper.leg_timeout):
            await file.void()
    except (OSError, trio.TooSlowError) as error:
        volume.emit('Warning', volume.name, file.leg.path, f'the old log was left as it was: {error}')
    finally:
        file.leg.close()
