"""The wibm format: round trips, offsets pinned by a worked example, and decoders that survive any bytes."""

import hashlib
import random
import struct
import uuid

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs import limits
from mirrorfs.errors import BadMetadata
from mirrorfs.intent import states
from mirrorfs.metadata import wibm
from mirrorfs.model import DetectZeroes, Generation, LegState, Slot, VolumeRecord, default_chunk_size

GIB = 1 << 30
VOLUME = uuid.UUID('11111111-2222-3333-4444-555555555555')
LEG = uuid.UUID('aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee')
OTHER = uuid.UUID(int=0xFEED)


def example() -> wibm.LegSuper:
    """Return the worked example: 10 GiB, 1 MiB chunks, leg 0 in sync, leg 1 faulty."""
    record = VolumeRecord(
        uuid=VOLUME,
        name='plätze',
        size=10 * GIB,
        chunk_size=1 << 20,
        raid_disks=2,
        slots=(
            Slot(LegState.IN_SYNC, LEG),
            Slot(LegState.FAULTY, OTHER, tracked_since=6, mark=77, full=True),
            *[Slot()] * 14,
        ),
        lineage=(Generation(uuid.UUID(int=1), 1000, 1), Generation(uuid.UUID(int=2), 2000, 7)),
        events=7,
        active=True,
        created_us=1000,
        updated_us=3000,
        time_base_ms=5000,
    )
    return wibm.LegSuper(record, LEG, 0, wibm.new_layout(record.size, record.chunk_size), serial=42)


# Offsets

FIELDS = [
    ('magic', 0, '8s', b'WIBM-SB\n'),
    ('version', 8, '<I', 1),
    ('length', 12, '<I', 4096),
    ('compatible', 16, '<Q', 0),
    ('read-only compatible', 24, '<Q', 0),
    ('incompatible', 32, '<Q', 0),
    ('volume', 40, '16s', VOLUME.bytes),
    ('leg', 56, '16s', LEG.bytes),
    ('slot', 72, '<H', 0),
    ('raid_disks', 74, '<H', 2),
    ('flags', 76, '<I', 3),
    ('serial', 80, '<Q', 42),
    ('events', 88, '<Q', 7),
    ('size', 96, '<Q', 10 * GIB),
    ('chunk size', 104, '<I', 1 << 20),
    ('time base', 108, '<I', 5000),
    ('data offset', 112, '<Q', 1 << 20),
    ('created', 120, '<Q', 1000),
    ('updated', 128, '<Q', 3000),
    ('log pages', 136, '<Q', 3),
    ('generations', 144, '<I', 2),
    ('sections', 148, '<H', 2),
    ('name length', 150, '<H', 7),
    ('log in a file', 160, '16s', bytes(16)),
    ('backlog', 176, '<I', 0),
    ('spare delay', 180, '<I', 30000),
    ('read errors', 184, '<I', 20),
    ('speeds', 188, '<Q', 0),
    ('quorum', 196, '<H', 0),
    ('policies', 198, '<H', 0),
    ('detect zeroes', 200, '<B', 0),
]


def test_superblock_fields_are_where_the_format_says() -> None:
    page = wibm.encode_super(example())
    assert len(page) == 4096
    layout = example().layout
    for name, offset, form, value in FIELDS:
        assert struct.unpack_from(form, page, offset) == (value,), name
    assert page[256:263] == 'plätze'.encode()
    assert page[263:512] == bytes(512 - 263)
    assert struct.unpack_from('<16sBB6xQQ', page, 512) == (LEG.bytes, 1, 0, 0, 0)
    assert struct.unpack_from('<16sBB6xQQ', page, 576) == (OTHER.bytes, 3, 1, 6, 77)
    assert struct.unpack_from('<IIQQ', page, 1536) == (1, 2, 0x3000, 4096)
    assert struct.unpack_from('<IIQQ', page, 1568) == (2, 2, 0x5000, layout.log.length)
    assert struct.unpack_from('<16sQQ', page, 2048) == (uuid.UUID(int=1).bytes, 1000, 1)
    assert struct.unpack_from('<16sQQ', page, 2080) == (uuid.UUID(int=2).bytes, 2000, 7)
    assert struct.unpack_from('<I', page, 4092) == (google_crc32c.value(page[:4092]),)


