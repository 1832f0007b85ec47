"""What is decided of a volume while its pool is not mounted: it starts, that is recorded, it stops."""

import trio

from mirrorfs.definitions import PoolDirectory
from mirrorfs.events import EventLog
from mirrorfs.leg.base import Opener
from mirrorfs.mirror.logfile import LogFile
from mirrorfs.mirror.splitbrain import SplitBrain
from mirrorfs.model import VolumeRecord
from mirrorfs.pool import Pool
from mirrorfs.volume.lifecycle import Found, Settings, Started, start


async def settle(
    directory: PoolDirectory,
    record: VolumeRecord,
    opener: Opener,
    settings: Settings,
    *,
    force: bool = False,
    keep: str = '',
) -> VolumeRecord:
    """Start a volume as at a mount, make durable who its legs are from now on, and stop it.

    `force` and `keep` as for `mirrorfs.volume.lifecycle.start`.  Return its record.  The pool must be locked.
    Raises Refused, OSError; where the decision itself is refused nothing was written.
    """
    pool = Pool(directory, opener, EventLog(), settings)
    record, found = await pool.find_legs(record)
    outside = await pool.find_log(record)
    try:
        started = await start(
            record,
            found,
            directory,
            pool.events.emit,
            settings,
            outside=outside,
            force=force,
            keep=keep,
            record_at_once=True,
        )
    except BaseException:
        for leg in found.values():
            leg.leg.close()
        if isinstance(outside, LogFile):
            outside.leg.close()
        raise
    if isinstance(outside, LogFile) and outside is not started.volume.keeper.outside:
        outside.leg.close()
    return await _run_once(started, found)


async def _run_once(started: Started, found: dict[int, Found]) -> VolumeRecord:
    failure: OSError | None = None
    for slot, leg in found.items():
        if slot not in started.volume.keeper.members:
            leg.leg.close()
    try:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(started.run)
                await started.stop()
            except OSError as error:
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        await started.close()
    if failure:
        raise failure
    return started.volume.record


async def split_of(
    directory: PoolDirectory, record: VolumeRecord, opener: Opener, settings: Settings
) -> SplitBrain | None:
    """Return the split brain that keeps a volume from starting, if that is it.  Writes nothing."""
    pool = Pool(directory, opener, EventLog(), settings)
    record, found = await pool.find_legs(record)
    try:
        await start(record, found, directory, pool.events.emit, settings)
    except SplitBrain as split:
        return split
    finally:
        for leg in found.values():
            leg.leg.close()
    return None
