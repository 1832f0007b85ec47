"""The bad-block list of a leg: pure encoding and decoding of its one page, specified in docs/format.md.

The page has two copies, written in turn; of two whole ones the larger serial is right.  An entry is md's: the
first sector, counted from the start of the leg's data, and how many there are, in 64 bits.
"""

import struct
import uuid
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from mirrorfs import limits
from mirrorfs.metadata import copies
from mirrorfs.metadata.copies import need

MAGIC = b'WIBM-BB\n'
VERSION = 1
PAGE = limits.PAGE
LENGTH_MAX = 512
"""Sectors that one entry can name."""
SECTOR_MAX = (1 << 54) - 1
ALIGNMENT = limits.PAGE // limits.SECTOR
"""Sectors and lengths are multiples of this."""

_HEADER = struct.Struct('<8sIIQ16s16s')
_CRC = struct.Struct('<I')
_CRC_OFFSET = 60
_ENTRIES_OFFSET = 64
_ACKNOWLEDGED = np.uint64(1 << 63)
_LENGTH_MASK = np.uint64(LENGTH_MAX - 1)

Sectors = npt.NDArray[np.int64]
Entries = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class BadList:
    """What one page says.  `sectors`, `lengths`: int64 [n], ascending, without overlap; in sectors."""

    serial: int
    sectors: Sectors
    lengths: Sectors


def encode(volume: uuid.UUID, leg: uuid.UUID, said: BadList) -> bytes:
    """Return the 4096 bytes of a list of at most `limits.BAD_BLOCKS_MAX` entries."""
    count = len(said.sectors)
    assert count <= limits.BAD_BLOCKS_MAX
    page = bytearray(PAGE)
    _HEADER.pack_into(page, 0, MAGIC, VERSION, count, said.serial, volume.bytes, leg.bytes)
    entries = said.sectors.astype('<u8') << np.uint64(9) | (said.lengths.astype('<u8') - np.uint64(1))
    page[_ENTRIES_OFFSET : _ENTRIES_OFFSET + 8 * count] = (entries | _ACKNOWLEDGED).tobytes()
    _CRC.pack_into(page, _CRC_OFFSET, _crc(bytes(page)))
    return bytes(page)


def _crc(page: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(page[:_CRC_OFFSET]), page[_ENTRIES_OFFSET:]))


def decode(volume: uuid.UUID, leg: uuid.UUID, page: bytes) -> BadList:
    """Return what a page says of this leg.  Raises BadMetadata for anything that is not a valid one."""
    need(len(page) == PAGE and page.startswith(MAGIC), 'no bad-block list here')
    need(_CRC.unpack_from(page, _CRC_OFFSET)[0] == _crc(page), 'bad-block list: checksum is wrong')
    _, version, count, serial, whose, which = _HEADER.unpack_from(page)
    need(version == VERSION, f'bad-block list version {version} is not known')
    need((whose, which) == (volume.bytes, leg.bytes), 'bad-block list of another leg')
    need(count <= limits.BAD_BLOCKS_MAX and 0 < serial < 1 << 63, 'bad-block list: bad count or serial')
    entries: Entries = np.frombuffer(page, '<u8', count, _ENTRIES_OFFSET)
    sectors = ((entries & ~_ACKNOWLEDGED) >> np.uint64(9)).astype(np.int64)
    lengths = (entries & _LENGTH_MASK).astype(np.int64) + 1
    need(np.all(entries & _ACKNOWLEDGED), 'bad-block list: an entry is not acknowledged')
    need(not np.any((sectors | lengths) % ALIGNMENT), 'bad-block list: an entry is not aligned')
    need(np.all(sectors[1:] >= (sectors + lengths)[:-1]), 'bad-block list: entries overlap')
    return BadList(serial, sectors, lengths)


def owner(page: bytes) -> tuple[uuid.UUID, uuid.UUID]:
    """Return the volume and the leg that a page says it is of.  Raises BadMetadata for what is no list."""
    need(len(page) == PAGE and page.startswith(MAGIC), 'no bad-block list here')
    whose, which = _HEADER.unpack_from(page)[4:]
    return uuid.UUID(bytes=whose), uuid.UUID(bytes=which)


def newest(volume: uuid.UUID, leg: uuid.UUID, first: bytes, second: bytes) -> tuple[BadList, int]:
    """Return the newer whole list of two copies, and which copy it is.  Raises BadMetadata."""
    return copies.newest(lambda page: decode(volume, leg, page), (first, second))