def test_the_worked_superblock_never_changes() -> None:
    digest = hashlib.sha256(wibm.encode_super(example())).hexdigest()
    assert digest == '6394974ba00fe51d7d7a6f8e00bdfc86f3c1ea1cc87d9f91bd09b0ef845c29f0'


def test_log_page_fields_are_where_the_format_says() -> None:
    page = wibm.encode_page(VOLUME, 5, 1, 99, np.array([1, 2, 8], np.uint8))
    assert struct.unpack_from('<4sIBBHIQ16s', page) == (b'WIBM', 4096, 2, 1, 3, 5, 99, VOLUME.bytes)
    assert page[40:60] == bytes(20)
    assert struct.unpack_from('<I', page, 60) == (google_crc32c.value(page[:60] + page[64:]),)
    assert page[64:] == b'\x01\x02\x08' + bytes(4029)
    assert (
        hashlib.sha256(page).hexdigest() == 'c89a677a485a49e7761d8a26047a0101d49cc3a91c40c3215ad9e86d97878e83'
    )


def test_areas_before_the_data_are_where_the_format_says() -> None:
    assert wibm.SUPER_OFFSETS == (0x1000, 0x2000)
    assert (wibm.BAD_BLOCKS_OFFSET, wibm.LOG_OFFSET) == (0x3000, 0x5000)
    layout = wibm.new_layout(10 * GIB, 1 << 20)
    assert layout.page_offset(0, 0) == 0x5000
    assert layout.page_offset(2, 1) == 0x5000 + layout.log.length + 2 * 4096
    assert layout.data_offset % (1 << 20) == 0
    assert layout.data_offset >= layout.log.end + (256 << 10)


# Round trips

uuids = st.uuids()
counters = st.integers(0, (1 << 63) - 1)


