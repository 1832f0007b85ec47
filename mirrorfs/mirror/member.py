"""A leg that takes part: the Leg, where things are on it, and which metadata copies are current."""

import uuid
from typing import Self

import numpy as np
import numpy.typing as npt
import trio

from mirrorfs.intent.log import Batch
from mirrorfs.leg.base import Buffer, LaneLeg, Leg
from mirrorfs.metadata import wibm
from mirrorfs.model import VolumeRecord


class Member:
    """One slot's leg while it takes writes.  Offsets of data are bytes of the volume.

    Metadata writes alternate between two copies, and each is durable before the other may be overwritten:
    the keeper has only one round under way, and a copy becomes current only when its write has returned.
    """

    def __init__(self, slot: int, leg: Leg, identity: uuid.UUID, layout: wibm.Layout, pages: int) -> None:
        self.slot = slot
        self.leg = leg
        self.lane = leg if isinstance(leg, LaneLeg) else None
        """The leg as the data lane may use it, if it may."""
        self.identity = identity
        self.layout = layout
        self.page_copies: npt.NDArray[np.uint8] = np.ones(pages, np.uint8)
        """The current copy of each log page (uint8 [pages]); the next write goes to the other one."""
        self.super_copy = 1
        self.stuck: list[trio.Event] = []
        """One for each call of a superseded lane, set when it has come back: no data may overtake them."""
        self.read_errors = 0
        self.write_errors = 0

    @classmethod
    def from_super(cls, leg: Leg, sup: wibm.LegSuper, copy: int) -> Self:
        member = cls(sup.slot, leg, sup.leg, sup.layout, wibm.pages_for(sup.record.chunks))
        member.super_copy = copy
        return member

    def __repr__(self) -> str:
        return f'<Member {self.slot} {self.leg.path}>'

    async def read(self, offset: int, length: int) -> Buffer:
        return await self.leg.read(self.layout.data_offset + offset, length)

    async def read_medium(self, offset: int, length: int) -> Buffer:
        return await self.leg.read_medium(self.layout.data_offset + offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await self._let_stuck_calls_return()
        await self.leg.write(self.layout.data_offset + offset, data)

    async def zero(self, offset: int, length: int) -> None:
        await self._let_stuck_calls_return()
        await self.leg.zero(self.layout.data_offset + offset, length)

    async def _let_stuck_calls_return(self) -> None:
        while self.stuck:
            await self.stuck[-1].wait()

    async def allocate(self, offset: int, length: int) -> None:
        await self.leg.allocate(self.layout.data_offset + offset, length)

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        base = self.layout.data_offset
        return [(at - base, size) for at, size in await self.leg.extents(base + offset, length)]

    async def load_log(self, record: VolumeRecord) -> wibm.LogImage:
        """Read and decode the leg's log.  Raises OSError where the leg cannot be read at all."""
        length = wibm.pages_for(record.chunks) * wibm.PAGE
        copies = [bytes(await self.leg.read(self.layout.page_offset(0, copy), length)) for copy in (0, 1)]
        image = wibm.decode_log(record.uuid, record.chunks, lambda copy: copies[copy])
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
            await self.leg.write(self.layout.page_offset(run[0], copy), data, durable=True)
            start = end
        for page in pages:
            self.page_copies[page] = 1 - self.page_copies[page]

    def _continues(self, page: int, following: int) -> bool:
        """Whether two pages lie side by side on the leg, so that one write takes both."""
        return following == page + 1 and bool(self.page_copies[page] == self.page_copies[following])

    async def store_log_anew(self, batch: Batch) -> None:
        """Write both copies of every page, for a leg whose old log must not win over the volume's."""
        self.page_copies = np.ones(len(batch.states), np.uint8)
        await self.store_pages(batch)
        await self.store_pages(batch)

    async def store_super(self, record: VolumeRecord, serial: int) -> None:
        """Make `record` durable in the superblock copy that is not current, then call that one current."""
        sup = wibm.LegSuper(record, self.identity, self.slot, self.layout, serial)
        copy = 1 - self.super_copy
        await self.leg.write(wibm.SUPER_OFFSETS[copy], wibm.encode_super(sup), durable=True)
        self.super_copy = copy

    async def store_super_anew(self, record: VolumeRecord, serial: int) -> None:
        """Write both superblock copies, for a leg that is being formatted."""
        await self.store_super(record, serial)
        await self.store_super(record, serial)
