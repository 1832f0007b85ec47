"""How people name legs: by slot, path or UUID.  Pure."""

import errno
import os

from mirrorfs.errors import Refused
from mirrorfs.model import LegState, VolumeRecord


def find_slot(record: VolumeRecord, word: str) -> int:
    """Return the slot that a word names: its number, its leg's path or UUID (or the start of it).

    Raises Refused(ENOENT).
    """
    slots = record.slots
    known = [n for n, slot in enumerate(slots) if slot.state is not LegState.VACANT]
    if word.isascii() and word.isdigit():
        named = [n for n in known if record.place(n) == int(word)]
        if named:
            return named[0]
    for number in known:
        if slots[number].path and os.path.abspath(word) == os.path.abspath(slots[number].path):
            return number
    alike = [n for n in known if len(word) >= 4 and str(slots[n].leg).startswith(word.lower())]
    if len(alike) == 1:
        return alike[0]
    have = ', '.join(f'{record.place(n)} ({slots[n].path})' for n in sorted(known, key=record.place))
    raise Refused(errno.ENOENT, f'{record.name} has no leg {word!r}; it has {have}')