@st.composite
def supers(draw: st.DrawFn) -> wibm.LegSuper:
    chunk = 1 << draw(st.integers(16, 26))
    size = draw(st.integers(1, limits.CHUNKS_MAX * chunk // 512)) * 512
    chunks = -(-size // chunk)
    slot = st.builds(
        Slot, st.sampled_from(LegState), uuids, counters, st.integers(0, chunks), st.booleans(), st.just('')
    )
    record = VolumeRecord(
        uuid=draw(uuids),
        name=draw(st.text(st.characters(exclude_categories=('Cs',)), min_size=1, max_size=32)),
        size=size,
        chunk_size=chunk,
        raid_disks=draw(st.integers(1, limits.LEGS_MAX)),
        slots=tuple(draw(st.lists(slot, min_size=limits.SLOTS, max_size=limits.SLOTS))),
        lineage=tuple(
            draw(st.lists(st.builds(Generation, uuids, counters, counters), min_size=1, max_size=40))
        ),
        events=draw(st.integers(1, (1 << 63) - 1)),
        logged=draw(st.booleans()),
        active=draw(st.booleans()),
        created_us=draw(counters),
        updated_us=draw(counters),
        time_base_ms=draw(st.integers(10, 3_600_000)),
        detect_zeroes=draw(st.sampled_from(DetectZeroes)),
    )
    layout = wibm.new_layout(size, chunk)
    serial = draw(st.integers(1, (1 << 63) - 1))
    return wibm.LegSuper(record, draw(uuids), draw(st.integers(0, 15)), layout, serial)


@settings(max_examples=150, deadline=None)
@given(supers())
def test_a_superblock_says_what_was_encoded(sup: wibm.LegSuper) -> None:
    assert wibm.decode_super(wibm.encode_super(sup)) == sup


def log_image(chunks: int, flags: np.ndarray, serials: dict[tuple[int, int], int]) -> dict[int, bytearray]:
    """Return both copies of a log; `serials` maps (page, copy) to a serial; missing ones are zeros."""
    pages = wibm.pages_for(chunks)
    copies = {copy: bytearray(pages * wibm.PAGE) for copy in (0, 1)}
    for (page, copy), serial in serials.items():
        part = flags[page * wibm.PAGE_CHUNKS : (page + 1) * wibm.PAGE_CHUNKS]
        raw = wibm.encode_page(VOLUME, page, copy, serial, part)
        copies[copy][page * wibm.PAGE : (page + 1) * wibm.PAGE] = raw
    return copies


def decode(chunks: int, copies: dict[int, bytearray]) -> wibm.LogImage:
    return wibm.decode_log(VOLUME, chunks, lambda copy: bytes(copies[copy]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3 * wibm.PAGE_CHUNKS), st.integers(0, 2**32 - 1), st.data())
def test_a_log_says_what_was_encoded_from_the_newest_copy(
    chunks: int, seed: int, data: st.DataObject
) -> None:
    flags = np.random.default_rng(seed).integers(0, states.ALL + 1, chunks, dtype=np.uint8)
    serials = {}
    wanted_copy = []
    for page in range(wibm.pages_for(chunks)):
        present = data.draw(st.sampled_from([(0,), (1,), (0, 1)]))
        for copy in present:
            serials[page, copy] = data.draw(st.integers(1, 1 << 40))
        wanted_copy.append(max(present, key=lambda copy, page=page: (serials[page, copy], -copy)))
    image = decode(chunks, log_image(chunks, flags, serials))
    assert np.array_equal(image.states, flags)
    assert image.current.tolist() == wanted_copy
    assert image.serials.tolist() == [serials[page, copy] for page, copy in enumerate(wanted_copy)]
    assert image.damaged == 0


# Two copies


def test_the_superblock_with_the_higher_serial_wins_whichever_copy_it_is() -> None:
    sup = example()
    old = wibm.encode_super(sup)
    new = wibm.encode_super(wibm.LegSuper(sup.record.but(events=8), sup.leg, 0, sup.layout, 43))
    assert wibm.newest_super(old, new)[0].record.events == 8
    assert wibm.newest_super(old, new)[1] == 1
    assert wibm.newest_super(new, old)[1] == 0


def test_a_torn_superblock_leaves_the_other_copy_and_two_torn_ones_are_bad_metadata() -> None:
    sup = example()
    old = wibm.encode_super(sup)
    new = wibm.encode_super(wibm.LegSuper(sup.record.but(name='new', events=8), sup.leg, 0, sup.layout, 43))
    for cut in range(512, 4096, 512):
        torn = new[:cut] + old[cut:]
        assert wibm.newest_super(old, torn) == (sup, 0)
        assert wibm.newest_super(torn, old) == (sup, 1)
        with pytest.raises(BadMetadata, match='checksum'):
            wibm.newest_super(torn, torn)


def test_a_torn_log_page_leaves_the_other_copy() -> None:
    flags = np.full(100, states.DIRTY, np.uint8)
    for damaged in (0, 1):
        copies = log_image(100, flags, {(0, 0): 5, (0, 1): 5})
        copies[damaged][2048:2560] = b'\xee' * 512
        image = decode(100, copies)
        assert image.current.tolist() == [1 - damaged]
        assert np.array_equal(image.states, flags)


def test_a_zeroed_log_page_is_damage_and_not_a_clean_page() -> None:
    chunks = 2 * wibm.PAGE_CHUNKS
    image = decode(chunks, log_image(chunks, np.zeros(chunks, np.uint8), {(0, 0): 1}))
    assert image.damaged == 1
    assert image.current.tolist() == [0, wibm.NO_COPY]
    assert image.serials.tolist() == [1, 0]


def test_a_log_that_ends_early_is_damage_and_not_an_error() -> None:
    chunks = 3 * wibm.PAGE_CHUNKS
    flags = np.ones(chunks, np.uint8)
    copies = log_image(chunks, flags, {(page, 0): 1 for page in range(3)})
    for length in (0, 1, 4096, 5000, 8192, 12287):
        short = {0: copies[0][:length], 1: bytearray()}
        assert decode(chunks, short).damaged == 3 - length // 4096


def page_with(**changes: int) -> bytearray:
    """Return a log page whose header differs in one field, with a right checksum."""
    raw = bytearray(wibm.encode_page(VOLUME, 0, 0, 1, np.zeros(100, np.uint8)))
    places = {'magic': (0, '<I'), 'size': (4, '<I'), 'copy': (8, '<B'), 'version': (9, '<B'),
              'count': (10, '<H'), 'index': (12, '<I'), 'serial': (16, '<Q'),
              'state': (64, '<B')}  # fmt: skip
    for name, value in changes.items():
        struct.pack_into(places[name][1], raw, places[name][0], value)
    struct.pack_into('<I', raw, 60, google_crc32c.value(bytes(raw[:60] + raw[64:])))
    return raw


@pytest.mark.parametrize(
    'changes',
    [{'magic': 0}, {'size': 512}, {'copy': 2}, {'copy': 0}, {'version': 2}, {'count': 99}, {'count': 4033},
     {'index': 1}, {'serial': 0}, {'serial': 1 << 63}, {'state': 0x20}],
    ids=str,
)  # fmt: skip
def test_a_log_page_with_a_wrong_field_is_damage_though_its_checksum_is_right(
    changes: dict[str, int],
) -> None:
    assert decode(100, {0: page_with(), 1: bytearray(4096)}).damaged == 0
    assert decode(100, {0: page_with(**changes), 1: bytearray(4096)}).damaged == 1


def test_log_pages_of_another_volume_are_ignored() -> None:
    copies = log_image(100, np.ones(100, np.uint8), {(0, 0): 9, (0, 1): 8})
    image = wibm.decode_log(OTHER, 100, lambda copy: bytes(copies[copy]))
    assert image.damaged == 1
    assert not image.states.any()


# Refusals


def resealed(page: bytes, offset: int, form: str, value: int) -> bytes:
    """Return a superblock with one field changed and the checksum made right."""
    raw = bytearray(page)
    struct.pack_into(form, raw, offset, value)
    struct.pack_into('<I', raw, 4092, google_crc32c.value(bytes(raw[:4092])))
    return bytes(raw)


@pytest.mark.parametrize(
    ('offset', 'form', 'value', 'complaint'),
    [
        (8, '<I', 2, 'version'),
        (12, '<I', 512, 'version'),
        (24, '<Q', 4, 'features 0x4'),
        (32, '<Q', 1 << 63, 'features'),
        (72, '<H', 16, 'bad slot'),
        (74, '<H', 0, 'leg count'),
        (74, '<H', 9, 'leg count'),
        (80, '<Q', 0, 'bad serial'),
        (88, '<Q', 1 << 63, 'bad serial'),
        (96, '<Q', 0, 'bad volume size'),
        (96, '<Q', 10 * GIB + 1, 'bad volume size'),
        (96, '<Q', 11 * GIB * 1000, 'log page count'),
        (104, '<I', 1 << 15, 'chunk size'),
        (104, '<I', (1 << 20) + 1, 'chunk size'),
        (104, '<I', 1 << 27, 'chunk size'),
        (108, '<I', 9, 'time base'),
        (512 + 16, '<B', 8, 'unknown state 8'),
        (512 + 18, '<B', 17, 'replaces one'),
        (176, '<I', 16384, 'backlog'),
        (180, '<I', 86400001, 'spare delay'),
        (196, '<H', 8, 'quorum'),
        (198, '<B', 3, 'policy'),
        (199, '<B', 3, 'policy'),
        (512 + 32, '<Q', 10241, 'mark beyond'),
        (1568 + 8, '<Q', 0x3000, 'overlaps'),
        (1568 + 8, '<Q', 0x4001, 'malformed'),
        (1568 + 16, '<Q', 4096, 'too short'),
        (1568 + 16, '<Q', 0, 'malformed'),
        (1568 + 4, '<I', 1, 'one log, with two copies'),
        (1568, '<I', 1, 'one log'),
    ],
)
def test_a_superblock_with_an_impossible_field_is_refused_by_name(
    offset: int, form: str, value: int, complaint: str
) -> None:
    page = wibm.encode_super(example())
    assert wibm.decode_super(resealed(page, 16, '<Q', 1 << 40)).serial == 42, (
        'compatible features are ignored'
    )
    with pytest.raises(BadMetadata, match=complaint):
        wibm.decode_super(resealed(page, offset, form, value))


@pytest.mark.parametrize('length', [0, 1, 4095, 4097])
def test_a_superblock_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadMetadata, match='4096 bytes'):
        wibm.decode_super(bytes(wibm.encode_super(example()).ljust(5000, b'\0')[:length]))


# Any bytes at all


def survives(page: bytes) -> bool:
    """Return whether a page decodes; anything but BadMetadata passes through and fails the test."""
    try:
        sup = wibm.decode_super(page)
    except BadMetadata:
        return False
    assert sup.record.chunks <= sup.layout.chunks_max
    return True


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=5000))
def test_any_bytes_decode_or_are_bad_metadata(data: bytes) -> None:
    survives(data)
    survives(wibm.MAGIC + data)
    image = wibm.decode_log(VOLUME, 5000, lambda copy: data)
    assert len(image.states) == 5000
    assert not np.any(image.states & ~np.uint8(states.ALL))


