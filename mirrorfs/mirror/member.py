"""A leg that takes part: the Leg, where things are on it, and which metadata copies are current."""

import uuid
from typing import Self

import numpy as np
import trio

from mirrorfs.intent.log import Batch
from mirrorfs.leg.base import Buffer, LaneLeg, Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror.pages import PageStore
from mirrorfs.model import VolumeRecord


class Member(PageStore):
    """One slot's leg while it takes writes.  Offsets of data are bytes of the volume."""

    layout: wibm.Layout

    def __init__(self, slot: int, leg: Leg, identity: uuid.UUID, layout: wibm.Layout, pages: int) -> None:
        super().__init__(leg, pages)
        self.slot = slot
        self.lane = leg if isinstance(leg, LaneLeg) else None
        """The leg as the data lane may use it, if it may."""
        self.identity = identity
        self.layout = layout
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
        return await self.load_pages(record.uuid, record.chunks)

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
