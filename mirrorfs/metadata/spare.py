"""The mark of a shared spare: pure encoding and decoding of the page that says whose it is.

Specified in docs/format.md.  It lies in the idle page of a leg to be.  There is one copy: it is written
before anybody relies on it, and never changed but to the very same; torn, it is none.
"""

import struct
import uuid
from dataclasses import dataclass

import google_crc32c

from mirrorfs.limits import PAGE
from mirrorfs.metadata.copies import need

MAGIC = b'WIBM-SPR'
VERSION = 1
OFFSET = 0

_MARK = struct.Struct('<8sII16s16s')
_CRC = struct.Struct('<I')
_CRC_OFFSET = PAGE - _CRC.size


@dataclass(frozen=True, slots=True)
class SpareMark:
    """What a mark says: whose it is, and which."""

    pool: uuid.UUID
    spare: uuid.UUID


def encode_mark(mark: SpareMark) -> bytes:
    """Return the 4096 bytes of a mark."""
    page = bytearray(PAGE)
    _MARK.pack_into(page, 0, MAGIC, VERSION, PAGE, mark.pool.bytes, mark.spare.bytes)
    _CRC.pack_into(page, _CRC_OFFSET, google_crc32c.value(bytes(page[:_CRC_OFFSET])))
    return bytes(page)


def decode_mark(page: bytes) -> SpareMark:
    """Return what a mark says.  Raises BadMetadata for anything that is not a valid one."""
    need(len(page) == PAGE and page[: len(MAGIC)] == MAGIC, 'no mark of a spare here')
    stored = _CRC.unpack_from(page, _CRC_OFFSET)[0]
    need(stored == google_crc32c.value(page[:_CRC_OFFSET]), 'checksum of the mark is wrong')
    _, version, length, pool, spare = _MARK.unpack_from(page)
    need(version == VERSION and length == PAGE, f'version {version} of a mark is not known')
    return SpareMark(uuid.UUID(bytes=pool), uuid.UUID(bytes=spare))