def test_every_single_flip_of_a_superblock_bit_is_caught() -> None:
    page = wibm.encode_super(example())
    for bit in range(4096 * 8):
        raw = bytearray(page)
        raw[bit >> 3] ^= 1 << (bit & 7)
        assert not survives(bytes(raw)), f'bit {bit}'


def test_every_flip_of_a_log_page_bit_in_use_is_caught_and_the_other_copy_taken() -> None:
    flags = np.random.default_rng(1).integers(0, 32, 500, dtype=np.uint8)
    copies = log_image(500, flags, {(0, 0): 7, (0, 1): 6})
    other = bytes(copies[1])
    rng = random.Random(2)
    for bit in [*range(64 * 8), *rng.sample(range(64 * 8, 4096 * 8), 6000)]:
        raw = bytearray(copies[0])
        raw[bit >> 3] ^= 1 << (bit & 7)
        image = wibm.decode_log(VOLUME, 500, lambda copy, raw=raw: other if copy else bytes(raw))
        assert image.current[0] == 1, f'bit {bit}'
        image = wibm.decode_log(VOLUME, 500, lambda copy, raw=raw: b'' if copy else bytes(raw))
        assert image.damaged == 1, f'bit {bit}'


def test_a_superblock_with_any_mangled_and_resealed_fields_decodes_or_is_bad_metadata() -> None:
    """The checksum is right, as it is for a page that a buggy or hostile program wrote."""
    page = wibm.encode_super(example())
    rng = random.Random(3)
    good = bad = 0
    for _ in range(20_000):
        raw = bytearray(page)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.choice((rng.randrange(8, 160), rng.randrange(8, 4092)))
            size = rng.choice((1, 2, 4, 8))
            raw[at : at + size] = rng.choice((b'\0' * size, b'\xff' * size, rng.randbytes(size)))
        raw = raw[:4092]
        raw += struct.pack('<I', google_crc32c.value(bytes(raw)))
        if survives(bytes(raw)):
            good += 1
        else:
            bad += 1
    assert good > 1000
    assert bad > 1000


