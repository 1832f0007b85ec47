"""The ``wibm`` leg format: pure encoding and decoding of superblocks and intent-log pages.

Every offset, size and rule is specified in docs/format.md; this module is its implementation and the two
must agree.  Nothing here does I/O.  A decoder given any bytes either returns valid metadata or raises
`BadMetadata`.

Sources: the order *idle page, superblock, bad-block list, log* follows the cluster bitmap layout of md
(seed 000); the page header *WIBM, size, primary/secondary, serial, crc* and one status byte a chunk follow
the dmmirror notes (seed 001).
"""

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from mirrorfs import limits
from mirrorfs.intent import states
from mirrorfs.metadata.copies import decode_name, need, newest
from mirrorfs.model import DetectZeroes, Generation, LegState, ReturnPolicy, Slot, VolumeRecord, WriterPolicy

States = npt.NDArray[np.uint8]

MAGIC = b'WIBM-SB\n'
VERSION = 1
PAGE = limits.PAGE
SUPER_OFFSETS = (PAGE, 2 * PAGE)
BAD_BLOCKS_OFFSET = 3 * PAGE
LOG_OFFSET = 5 * PAGE
SPARE_ROOM = 256 << 10
"""Bytes left free between the log and the data, for sections to come."""
DATA_ALIGN = 1 << 20

SECTION_BAD_BLOCKS = 1
SECTION_LOG = 2
INCOMPATIBLE_KNOWN = 0
READ_ONLY_COMPATIBLE_KNOWN = 0
FLAG_ACTIVE = 1
FLAG_LOGGED = 2
SLOT_FULL = 1
SLOT_WRITE_MOSTLY = 2
SLOT_FAILFAST = 4
SLOT_WANT_REPLACEMENT = 8
SLOT_BEHIND = 16

_HEADER = struct.Struct('<8sII QQQ 16s16s HHI QQQ IIQQ QQ IHH'.replace(' ', ''))
_SETTINGS = struct.Struct('<16s IIIII HBBB'.replace(' ', ''))
_SETTINGS_OFFSET = 160
_NAME_OFFSET = 256
_SLOT = struct.Struct('<16sBBBB4xQQ24x')
_SLOTS_OFFSET = 512
_SECTION = struct.Struct('<IIQQ8x')
_SECTIONS_OFFSET = 1536
_SECTIONS_MAX = 16
_GENERATION = struct.Struct('<16sQQ')
_LINEAGE_OFFSET = 2048
_CRC = struct.Struct('<I')
_CRC_OFFSET = PAGE - _CRC.size

LOG_MAGIC = b'WIBM'
LOG_VERSION = 1
PAGE_HEADER = 64
PAGE_CHUNKS = PAGE - PAGE_HEADER
"""Chunks whose states one log page holds."""
_PAGE = struct.Struct('<4sIBBHIQ16s')
_PAGE_CRC_OFFSET = PAGE_HEADER - _CRC.size
_PAGE_DTYPE = np.dtype(
    {
        'names': ['magic', 'size', 'copy', 'version', 'count', 'index', 'serial', 'uuid', 'crc'],
        'formats': ['S4', '<u4', 'u1', 'u1', '<u2', '<u4', '<u8', 'V16', '<u4'],
        'offsets': [0, 4, 8, 9, 10, 12, 16, 24, _PAGE_CRC_OFFSET],
        'itemsize': PAGE,
    }
)
NO_COPY = 255


