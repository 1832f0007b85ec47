"""The flags of a chunk in the intent log, as stored (one byte a chunk) and in memory (numpy uint8).

They combine, for example a chunk that look-ahead marked before its first write is DIRTY | UNWRITTEN.
The values are part of the on-disk format: see docs/format.md.
"""

DIRTY = 0x01
"""A write may be under way: legs may differ here after an unclean stop."""
MODIFIED = 0x02
"""Written, or perhaps written, while a leg was away: an absent or recovering leg needs it."""
NEEDS_RESYNC = 0x04
"""Legs are known to differ perhaps; made equal before the next read or write."""
UNWRITTEN = 0x08
"""Never written, or discarded: reads as zeros whatever the medium holds."""
UNZEROED = 0x10
"""Goes with UNWRITTEN: the medium is not known to hold zeros; the first write zeroes the chunk."""

ALL = DIRTY | MODIFIED | NEEDS_RESYNC | UNWRITTEN | UNZEROED
WORDS = {
    DIRTY: 'dirty',
    MODIFIED: 'modified',
    NEEDS_RESYNC: 'needs_resync',
    UNWRITTEN: 'unwritten',
    UNZEROED: 'unzeroed',
}