def test_a_log_of_mangled_and_resealed_pages_decodes() -> None:
    rng = random.Random(4)
    damaged = 0
    for _ in range(10_000):
        raw = page_with()
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.choice((rng.randrange(60), rng.randrange(4096)))
            raw[at] = rng.randrange(256)
        struct.pack_into('<I', raw, 60, google_crc32c.value(bytes(raw[:60] + raw[64:])))
        image = decode(100, {0: raw, 1: bytearray(4096)})
        assert not np.any(image.states & ~np.uint8(states.ALL))
        damaged += image.damaged
    assert 1000 < damaged < 9999


# Sizes


@pytest.mark.parametrize('size', [64 << 10, 1 << 20, GIB, 10 * GIB, 1 << 40, 1 << 44, 1 << 52])
@pytest.mark.parametrize('chunk_size', [1 << 16, 1 << 20, 1 << 26])
def test_a_layout_reserves_16_times_the_size_or_the_chunk_limit(size: int, chunk_size: int) -> None:
    layout = wibm.new_layout(size, chunk_size)
    chunks = -(-size // chunk_size)
    assert layout.chunks_max >= min(16 * chunks, limits.CHUNKS_MAX)
    assert layout.chunks_max <= limits.CHUNKS_MAX
    assert layout.log.copies == 2


@pytest.mark.parametrize(
    ('size', 'chunk'),
    [(64 << 10, 1 << 20), (1 << 40, 1 << 20), ((1 << 40) + 512, 2 << 20), (2 << 40, 2 << 20),
     (1 << 45, 32 << 20), (1 << 46, 64 << 20), (1 << 52, 64 << 20)],
)  # fmt: skip
def test_the_default_chunk_grows_with_the_volume(size: int, chunk: int) -> None:
    assert default_chunk_size(size) == chunk
    assert -(-size // chunk) <= limits.CHUNKS_MAX
