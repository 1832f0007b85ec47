"""How people name legs: by slot, path or UUID.  Pure."""

import difflib
import errno
import os
from collections.abc import Mapping
from typing import NamedTuple

from mirrorfs.errors import Refused
from mirrorfs.model import LegState, VolumeRecord

_UUID_START = 4
"""Letters that the start of a UUID has at least: a shorter one may be a slot number misremembered."""


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

    Raises Refused: ENOENT with the legs that there are, EINVAL where the start of a UUID is that of several.
    """
    path = os.path.abspath(word)
    placed = [key for key, leg in legs.items() if str(leg.place) == word]
    there = [key for key, leg in legs.items() if leg.path and os.path.abspath(leg.path) == path]
    begun = word.lower() if len(word) >= _UUID_START else '-'
    alike = [key for key, leg in legs.items() if leg.uuid.startswith(begun)]
    if len(alike) > 1 and not placed and not there:
        several = ', '.join(f'{legs[key].place} ({legs[key].uuid})' for key in alike)
        raise Refused(errno.EINVAL, f'{word!r} begins several UUIDs of legs of {volume}; name one: {several}')
    for found in (placed, there, alike):
        if found:
            return found[0]
    have = ', '.join(f'{leg.place} ({leg.path})' for leg in sorted(legs.values())) or 'none'
    meant = difflib.get_close_matches(path, [leg.path for leg in legs.values()], n=1, cutoff=0.8)
    hint = f'did you mean {meant[0]}? It has {have}' if meant and '/' in word else f'it has {have}'
    raise Refused(errno.ENOENT, f'{volume} has no leg {word!r}; {hint}')
