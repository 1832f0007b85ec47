"""What a scrub finds and remembers: pure functions from bytes of legs to what differs, from state to state.

Legs are compared in units of 64 KiB, md's measure: a unit in which legs differ counts 128 sectors.  What was
found is a list of places; each names the legs that agree with each other, by a digest of what they hold.
The state of a scrub (`Scrub`) is stored in the pool, so that a pass goes on after a restart, and so that
what it found outlives it.
"""

import errno
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused

UNIT = 64 << 10
UNIT_SECTORS = UNIT // limits.SECTOR
FORMAT = 1
ALIGNED = 8
"""Sectors to whose multiples sync_min is rounded down, as by md."""
MODES = ('yield', 'fixed')
_DIGEST = 8


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A place, in bytes of the volume, where legs differ.  `groups`: slots that agree, and their digest."""

    offset: int
    length: int
    groups: tuple[tuple[tuple[int, ...], str], ...]

    @property
    def line(self) -> str:
        """The place as the control file shows it: ``OFFSET LENGTH SLOT,SLOT=DIGEST SLOT=DIGEST``."""
        legs = ' '.join(f'{",".join(map(str, slots))}={digest}' for slots, digest in self.groups)
        return f'{self.offset} {self.length} {legs}'

    @property
    def majority(self) -> int | None:
        """A slot whose copy more than half of the compared legs share; None where there is none."""
        legs = sum(len(slots) for slots, _ in self.groups)
        return next((slots[0] for slots, _ in self.groups if 2 * len(slots) > legs), None)

    def others(self, slot: int) -> frozenset[int] | None:
        """Return the slots that hold something else than a slot does; None if that was not compared."""
        if not any(slot in slots for slots, _ in self.groups):
            return None
        return frozenset(s for slots, _ in self.groups if slot not in slots for s in slots)


def with_names(mismatch: Mismatch, name: Callable[[int], int]) -> Mismatch:
    """Return a mismatch with its legs named as people know them (`VolumeRecord.place`)."""
    groups = tuple((tuple(sorted(map(name, slots))), digest) for slots, digest in mismatch.groups)
    return replace(mismatch, groups=groups)


def compare(offset: int, pieces: Mapping[int, bytes]) -> list[Mismatch]:
    """Return where legs differ.  `pieces`: what each slot holds from byte `offset` on, all of one length."""
    slots = sorted(pieces)
    if all(pieces[slot] == pieces[slots[0]] for slot in slots[1:]):
        return []
    end = offset + len(pieces[slots[0]])
    found = []
    for start, stop in units(offset, end):
        held = {slot: bytes(pieces[slot][start - offset : stop - offset]) for slot in slots}
        groups: dict[bytes, list[int]] = {}
        for slot in slots:
            groups.setdefault(held[slot], []).append(slot)
        if len(groups) > 1:
            named = tuple((tuple(legs), digest(data)) for data, legs in groups.items())
            found.append(Mismatch(start, stop - start, named))
    return found


def units(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the parts of a range that multiples of UNIT cut it into."""
    while start < end:
        stop = min(end, (start // UNIT + 1) * UNIT)
        yield start, stop
        start = stop


def digest(data: bytes) -> str:
    """Return what names the content of a unit: BLAKE2b, in hexadecimal."""
    return blake2b(data, digest_size=_DIGEST).hexdigest()


@dataclass(frozen=True, slots=True)
class Scrub:
    """What is wanted of a volume's scrub, how far it is, and what it found.  Bytes, but for md's sectors."""

    action: str = ''
    """``check`` or ``repair`` while a pass is under way or waits, else empty."""
    source: uuid.UUID | None = None
    """The leg that a repair takes for right; None: the majority."""
    position: int = 0
    """All below has been compared."""
    sync_min: int = 0
    """Where a pass begins, in sectors."""
    sync_max: int | None = None
    """Where it pauses, in sectors; None: nowhere."""
    mode: str = MODES[0]
    """How background copying treats foreground I/O (see `mirrorfs.volume.pacing`)."""
    differing: int = 0
    """Units in which the last pass found legs to differ."""
    listed: tuple[Mismatch, ...] = ()
    """What was last found at each place, ascending."""
    more: int = 0
    """Units that differ and are not listed, for want of room."""
    mending: tuple[tuple[int, int, int], ...] = ()
    """(offset, length, slot) of what is being rewritten from a slot's copy and may not be flushed yet."""

    def but(self, **changes: Any) -> 'Scrub':
        return replace(self, **changes)

    def outvoted(self, slot: int) -> tuple[int, int]:
        """Return in how many listed places, and bytes, a slot's copy is not what most legs hold."""
        against = [one for one in self.listed if one.majority in (one.others(slot) or ())]
        return len(against), sum(one.length for one in against)

    def begin(self, action: str, source: uuid.UUID | None) -> 'Scrub':
        """A new pass, from `sync_min` on.  What lies below stays listed.  Refused(EBUSY) during one."""
        self._refuse_during_a_pass()
        start = self.sync_min * limits.SECTOR
        return self.but(action=action, source=source, position=start, differing=0, more=0)

    def _refuse_during_a_pass(self) -> None:
        if self.action:
            raise Refused(errno.EBUSY, f'a {self.action} is under way')

    def set_sync_min(self, sectors: int) -> 'Scrub':
        """Begin the next pass at a sector, rounded down.  Refused: EBUSY in a pass, EINVAL above sync_max."""
        self._refuse_during_a_pass()
        if self.sync_max is not None and sectors > self.sync_max:
            raise Refused(errno.EINVAL, f'{sectors} is above sync_max, which is {self.sync_max}')
        return self.but(sync_min=sectors // ALIGNED * ALIGNED)

    def set_sync_max(self, sectors: int | None) -> 'Scrub':
        """Pause at a sector; None: nowhere.  Refused: EINVAL below sync_min, EBUSY for less during a pass."""
        if sectors is not None:
            if sectors < self.sync_min:
                raise Refused(errno.EINVAL, f'{sectors} is below sync_min, which is {self.sync_min}')
            if self.action and (self.sync_max is None or sectors < self.sync_max):
                raise Refused(errno.EBUSY, f'during a {self.action} sync_max can only be raised')
        return self.but(sync_max=sectors)

    def set_mode(self, mode: str) -> 'Scrub':
        """Choose how to treat foreground I/O.  Refused(EINVAL) for what is none of MODES."""
        if mode not in MODES:
            raise Refused(errno.EINVAL, f'{mode!r} is not one of {", ".join(MODES)}')
        return self.but(mode=mode)

    def seen(self, start: int, end: int, differing: int, left: Iterable[Mismatch]) -> 'Scrub':
        """The pass went from `start` to `end`; `left` is what differs there now."""
        kept = [one for one in self.listed if not start <= one.offset < end]
        listed = sorted([*kept, *left], key=lambda one: one.offset)
        room = limits.MISMATCHES_MAX
        return self.but(
            position=end,
            differing=self.differing + differing,
            listed=tuple(listed[:room]),
            more=self.more + len(listed[room:]),
        )

    def finish(self) -> 'Scrub':
        """The pass has come to the volume's end."""
        return self.but(action='', source=None, position=0, sync_min=0, sync_max=None)

    def give_up(self) -> 'Scrub':
        """The pass ends before its time; the next one begins where it was."""
        if not self.action:
            return self
        at = self.position // limits.SECTOR // ALIGNED * ALIGNED
        return self.but(action='', source=None, position=0, sync_min=at)

    def trusted(self) -> dict[int, int]:
        """Return unit number to slot: whose copy is to be taken where legs must be made equal.

        Any leg in sync may be taken, but not a wrong one where a scrub has told which is right.
        """
        voted = {m.offset // UNIT: m.majority for m in self.listed if m.majority is not None}
        return {**voted, **{offset // UNIT: slot for offset, _, slot in self.mending}}


def encode(scrub: Scrub, volume: uuid.UUID) -> str:
    """Return a scrub's state as JSON."""
    return json.dumps(
        {
            'format': FORMAT,
            'volume': str(volume),
            'action': scrub.action,
            'source': str(scrub.source) if scrub.source else None,
            **{key: getattr(scrub, key) for key in _PLAIN},
            'listed': [[m.offset, m.length, m.groups] for m in scrub.listed],
            'mending': scrub.mending,
        }
    )


_PLAIN = ['position', 'sync_min', 'sync_max', 'mode', 'differing', 'more']


def decode(text: str, volume: uuid.UUID) -> Scrub:
    """Return the state that a text holds; that of another volume is none.  Raises BadMetadata."""
    try:
        raw = json.loads(text)
        if raw['format'] != FORMAT:
            raise BadMetadata(f'format {raw["format"]} is not known')
        if uuid.UUID(raw['volume']) != volume:
            return Scrub()
        if raw['action'] not in ('', 'check', 'repair') or raw['mode'] not in MODES:
            raise BadMetadata(f'no such action or mode: {raw["action"]!r}, {raw["mode"]!r}')
        numbers = [raw[key] for key in _PLAIN if key not in ('mode', 'sync_max')]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise BadMetadata('a number that is none')
        return Scrub(
            action=raw['action'],
            source=uuid.UUID(raw['source']) if raw['source'] else None,
            listed=tuple(_mismatch(*one) for one in raw['listed']),
            mending=tuple((int(offset), int(length), int(slot)) for offset, length, slot in raw['mending']),
            **{key: raw[key] for key in _PLAIN},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadMetadata(f'damaged: {type(error).__name__} {error}') from None


def _mismatch(offset: int, length: int, groups: Sequence[Any]) -> Mismatch:
    named = tuple((tuple(int(slot) for slot in slots), str(name)) for slots, name in groups)
    return Mismatch(int(offset), int(length), named)
