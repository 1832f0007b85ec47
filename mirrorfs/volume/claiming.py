"""How a volume takes a spare that it shares with others of its pool.

    1. the spare is durably listed as claimed by this volume (`SharedSpares.claim`);
    2. it joins the volume as any leg does: its superblock, the other legs', the pool's definition;
    3. it is listed no more (`SharedSpares.joined`).

Until the last step the spare keeps its mark, so that whatever a crash leaves of this can be told.
"""

import errno
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from uuid import UUID

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror import membership
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.volume.joining import Joiner
from mirrorfs.volume.volume import Volume


@dataclass(frozen=True, slots=True)
class Claimed:
    """A spare that one volume has claimed."""

    spare: UUID
    leg: Leg
    identity: UUID
    """Who it is to be as the volume's leg."""
    mark: bytes
    """The page that it has to keep until it is listed no more."""


class SharedSpares(Protocol):
    """Spares for all volumes of a pool; see `mirrorfs.sharing`.  A claim ends with one of the other three."""

    def offers(self, needed: int) -> bool:
        """Whether there is a spare of at least `needed` bytes."""
        ...

    async def claim(self, record: VolumeRecord, needed: int) -> Claimed | None:
        """Claim the smallest spare of at least `needed` bytes, durably; None if there is none.

        Raises OSError where that cannot be recorded.
        """
        ...

    async def joined(self, claimed: Claimed) -> None:
        """The volume durably has it as a leg.  Raises OSError."""
        ...

    async def give_back(self, claimed: Claimed) -> None:
        """The volume does not want it after all.  Raises OSError."""
        ...

    async def give_up(self, claimed: Claimed, why: str) -> None:
        """It cannot be used.  Raises OSError."""
        ...


def offered(record: VolumeRecord, spares: SharedSpares) -> bool:
    """Whether there is a shared spare for a volume."""
    return spares.offers(_layout(record).data_offset + record.size)


def _layout(record: VolumeRecord) -> wibm.Layout:
    return wibm.new_layout(record.size, record.chunk_size)


async def take_shared(volume: Volume, joiner: Joiner, spares: SharedSpares, replaces: int = -1) -> bool:
    """Begin to recover a shared spare, to fill a gap or to replace a slot's leg; return whether one joined.

    Those that fail are given up.  Raises Refused(EAGAIN) where the volume has just changed, OSError where
    something cannot be recorded.
    """
    record, keeper = volume.record, volume.keeper
    layout = _layout(record)
    members = sum(1 for _ in record.where(LegState.IN_SYNC, LegState.SPARE))
    slot = membership.free_slot(record)
    if slot is None or members >= limits.LEGS_MAX:
        return False
    while claimed := await spares.claim(record, layout.data_offset + record.size):
        try:
            await keeper.open_session()
        except OSError:
            await spares.give_back(claimed)
            raise
        join = partial(membership.join, number=slot, leg=claimed.identity, path=claimed.leg.path)
        try:
            await joiner.new(slot, claimed.leg, layout, partial(join, replaces=replaces), claimed.mark)
        except (Refused, OSError) as error:
            if joiner.is_member(claimed.leg):
                raise  # whether that is durable the next start will see
            if isinstance(error, Refused) and error.errno == errno.EAGAIN:
                await spares.give_back(claimed)
                raise
            await spares.give_up(claimed, str(error))
        else:
            await spares.joined(claimed)
            return True
    return False
