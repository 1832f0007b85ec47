"""A leg that takes part: the Leg, where things are on it, and which metadata copies are current."""

import errno
import uuid
from typing import Self

import numpy as np
import trio

from mirrorfs.errors import LegError
from mirrorfs.intent.log import Batch
from mirrorfs.leg.base import Buffer, LaneLeg, Leg
from mirrorfs.metadata import badlist, wibm
from mirrorfs.mirror.badblocks import BadBlocks
from mirrorfs.mirror.behind import Backlog
from mirrorfs.mirror.legcalls import FLUSH, READ, WRITE, ZERO
from mirrorfs.mirror.pages import PageStore
from mirrorfs.mirror.readerrors import ReadErrors
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
        self.backlog: Backlog | None = None
        """What it is behind, while it may be behind."""
        self.failfast = False
        """Whether it is given up after FAILFAST_TIMEOUT where others can take over; `Keeper` sees to it."""
        self.read_errors = 0
        self.write_errors = 0
        self.corrected = 0
        """Blocks that could not be read and were mended."""
        self.recent = ReadErrors()
        self.bad = BadBlocks()
        """Blocks that do not count here.  The keeper makes it durable; `bad_stored` is what is so."""
        self.bad_stored = self.bad
        self._bad_serial, self._bad_copy = 0, 1

    @classmethod
    def from_super(cls, leg: Leg, sup: wibm.LegSuper, copy: int) -> Self:
        member = cls(sup.slot, leg, sup.leg, sup.layout, wibm.pages_for(sup.record.chunks))
        member.super_copy = copy
        return member

    def __repr__(self) -> str:
        return f'<Member {self.slot} {self.leg.path}>'

    async def read(self, offset: int, length: int) -> Buffer:
        return await self.made.timed(READ, length, self.leg.read(self.layout.data_offset + offset, length))

    async def read_into(self, offset: int, view: memoryview) -> None:
        reading = self.leg.read_into(self.layout.data_offset + offset, view)
        await self.made.timed(READ, len(view), reading)

    async def read_medium(self, offset: int, length: int) -> Buffer:
        await self.catch_up()
        reading = self.leg.read_medium(self.layout.data_offset + offset, length)
        return await self.made.timed(READ, length, reading)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, or have it written later if the leg may be behind."""
        if self.backlog:
            await self.backlog.put(offset, data)
        else:
            await self._write_now(offset, data)

    async def _write_now(self, offset: int, data: Buffer) -> None:
        await self._let_stuck_calls_return()
        await self.made.timed(WRITE, len(data), self.leg.write(self.layout.data_offset + offset, data))

    async def zero(self, offset: int, length: int, *, keep: bool = False) -> None:
        await self.catch_up()
        await self._let_stuck_calls_return()
        zeroing = self.leg.zero(self.layout.data_offset + offset, length, keep=keep)
        await self.made.timed(ZERO, length, zeroing)

    async def discard(self, offset: int, length: int) -> bool:
        await self.catch_up()
        return await self.leg.discard(self.layout.data_offset + offset, length)

    async def write_bulk(self, offset: int, data: Buffer) -> None:
        """As `write`, of what is copied in the background; see `Leg.write_bulk`."""
        if self.backlog:
            await self.backlog.put(offset, data)
            return
        await self._let_stuck_calls_return()
        writing = self.leg.write_bulk(self.layout.data_offset + offset, data)
        await self.made.timed(WRITE, len(data), writing)

    async def flush(self) -> None:
        """Have all that was written before on stable storage, what is behind included."""
        await self.catch_up()
        await self.made.timed(FLUSH, 0, self.leg.flush())

    def fall_behind(self, limit: int) -> Backlog:
        """From now on writes may be behind; the caller runs the backlog."""
        self.backlog = Backlog(self._write_now, limit)
        return self.backlog

    async def catch_up(self) -> None:
        if self.backlog:
            await self.backlog.drained()

    async def write_medium(self, offset: int, data: Buffer) -> None:
        await self.catch_up()
        await self._let_stuck_calls_return()
        writing = self.leg.write_medium(self.layout.data_offset + offset, data)
        await self.made.timed(WRITE, len(data), writing)

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

    async def load_bad(self, volume: uuid.UUID) -> None:
        """Read the leg's bad-block list, from the medium as `load_pages` does.

        Raises OSError, BadMetadata where no copy of it is whole.
        """
        copies = []
        for copy in (0, 1):
            offset = self.layout.bad_blocks_offset(copy)
            if offset is None:
                return
            copies.append(bytes(await self.leg.read_medium(offset, badlist.PAGE)))
        said, self._bad_copy = badlist.newest(volume, self.identity, *copies)
        self._bad_serial = said.serial
        self.bad = self.bad_stored = BadBlocks.of(said)

    async def store_bad(self, volume: uuid.UUID) -> None:
        """Make `bad` durable in both copies of the list, first in the one that is not current.

        In both, since an older list would let be read what the leg lacks, if the newer copy rots.
        """
        bad = self.bad
        for copy in (1 - self._bad_copy, self._bad_copy):
            offset = self.layout.bad_blocks_offset(copy)
            if offset is None:
                raise LegError(errno.EOPNOTSUPP, f'{self.leg.path} has no room for a bad-block list')
            page = badlist.encode(volume, self.identity, bad.entries(self._bad_serial + 1))
            await self._put(offset, page)
            self._bad_serial += 1
            self._bad_copy = copy
        self.bad_stored = bad

    async def store_super(self, record: VolumeRecord, serial: int) -> None:
        """Make `record` durable in the superblock copy that is not current, then call that one current."""
        sup = wibm.LegSuper(record, self.identity, self.slot, self.layout, serial)
        copy = 1 - self.super_copy
        await self._put(wibm.SUPER_OFFSETS[copy], wibm.encode_super(sup))
        self.super_copy = copy

    async def store_super_anew(self, record: VolumeRecord, serial: int) -> None:
        """Write both superblock copies, for a leg that is being formatted."""
        await self.store_super(record, serial)
        await self.store_super(record, serial)
