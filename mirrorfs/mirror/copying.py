"""Copying a range from one leg to others: holes stay holes, and only what a leg holds is moved."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from mirrorfs import limits
from mirrorfs.errors import LegTimeout
from mirrorfs.leg.base import Buffer
from mirrorfs.leg.memory import Buffers
from mirrorfs.mirror.change import Change
from mirrorfs.mirror.fanout import Failures
from mirrorfs.mirror.member import Member

Store = Callable[[Sequence[Member], Change, None], Awaitable[Failures]]
"""Writes a change to legs, all of which are to have it in time; returns those that failed."""


async def read_in_time(member: Member, offset: int, length: int, patience: float) -> Buffer:
    """Read from a leg; raises LegTimeout after `patience` seconds, other OSErrors as they come."""
    with trio.move_on_after(patience):
        return await member.read(offset, length)
    raise LegTimeout(f'{member.leg.path} did not answer a read within {patience:g} s')


async def read_into_in_time(member: Member, offset: int, view: memoryview, patience: float) -> None:
    """As `read_in_time`, into memory that is not to be used again after LegTimeout."""
    with trio.move_on_after(patience):
        return await member.read_into(offset, view)
    raise LegTimeout(f'{member.leg.path} did not answer a read within {patience:g} s')


async def copy_range(
    source: Member,
    targets: Sequence[Member],
    offset: int,
    length: int,
    patience: float,
    store: Store,
    buffers: Buffers,
    complain: Callable[[Member, int, int, OSError], None] = lambda *_: None,
) -> tuple[int, Failures]:
    """Make the range on every target equal to the source's; return bytes copied and targets that failed.

    Offsets are bytes of the volume.  A target that fails gets no more of the range.  Raises OSError where
    the source cannot be read, after `complain` was told where.  Nothing is flushed.
    """
    failures: Failures = {}
    copied = 0
    at, end = offset, offset + length
    extents = await _extents_in_time(source, offset, length, patience)
    buffer = buffers.take()
    for start, size in [*extents, (end, 0)]:
        if start > at:
            await _on_targets(targets, failures, Change(at, start - at), store)
        for piece in range(start, start + size, limits.COPY_MAX):
            step = min(limits.COPY_MAX, start + size - piece)
            data = memoryview(buffer)[:step]
            try:
                await read_into_in_time(source, piece, data, patience)
            except OSError as error:
                complain(source, piece, step, error)
                raise
            await _on_targets(targets, failures, Change(piece, step, data, bulk=True), store)
            copied += step
        at = start + size
    if not failures:
        buffers.give_back(buffer)
    return copied, failures


async def _extents_in_time(
    member: Member, offset: int, length: int, patience: float
) -> list[tuple[int, int]]:
    with trio.move_on_after(patience):
        return await member.extents(offset, length)
    raise LegTimeout(f'{member.leg.path} did not say where it has data within {patience:g} s')


async def _on_targets(targets: Sequence[Member], failures: Failures, change: Change, store: Store) -> None:
    """Write to the targets that have not failed yet."""
    working = [target for target in targets if target.slot not in failures]
    if working:
        failures.update(await store(working, change, None))
