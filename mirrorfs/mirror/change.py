"""What a write puts on each leg."""

from dataclasses import dataclass

from mirrorfs.leg.base import Buffer
from mirrorfs.mirror.badblocks import BLOCK
from mirrorfs.mirror.member import Member


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Bytes for a range of the volume, zeros where there are no `data`.  Offset and length in bytes.

    `bulk`: they are copied in the background, and nobody is about to read them.  `keep`: zeros do not give
    space back.
    """

    offset: int
    length: int
    data: Buffer | None = None
    bulk: bool = False
    keep: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def first_block(self) -> int:
        return self.offset // BLOCK

    @property
    def blocks(self) -> int:
        """How many blocks of 4096 bytes the range touches."""
        return -(-self.end // BLOCK) - self.first_block

    def part(self, offset: int, length: int) -> 'Change':
        """Return the change of a range within this one."""
        at = offset - self.offset
        data = None if self.data is None else memoryview(self.data)[at : at + length]
        return Change(offset, length, data, self.bulk, self.keep)

    def block(self, number: int) -> 'Change':
        """Return what there is of the nth block that the range touches, which may be less than a block."""
        start = max(self.offset, (self.first_block + number) * BLOCK)
        end = min(self.end, (self.first_block + number + 1) * BLOCK)
        return self.part(start, end - start)

    def bytes(self) -> bytes:
        return bytes(self.length) if self.data is None else bytes(self.data)

    async def on(self, member: Member) -> None:
        """Write to a leg.  Raises OSError."""
        if self.data is None:
            await member.zero(self.offset, self.length, keep=self.keep)
        elif self.bulk:
            await member.write_bulk(self.offset, self.data)
        else:
            await member.write(self.offset, self.data)
