"""Split brain: legs that each went on alone, told apart by lineage however equal their counters are.  Pure.

A *side* is a history that the other sides do not have: that of the legs at hand which bear it, or the pool's
own where no leg at hand does.  Only legs that call themselves in sync have a history to lose; a leg that was
being recovered from another holds nothing whole of its own.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from mirrorfs.errors import Refused
from mirrorfs.mirror.membership import Kinship, kinship
from mirrorfs.model import Generation, LegState, Slot, VolumeRecord
from mirrorfs.units import format_size, format_time


@dataclass(frozen=True, slots=True)
class Side:
    """One history: who has it (slots; none: the pool alone), and its newest record."""

    legs: tuple[int, ...]
    record: VolumeRecord


class SplitBrain(Refused):
    """A volume whose legs were changed apart.  `sides` are the histories, `written` what each leg has."""

    def __init__(
        self, pool: VolumeRecord, sides: tuple[Side, ...], written: Mapping[int, int] | None = None
    ) -> None:
        self.pool = pool
        self.sides = sides
        self._written = written or {}
        apart = '; '.join(self.lines())
        way_out = f'mirrorfs resolve POOL {pool.name} --keep LEG'
        super().__init__(
            errno.EIO,
            f'{pool.name}: split brain: legs were changed apart{self._since()}: {apart}. '
            f'Nothing is changed until you choose: {way_out}; or take the legs of the other side away',
        )

    def telling(self, written: Mapping[int, int]) -> 'SplitBrain':
        """Return the same, knowing how many chunks each leg's log says were written since."""
        return SplitBrain(self.pool, self.sides, written)

    def lines(self) -> list[str]:
        """Return each side in a line: its legs, when it began, what it has."""
        return [self._line(side) for side in self.sides]

    def _line(self, side: Side) -> str:
        legs = ', '.join(f'slot {self.pool.place(n)} ({self.pool.slots[n].path})' for n in side.legs)
        own = self._own(side)
        began = f' since {format_time(own[0].time_us)}' if own else ''
        changed = side.record.updated_us
        facts = [
            f'{legs or "the pool, of which no leg is at hand,"} went on alone{began}',
            f'generation {str(side.record.lineage[-1].uuid)[:8]}'
            + (f' ({len(own)} generations apart)' if len(own) > 1 else ''),
            f'events {side.record.events}',
        ]
        facts += [f'last changed {format_time(changed)}'] if side.legs and changed else []
        chunks = max((self._written[n] for n in side.legs if n in self._written), default=None)
        if chunks is not None:
            size = format_size(chunks * side.record.chunk_size)
            facts.append(f'{chunks} chunks ({size} at most) written since')
        return ', '.join(facts)

    def _own(self, side: Side) -> list[Generation]:
        """Return the generations that no other side has."""
        others = [step.uuid for other in self.sides if other is not side for step in other.record.lineage]
        return [step for step in side.record.lineage if step.uuid not in others]

    def _since(self) -> str:
        """Say which generation is the last that all sides have."""
        shared = [{step.uuid for step in side.record.lineage} for side in self.sides]
        common = [step for step in self.sides[0].record.lineage if all(step.uuid in one for one in shared)]
        if not common:
            return ''
        return f' after generation {str(common[-1].uuid)[:8]} of {format_time(common[-1].time_us)}'


def find(pool: VolumeRecord, legs: Mapping[int, VolumeRecord], *, witness: bool = True) -> SplitBrain | None:
    """Return the split brain that there is among the legs at hand and the pool, if there is one.

    `legs` maps slot numbers to what the legs say.  One that the pool, if it is a witness, has given up is no
    side any more.
    """
    claims = {n: leg for n, leg in legs.items() if leg.slots[n].state is LegState.IN_SYNC}
    if witness:
        claims = {n: leg for n, leg in claims.items() if not is_given_up(pool.slots[n])}
    leads: list[int] = []
    for number in sorted(claims, key=lambda n: (-claims[n].events, -claims[n].updated_us, n)):
        if all(_apart(claims[number], claims[lead]) for lead in leads):
            leads.append(number)
    sides = sorted((Side(_bearers(claims, claims[n]), claims[n]) for n in leads), key=lambda side: side.legs)
    if sides and all(_apart(side.record, pool) for side in sides):
        sides.insert(0, Side((), pool))
    return SplitBrain(pool, tuple(sides)) if len(sides) > 1 else None


def is_given_up(slot: Slot) -> bool:
    """Whether what the slot's leg has of its own was given up: it waits to be overwritten as a whole."""
    stays_away = slot.state in (LegState.FAULTY, LegState.REMOVED)
    return stays_away and slot.full and not slot.tracked_since


def _apart(one: VolumeRecord, other: VolumeRecord) -> bool:
    return kinship(one.lineage, other.lineage) is Kinship.CONFLICT


def _bearers(claims: Mapping[int, VolumeRecord], lead: VolumeRecord) -> tuple[int, ...]:
    """Return the slots whose legs have the very history of `lead`."""
    same = (n for n, leg in claims.items() if kinship(leg.lineage, lead.lineage) is Kinship.SAME)
    return tuple(sorted(same))
