"""How people name legs: by slot, path or UUID.  Pure."""

import errno
import os
from collections.abc import Mapping
from typing import NamedTuple

from mirrorfs.errors import Refused
from mirrorfs.model import LegState, VolumeRecord


class Names(NamedTuple):
    """What a leg is known by."""

    place: int
    path: str
    uuid: str


def find_slot(record: VolumeRecord, word: str) -> int:
    """Return the slot that a word names; see `find`."""
    known = {
        number: Names(record.place(number), slot.path, str(slot.leg))
        for number, slot in enumerate(record.slots)
        if slot.state is not LegState.VACANT
    }
    return find(known, word, record.name)


def find(legs: Mapping[int, Names], word: str, volume: str) -> int:
    """Return the key of the leg that a word names: its place, path or UUID (or the start of it).

    Raises Refused(ENOENT), which says what legs the volume has.
    """
    path = os.path.abspath(word)
    placed = [key for key, leg in legs.items() if str(leg.place) == word]
    there = [key for key, leg in legs.items() if leg.path and os.path.abspath(leg.path) == path]
    alike = [key for key, leg in legs.items() if len(word) >= 4 and leg.uuid.startswith(word.lower())]
    for found in (placed, there, alike if len(alike) == 1 else []):
        if found:
            return found[0]
    have = ', '.join(f'{leg.place} ({leg.path})' for leg in sorted(legs.values()))
    raise Refused(errno.ENOENT, f'{volume} has no leg {word!r}; it has {have}')
