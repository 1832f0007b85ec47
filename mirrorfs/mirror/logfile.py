"""The intent log in a file outside the legs: a `PageStore` with a header that ties it to its volume.

The header is written before the superblocks of the same round, so its serial and events are never behind
those of a leg that counts: at a start, a log whose are is an old copy (`mirrorfs.volume.doubt.disbelief`).
"""

import errno
import uuid
from dataclasses import replace

import trio

from mirrorfs.errors import BadMetadata, LegError, Refused
from mirrorfs.intent.log import Batch, IntentLog
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.metadata import logfile, spare, wibm
from mirrorfs.mirror.pages import PageStore
from mirrorfs.model import VolumeRecord


class LogFile(PageStore):
    """A log file that is open.  `identity` is the log's UUID; `header` what was last read or written."""

    layout: logfile.LogLayout

    def __init__(self, leg: Leg, header: logfile.LogHeader, copy: int, pages: int) -> None:
        super().__init__(leg, pages)
        self.header = header
        self.layout = header.layout
        self.identity = header.log
        self._copy = copy

    async def load(self, chunks: int) -> wibm.LogImage:
        """Read the log, as durable as it looks.  Raises OSError where it cannot be read."""
        # What a killed process left in the page cache is read as if durable: make it so.
        await self.leg.flush()
        return await self.load_pages(self.identity, chunks)

    async def store(self, batch: Batch, record: VolumeRecord | None, serial: int) -> None:
        """Make a batch durable, then, if it changed, the record with the serial of its superblocks."""
        if batch.states:
            await self.store_pages(replace(batch, volume=self.identity))
        if record is not None:
            await self.store_header(record, serial)

    async def store_header(self, record: VolumeRecord, serial: int) -> None:
        """Make the header durable in the copy that is not current, then call that one current."""
        header = replace(self.header, name=record.name, size=record.size, events=record.events, serial=serial)
        copy = 1 - self._copy
        await self._put(logfile.HEADER_OFFSETS[copy], logfile.encode_header(header))
        self.header, self._copy = header, copy

    async def void(self) -> None:
        """Take the header away: what is left is no log any more."""
        await self.leg.write(0, bytes(logfile.PAGES_OFFSET), durable=True)


async def read_log_file(leg: Leg) -> LogFile:
    """Return the log file that an opened one is.  Raises BadMetadata, OSError."""
    if leg.size < logfile.PAGES_OFFSET:
        raise BadMetadata('too short to hold a log')
    first, second = [bytes(await leg.read_medium(offset, wibm.PAGE)) for offset in logfile.HEADER_OFFSETS]
    header, copy = logfile.newest_header(first, second)
    if leg.size < header.layout.size:
        raise BadMetadata(f'it has {leg.size} bytes, it had {header.layout.size} at least')
    return LogFile(leg, header, copy, wibm.pages_for(header.chunks))


async def format_log_file(
    leg: Leg, identity: uuid.UUID, record: VolumeRecord, log: IntentLog | None, serial: int
) -> LogFile:
    """Make an opened file the log of a volume, with all pages of `log`, or with none yet.

    Raises Refused (ENOSPC where it is too small), OSError.
    """
    layout = logfile.new_layout(record.size, record.chunk_size, leg.size)
    if layout.chunks_max < record.chunks:
        needed = logfile.LogLayout(wibm.pages_for(record.chunks)).size
        raise Refused(errno.ENOSPC, f'{leg.path} has {leg.size} bytes; the log needs {needed}')
    header = logfile.LogHeader(
        identity, record.uuid, record.name, record.size, record.chunk_size, serial, record.events, layout
    )
    file = LogFile(leg, header, 1, wibm.pages_for(record.chunks))
    await _reserve(file)
    if log is not None:
        await file.store_pages(replace(log.whole(), volume=identity))
    await leg.flush()
    for _ in logfile.HEADER_OFFSETS:
        await file.store_header(record, serial)
    return file


async def _reserve(file: LogFile) -> None:
    """Have space for all pages now: a log that runs full later is lost.  Raises Refused(ENOSPC)."""
    try:
        for copy in (0, 1):
            length = len(file.page_copies) * wibm.PAGE
            await file.leg.allocate(file.layout.page_offset(0, copy), length)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused(errno.ENOSPC, f'{file.leg.path}: no space for the log') from None


async def require_unused(leg: Leg) -> None:
    """Raise Refused(EEXIST) unless the place for the header is all zeros: nobody's file becomes a log."""
    length = min(leg.size, logfile.PAGES_OFFSET)
    found = bytes(await leg.read(0, length))
    if not found.strip(b'\0'):
        return
    try:
        header, _ = logfile.newest_header(found[: wibm.PAGE], found[wibm.PAGE :])
    except BadMetadata:
        what = 'is a shared spare' if found.startswith(spare.MAGIC) else 'is not empty'
    else:
        what = f'is the log of volume {header.name} ({header.volume})'
    raise Refused(errno.EEXIST, f'{leg.path} {what}; say force to overwrite it, or name another file')


async def open_for_log(opener: Opener, path: str, size: int, *, force: bool) -> tuple[Leg, bool]:
    """Open, or make, a file of `size` bytes for a log; a device may be smaller.

    Return it and whether it was made.  Raises Refused: see `Opener.open`, `require_unused`.
    """
    leg, created = await opener.open(path, create_size=size)
    try:
        if not created and not force:
            await require_unused(leg)
            await opener.require_blank(leg)
        if leg.size < size:
            await _extend(leg, size)
    except BaseException:
        await let_go(opener, leg, created)
        raise
    return leg, created


async def _extend(leg: Leg, size: int) -> None:
    try:
        await leg.extend(size)
    except LegError as error:
        if error.errno != errno.ENOSPC:  # a device: room for less growth, then
            raise


async def let_go(opener: Opener, leg: Leg, created: bool) -> None:
    """Close a file that is not to be the log after all; if it was made for that, it goes."""
    leg.close()
    if created:
        with trio.CancelScope(shield=True):
            await opener.discard_new(leg)


async def find_log_file(opener: Opener, record: VolumeRecord, patience: float) -> LogFile | str:
    """Open the log that the pool's record names; return it, or why there is none.  `patience` in seconds."""
    if not record.log_path:
        return 'nobody knows where it is'
    leg: Leg | None = None
    try:
        with trio.fail_after(patience):
            leg, _ = await opener.open(record.log_path)
            return await read_log_file(leg)
    except trio.TooSlowError:
        complaint = f'{record.log_path} did not answer within {patience:g} s'
    except (Refused, BadMetadata, OSError) as error:
        complaint = f'{record.log_path}: {error}'
    if leg:
        leg.close()
    return complaint