@dataclass(frozen=True, slots=True)
class Section:
    """An area between superblocks and data.  `length` is that of one copy; copies follow each other."""

    kind: int
    copies: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.copies * self.length


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are on one leg.  All in bytes from the leg's start."""

    data_offset: int
    sections: tuple[Section, ...]

    @property
    def log(self) -> Section:
        return next(section for section in self.sections if section.kind == SECTION_LOG)

    def bad_blocks_offset(self, copy: int) -> int | None:
        """Return the leg offset of copy 0 or 1 of the bad-block list; None where there is no room for one."""
        for section in self.sections:
            if section.kind == SECTION_BAD_BLOCKS and section.copies == 2:
                return section.offset + copy * section.length
        return None

    @property
    def chunks_max(self) -> int:
        """How many chunks the reserved log can describe."""
        return min(limits.CHUNKS_MAX, self.log.length // PAGE * PAGE_CHUNKS)

    def page_offset(self, page: int, copy: int) -> int:
        """Return the leg offset, in bytes, of copy 0 or 1 of a log page."""
        return self.log.offset + copy * self.log.length + page * PAGE


@dataclass(frozen=True, slots=True)
class LegSuper:
    """What one superblock says: the volume, as this leg last knew it, and the leg itself."""

    record: VolumeRecord
    leg: uuid.UUID
    slot: int
    layout: Layout
    serial: int

    @property
    def needed_size(self) -> int:
        """Bytes that the leg must have."""
        return self.layout.data_offset + self.record.size


def pages_for(chunks: int) -> int:
    """Return how many log pages describe `chunks` chunks."""
    return -(-chunks // PAGE_CHUNKS)


def new_layout(size: int, chunk_size: int) -> Layout:
    """Return the layout of a new leg: log room for growth to 16 times `size` bytes, or the chunk limit."""
    chunks = min(limits.CHUNKS_MAX, limits.GROWTH_RESERVED * -(-size // chunk_size))
    log = Section(SECTION_LOG, 2, LOG_OFFSET, pages_for(chunks) * PAGE)
    bad_blocks = Section(SECTION_BAD_BLOCKS, 2, BAD_BLOCKS_OFFSET, PAGE)
    data = -(-(log.end + SPARE_ROOM) // DATA_ALIGN) * DATA_ALIGN
    return Layout(data, (bad_blocks, log))


def encode_super(sup: LegSuper) -> bytes:
    """Return the 4096 bytes of a superblock."""
    record, page = sup.record, bytearray(PAGE)
    name = record.name.encode()
    flags = FLAG_ACTIVE * record.active | FLAG_LOGGED * record.logged
    _HEADER.pack_into(
        page, 0, MAGIC, VERSION, PAGE,
        0, 0, 0,
        record.uuid.bytes, sup.leg.bytes,
        sup.slot, record.raid_disks, flags,
        sup.serial, record.events, record.size,
        record.chunk_size, record.time_base_ms, sup.layout.data_offset, record.created_us,
        record.updated_us, pages_for(record.chunks),
        len(record.lineage), len(sup.layout.sections), len(name),
    )  # fmt: skip
    page[_NAME_OFFSET : _NAME_OFFSET + len(name)] = name
    _SETTINGS.pack_into(
        page, _SETTINGS_OFFSET, record.log_id.bytes,
        record.backlog, record.spare_delay_ms, record.max_read_errors, record.speed_min, record.speed_max,
        record.quorum - 1, record.quorum_policy, record.return_policy, record.detect_zeroes,
    )  # fmt: skip
    for number, slot in enumerate(record.slots):
        at = _SLOTS_OFFSET + number * _SLOT.size
        facts = (slot.state, _slot_flags(slot), slot.replaces + 1, slot.place + 1)
        _SLOT.pack_into(page, at, slot.leg.bytes, *facts, slot.tracked_since, slot.mark)
    for number, section in enumerate(sup.layout.sections):
        at = _SECTIONS_OFFSET + number * _SECTION.size
        _SECTION.pack_into(page, at, section.kind, section.copies, section.offset, section.length)
    for number, step in enumerate(record.lineage):
        at = _LINEAGE_OFFSET + number * _GENERATION.size
        _GENERATION.pack_into(page, at, step.uuid.bytes, step.time_us, step.events)
    _CRC.pack_into(page, _CRC_OFFSET, google_crc32c.value(bytes(page[:_CRC_OFFSET])))
    return bytes(page)


def _slot_flags(slot: Slot) -> int:
    return (
        SLOT_FULL * slot.full
        | SLOT_WRITE_MOSTLY * slot.write_mostly
        | SLOT_FAILFAST * slot.failfast
        | SLOT_WANT_REPLACEMENT * slot.want_replacement
        | SLOT_BEHIND * slot.behind
    )


def has_magic(page: bytes) -> bool:
    """Return whether a superblock page claims to be ours, whole or not."""
    return page[: len(MAGIC)] == MAGIC


def decode_super(page: bytes) -> LegSuper:
    """Return what a superblock says.  Raises BadMetadata for anything that is not a valid one."""
    need(len(page) == PAGE, f'a superblock has {PAGE} bytes, not {len(page)}')
    need(has_magic(page), 'no wibm superblock here')
    stored = _CRC.unpack_from(page, _CRC_OFFSET)[0]
    need(stored == google_crc32c.value(page[:_CRC_OFFSET]), 'superblock checksum is wrong')
    (
        _, version, length, _, read_only_compatible, incompatible, volume, leg, slot, raid_disks, flags,
        serial, events, size, chunk_size, time_base_ms, data_offset, created_us, updated_us, pages,
        generations, sections, name_length,
    ) = _HEADER.unpack_from(page)  # fmt: skip
    need(version == VERSION and length == PAGE, f'superblock version {version} is not known')
    unknown = incompatible & ~INCOMPATIBLE_KNOWN | read_only_compatible & ~READ_ONLY_COMPATIBLE_KNOWN
    need(not unknown, f'superblock has features {unknown:#x} that this version does not know')
    good_chunk = limits.CHUNK_MIN <= chunk_size <= limits.CHUNK_MAX and chunk_size.bit_count() == 1
    need(good_chunk, 'bad chunk size')
    need(0 < size <= limits.CHUNKS_MAX * chunk_size and size % limits.SECTOR == 0, 'bad volume size')
    need(pages == pages_for(-(-size // chunk_size)), 'log page count does not fit the size')
    need(slot < limits.SLOTS and 1 <= raid_disks <= limits.LEGS_MAX, 'bad slot or leg count')
    need(1 <= generations <= limits.GENERATIONS_MAX and sections <= _SECTIONS_MAX, 'bad table size')
    need(limits.TIME_BASE_MIN * 1000 <= time_base_ms <= limits.TIME_BASE_MAX * 1000, 'bad time base')
    need(0 < serial < 1 << 63 and 0 < events < 1 << 63, 'bad serial or events')
    record = VolumeRecord(
        uuid=uuid.UUID(bytes=volume),
        name=decode_name(page[_NAME_OFFSET:_SLOTS_OFFSET], name_length),
        size=size,
        chunk_size=chunk_size,
        raid_disks=raid_disks,
        slots=tuple(_decode_slot(page, number, -(-size // chunk_size)) for number in range(limits.SLOTS)),
        lineage=tuple(_decode_generation(page, number) for number in range(generations)),
        events=events,
        logged=bool(flags & FLAG_LOGGED),
        active=bool(flags & FLAG_ACTIVE),
        created_us=created_us,
        updated_us=updated_us,
        time_base_ms=time_base_ms,
        **_decode_settings(page),
    )
    places = {record.place(number) for number in range(limits.SLOTS)}
    need(len(places) == limits.SLOTS, 'two slots have the same place')
    layout = _decode_layout(page, sections, data_offset)
    need(record.chunks <= layout.chunks_max, 'the log is too short for the volume')
    return LegSuper(record, uuid.UUID(bytes=leg), slot, layout, serial)


def newest_super(first: bytes, second: bytes) -> tuple[LegSuper, int]:
    """Return the newer valid superblock of two copies, and which copy it is.  Raises BadMetadata."""
    return newest(decode_super, (first, second))


_NO_SLOT = bytes(_SLOT.size)
_VACANT = Slot()
_LEG_STATES = frozenset(LegState)
_WRITER_POLICIES = frozenset(WriterPolicy)
_RETURN_POLICIES = frozenset(ReturnPolicy)
_DETECT_ZEROES = frozenset(DetectZeroes)


def _decode_slot(page: bytes, number: int, chunks: int) -> Slot:
    start = _SLOTS_OFFSET + number * _SLOT.size
    if page.startswith(_NO_SLOT, start):  # as most are
        return _VACANT
    leg, state, flags, replaces, place, tracked_since, mark = _SLOT.unpack_from(page, start)
    need(state in _LEG_STATES, f'slot {number} has unknown state {state}')
    need(mark <= chunks, f'slot {number} has a mark beyond the volume')
    need(replaces <= limits.SLOTS, f'slot {number} replaces one that cannot be')
    need(place <= limits.SLOTS, f'slot {number} is in a place that cannot be')
    return Slot(
        LegState(state),
        uuid.UUID(bytes=leg),
        tracked_since,
        mark,
        full=bool(flags & SLOT_FULL),
        write_mostly=bool(flags & SLOT_WRITE_MOSTLY),
        failfast=bool(flags & SLOT_FAILFAST),
        want_replacement=bool(flags & SLOT_WANT_REPLACEMENT),
        behind=bool(flags & SLOT_BEHIND),
        replaces=replaces - 1,
        place=place - 1,
    )


def _decode_settings(page: bytes) -> dict[str, Any]:
    log_id, backlog, delay, errors, low, high, quorum, policy, back, zeroes = _SETTINGS.unpack_from(
        page, _SETTINGS_OFFSET
    )
    need(backlog <= limits.BACKLOG_MAX, 'bad backlog')
    need(delay <= limits.SPARE_DELAY_MAX * 1000, 'bad spare delay')
    need(quorum < limits.LEGS_MAX, 'bad quorum')
    need(policy in _WRITER_POLICIES and back in _RETURN_POLICIES, 'bad policy')
    need(zeroes in _DETECT_ZEROES, 'bad detect_zeroes')
    return {
        'log_id': uuid.UUID(bytes=log_id),
        'backlog': backlog,
        'spare_delay_ms': delay,
        'max_read_errors': errors,
        'speed_min': low,
        'speed_max': high,
        'quorum': quorum + 1,
        'quorum_policy': WriterPolicy(policy),
        'return_policy': ReturnPolicy(back),
        'detect_zeroes': DetectZeroes(zeroes),
    }


def _decode_generation(page: bytes, number: int) -> Generation:
    step, time_us, events = _GENERATION.unpack_from(page, _LINEAGE_OFFSET + number * _GENERATION.size)
    return Generation(uuid.UUID(bytes=step), time_us, events)


def _decode_layout(page: bytes, count: int, data_offset: int) -> Layout:
    sections = []
    end = BAD_BLOCKS_OFFSET
    for number in range(count):
        section = Section(*_SECTION.unpack_from(page, _SECTIONS_OFFSET + number * _SECTION.size))
        aligned = section.offset % PAGE == 0 and section.length % PAGE == 0 and section.length > 0
        need(aligned and 1 <= section.copies <= 4, f'section {number} is malformed')
        need(section.offset >= end, f'section {number} overlaps what is before it')
        end = section.end
        sections.append(section)
    need(data_offset >= end and data_offset % PAGE == 0 and data_offset < 1 << 62, 'bad data offset')
    logs = [section for section in sections if section.kind == SECTION_LOG]
    need(len(logs) == 1 and logs[0].copies == 2, 'there must be one log, with two copies')
    return Layout(data_offset, tuple(sections))


def encode_page(volume: uuid.UUID, page: int, copy: int, serial: int, chunk_states: States) -> bytes:
    """Return the 4096 bytes of log page `page`, copy 0 (primary) or 1 (secondary).

    `chunk_states`: uint8, at most PAGE_CHUNKS of them, those of the chunks from page * PAGE_CHUNKS on.
    """
    raw = bytearray(PAGE)
    count = len(chunk_states)
    _PAGE.pack_into(raw, 0, LOG_MAGIC, PAGE, copy + 1, LOG_VERSION, count, page, serial, volume.bytes)
    raw[PAGE_HEADER : PAGE_HEADER + count] = chunk_states.tobytes()
    _CRC.pack_into(raw, _PAGE_CRC_OFFSET, _page_crc(bytes(raw)))
    return bytes(raw)


def _page_crc(raw: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(raw[:_PAGE_CRC_OFFSET]), raw[PAGE_HEADER:]))


@dataclass(slots=True)
class LogImage:
    """One leg's intent log, decoded.

    `states`: uint8 [chunks].  `serials`: uint64 [pages], 0 where no copy is whole.  `current`: uint8
    [pages], the copy (0 or 1) the state is from, NO_COPY where none is whole; such pages have states 0.
    """

    states: States
    serials: npt.NDArray[np.uint64]
    current: npt.NDArray[np.uint8]

    @property
    def damaged(self) -> int:
        """How many pages have no whole copy."""
        return int(np.count_nonzero(self.current == NO_COPY))


def decode_log(volume: uuid.UUID, chunks: int, read_copy: Callable[[int], bytes]) -> LogImage:
    """Return the newest whole copy of every page of one leg's log.

    `read_copy(copy)` returns the bytes of all pages that `chunks` chunks need; short or damaged ones are
    taken as damaged, never as an error.
    """
    pages = pages_for(chunks)
    image = LogImage(
        np.zeros(pages * PAGE_CHUNKS, np.uint8), np.zeros(pages, np.uint64), np.full(pages, NO_COPY, np.uint8)
    )
    by_page = image.states.reshape(pages, PAGE_CHUNKS)
    for copy in (0, 1):
        raw = read_copy(copy)
        raw = raw[: pages * PAGE].ljust(pages * PAGE, b'\0')
        headers = np.frombuffer(raw, _PAGE_DTYPE)
        body = np.frombuffer(raw, np.uint8).reshape(pages, PAGE)[:, PAGE_HEADER:]
        better = _plausible(headers, volume, copy, chunks) & (headers['serial'] > image.serials)
        for page in np.flatnonzero(better).tolist():
            if _page_crc(raw[page * PAGE : (page + 1) * PAGE]) != headers['crc'][page]:
                better[page] = False
        better &= ~np.any(body & ~np.uint8(states.ALL), axis=1)
        by_page[better] = body[better]
        image.serials[better] = headers['serial'][better]
        image.current[better] = copy
    image.states = image.states[:chunks]
    return image


def _plausible(headers: Any, volume: uuid.UUID, copy: int, chunks: int) -> npt.NDArray[np.bool_]:
    """Return which page headers (bool [pages]) could be of this volume and copy; no checksums yet."""
    pages = len(headers)
    counts = np.full(pages, PAGE_CHUNKS)
    counts[-1] = chunks - (pages - 1) * PAGE_CHUNKS  # at least: growing writes longer pages first
    ok: npt.NDArray[np.bool_] = (
        (headers['magic'] == LOG_MAGIC)
        & (headers['size'] == PAGE)
        & (headers['copy'] == copy + 1)
        & (headers['version'] == LOG_VERSION)
        & (headers['count'] >= counts)
        & (headers['count'] <= PAGE_CHUNKS)
        & (headers['index'] == np.arange(pages))
        & (headers['serial'] > 0)
        & (headers['serial'] < np.uint64(1 << 63))
        & (headers['uuid'] == np.void(volume.bytes))
    )
    return ok
