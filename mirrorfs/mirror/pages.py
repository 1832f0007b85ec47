"""Log pages on a leg or in a log file: two copies of each, and which of them is current."""

import uuid

import numpy as np
import numpy.typing as npt

from mirrorfs.intent.log import Batch
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import logfile, wibm
from mirrorfs.mirror.legcalls import METADATA, LegCalls


class PageStore:
    """Where log pages are kept.  Offsets of pages are those of `layout`.

    Writes alternate between two copies, and each is durable before the other may be overwritten: the keeper
    has only one round under way, and a copy becomes current only when its write has returned.
    """

    layout: wibm.Layout | logfile.LogLayout

    def __init__(self, leg: Leg, pages: int) -> None:
        self.leg = leg
        self.made = LegCalls()
        self.page_copies: npt.NDArray[np.uint8] = np.ones(pages, np.uint8)
        """The current copy of each log page (uint8 [pages]); the next write goes to the other one."""
        self.log_serial = 0
        """The serial of the last batch of pages that is here."""

    async def load_pages(self, owner: uuid.UUID, chunks: int) -> wibm.LogImage:
        """Read and decode the pages of `owner`.  Raises OSError where they cannot be read at all.

        From the medium: after a sync that failed, a cache may show a copy as written that never will be, and
        the next write would go over the only whole one.
        """
        length, layout = wibm.pages_for(chunks) * wibm.PAGE, self.layout
        copies = [bytes(await self.leg.read_medium(layout.page_offset(0, copy), length)) for copy in (0, 1)]
        image = wibm.decode_log(owner, chunks, lambda copy: copies[copy])
        self.log_serial = int(image.serials.max())
        self.page_copies = np.where(image.current == wibm.NO_COPY, 1, image.current).astype(np.uint8)
        return image

    async def store_pages(self, batch: Batch) -> None:
        """Make the batch durable in the copies that are not current, then call those current."""
        pages = sorted(batch.states)
        start = 0
        for end in range(1, len(pages) + 1):
            if end < len(pages) and self._continues(pages[end - 1], pages[end]):
                continue
            run = pages[start:end]
            copy = 1 - int(self.page_copies[run[0]])
            data = b''.join(batch.encode(page, copy) for page in run)
            await self._put(self.layout.page_offset(run[0], copy), data)
            start = end
        for page in pages:
            self.page_copies[page] = 1 - self.page_copies[page]
        self.log_serial = batch.serial

    async def _put(self, offset: int, data: bytes) -> None:
        """Write metadata, durably."""
        await self.made.timed(METADATA, len(data), self.leg.write(offset, data, durable=True))

    def _continues(self, page: int, following: int) -> bool:
        """Whether two pages lie side by side on the leg, so that one write takes both."""
        return following == page + 1 and bool(self.page_copies[page] == self.page_copies[following])

    def make_room(self, pages: int) -> None:
        """There are so many pages from now on; what is new was never written."""
        fresh = np.ones(pages - len(self.page_copies), np.uint8)
        self.page_copies = np.concatenate((self.page_copies, fresh))
