"""The intent log in a file of its own: pure encoding and decoding of its header, and where its pages are.

Specified in docs/format.md.  The pages are those of a leg's log (`mirrorfs.metadata.wibm`), but bear the
log's UUID in the place of the volume's: what an older log left in the same file is no page of this one.
"""

import struct
import uuid
from dataclasses import dataclass

import google_crc32c

from mirrorfs import limits
from mirrorfs.metadata.copies import decode_name, need, newest
from mirrorfs.metadata.wibm import PAGE, PAGE_CHUNKS, pages_for

MAGIC = b'WIBM-LOG'
VERSION = 1
HEADER_OFFSETS = (0, PAGE)
PAGES_OFFSET = 2 * PAGE

_HEADER = struct.Struct('<8sII 16s16s QQQ IIH'.replace(' ', ''))
_NAME_OFFSET = 256
_CRC = struct.Struct('<I')
_CRC_OFFSET = PAGE - _CRC.size


@dataclass(frozen=True, slots=True)
class LogLayout:
    """Where the pages are: `room` of them, in two copies."""

    room: int

    @property
    def size(self) -> int:
        """Bytes that the file must have."""
        return PAGES_OFFSET + 2 * self.room * PAGE

    @property
    def chunks_max(self) -> int:
        """How many chunks the log can describe."""
        return min(limits.CHUNKS_MAX, self.room * PAGE_CHUNKS)

    def page_offset(self, page: int, copy: int) -> int:
        """Return the offset, in bytes, of copy 0 or 1 of a page."""
        return PAGES_OFFSET + (copy * self.room + page) * PAGE


@dataclass(frozen=True, slots=True)
class LogHeader:
    """What a log's header says.  `serial` and `events` are those of the superblocks written after it."""

    log: uuid.UUID
    volume: uuid.UUID
    name: str
    size: int
    """Of the volume, in bytes."""
    chunk_size: int
    serial: int
    events: int
    layout: LogLayout

    @property
    def chunks(self) -> int:
        return -(-self.size // self.chunk_size)


def new_layout(size: int, chunk_size: int, most: int = 1 << 62) -> LogLayout:
    """Return the layout of a new log: room for growth as on a leg, or what `most` bytes hold if that is less.

    The room may be too small for the volume then.
    """
    chunks = min(limits.CHUNKS_MAX, limits.GROWTH_RESERVED * -(-size // chunk_size))
    return LogLayout(max(0, min(pages_for(chunks), (most - PAGES_OFFSET) // (2 * PAGE))))


def encode_header(header: LogHeader) -> bytes:
    """Return the 4096 bytes of a header."""
    page, name = bytearray(PAGE), header.name.encode()
    _HEADER.pack_into(
        page, 0, MAGIC, VERSION, PAGE,
        header.volume.bytes, header.log.bytes,
        header.serial, header.events, header.size,
        header.chunk_size, header.layout.room, len(name),
    )  # fmt: skip
    page[_NAME_OFFSET : _NAME_OFFSET + len(name)] = name
    _CRC.pack_into(page, _CRC_OFFSET, google_crc32c.value(bytes(page[:_CRC_OFFSET])))
    return bytes(page)


def decode_header(page: bytes) -> LogHeader:
    """Return what a header says.  Raises BadMetadata for anything that is not a valid one."""
    need(len(page) == PAGE and page[: len(MAGIC)] == MAGIC, 'no log header here')
    stored = _CRC.unpack_from(page, _CRC_OFFSET)[0]
    need(stored == google_crc32c.value(page[:_CRC_OFFSET]), 'log header checksum is wrong')
    (
        _, version, length, volume, log,
        serial, events, size, chunk_size, room, name_length,
    ) = _HEADER.unpack_from(page)  # fmt: skip
    need(version == VERSION and length == PAGE, f'log version {version} is not known')
    good_chunk = limits.CHUNK_MIN <= chunk_size <= limits.CHUNK_MAX and chunk_size.bit_count() == 1
    need(good_chunk, 'bad chunk size')
    need(0 < size <= limits.CHUNKS_MAX * chunk_size and size % limits.SECTOR == 0, 'bad volume size')
    need(0 < serial < 1 << 63 and 0 < events < 1 << 63, 'bad serial or events')
    name = decode_name(page[_NAME_OFFSET:], name_length)
    identity, owner = uuid.UUID(bytes=log), uuid.UUID(bytes=volume)
    header = LogHeader(identity, owner, name, size, chunk_size, serial, events, LogLayout(room))
    need(header.chunks <= header.layout.chunks_max, 'the log is too short for the volume')
    return header


def newest_header(first: bytes, second: bytes) -> tuple[LogHeader, int]:
    """Return the newer valid header of two copies, and which copy it is.  Raises BadMetadata."""
    return newest(decode_header, (first, second))
