"""Bad-block lists: the sets, their form on a leg, and what mended read errors are let pass."""

import struct
import uuid

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import limits
from mirrorfs.errors import BadMetadata
from mirrorfs.metadata import badlist
from mirrorfs.mirror.badblocks import BLOCK, BadBlocks, common, only_there, segments
from mirrorfs.mirror.readerrors import HALF_LIFE, ReadErrors

VOLUME, LEG = uuid.UUID(int=0x1111), uuid.UUID(int=0xA0A0)
ROOM = 300
"""Blocks of the small models."""

blocks = st.sets(st.integers(0, ROOM - 1), max_size=60)
spans = st.tuples(st.integers(0, ROOM - 1), st.integers(1, 150)).map(lambda p: (p[0], min(ROOM, sum(p))))


def of(members: set[int]) -> BadBlocks:
    """A set made block by block."""
    found = BadBlocks()
    for block in members:
        found = found.plus(block, block + 1)
    return found


def members_of(bad: BadBlocks) -> set[int]:
    return set(np.flatnonzero(bad.mask(0, ROOM + 1)).tolist())


# The sets


@given(blocks)
def test_ranges_are_in_order_with_gaps_between_them(members: set[int]) -> None:
    bad = of(members)
    assert members_of(bad) == members
    assert len(bad) == len(members) and bool(bad) == bool(members)
    assert (bad.starts < bad.ends).all() and (bad.starts[1:] > bad.ends[:-1]).all()


@given(blocks, spans)
def test_a_range_is_added_and_taken_away(members: set[int], span: tuple[int, int]) -> None:
    bad, part = of(members), set(range(*span))
    assert bad.plus(*span) == of(members | part)
    assert bad.minus(*span) == of(members - part)
    assert members_of(bad.minus(*span)) == members - part


@given(blocks, spans, st.sets(st.integers(0, ROOM - 1)))
def test_a_range_gets_just_what_a_mask_says(members: set[int], span: tuple[int, int], new: set[int]) -> None:
    mask = np.array([block in new for block in range(*span)])
    part = set(range(*span))
    assert members_of(of(members).replaced(span[0], mask)) == (members - part) | (new & part)


@given(blocks, st.integers(0, ROOM * BLOCK), st.integers(1, 20 * BLOCK))
def test_a_range_of_bytes_touches_the_blocks_that_it_is_in(
    members: set[int], offset: int, length: int
) -> None:
    inside = set(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
    assert of(members).touches(offset, length) == bool(members & inside)


@given(st.lists(blocks, max_size=3), st.integers(0, ROOM * BLOCK), st.integers(1, 20 * BLOCK))
def test_segments_are_wholly_in_or_out_of_every_set(some: list[set[int]], offset: int, length: int) -> None:
    lists = [of(members) for members in some]
    parts = segments(offset, length, lists)
    at = offset
    for start, size in parts:
        assert start == at and size > 0
        at += size
        touched = set(range(start // BLOCK, (start + size - 1) // BLOCK + 1))
        assert all(touched <= members or not touched & members for members in some)
    assert at == offset + length
    assert len(parts) == 1 or any(bad.touches(offset, length) for bad in lists)


@given(st.lists(blocks, min_size=1, max_size=3), blocks)
def test_what_all_lack_and_what_only_one_has(some: list[set[int]], own: set[int]) -> None:
    everywhere = set.intersection(*some)
    assert members_of(common([of(members) for members in some])) == everywhere
    assert members_of(only_there(of(own), [of(members) for members in some])) == everywhere - own


@given(blocks, st.integers(16, 19))
def test_chunks_are_those_with_any_of_the_blocks(members: set[int], shift: int) -> None:
    assert of(members).chunks(shift).tolist() == sorted({block * BLOCK >> shift for block in members})


@given(blocks)
def test_lines_are_those_of_sysfs(members: set[int]) -> None:
    lines = [tuple(map(int, line.split())) for line in of(members).lines().splitlines()]
    named = {sector // 8 for start, count in lines for sector in range(start, start + count)}
    assert named == members and all(start % 8 == count % 8 == 0 for start, count in lines)
    assert BadBlocks().lines() == ''


def test_lines_end_with_the_page() -> None:
    bad = BadBlocks(np.arange(0, 4000, 2), np.arange(1, 4001, 2))
    assert 4096 - 12 < len(bad.lines()) <= 4096
    assert bad.lines().endswith('\n')


# On a leg


@given(blocks, st.integers(1, (1 << 63) - 1))
def test_what_is_stored_is_read_again(members: set[int], serial: int) -> None:
    page = badlist.encode(VOLUME, LEG, of(members).entries(serial))
    said = badlist.decode(VOLUME, LEG, page)
    assert said.serial == serial
    assert BadBlocks.of(said) == of(members)


def test_long_ranges_are_cut_to_entries_of_512_sectors() -> None:
    bad = BadBlocks(np.array([10, 1000]), np.array([10 + 130, 1001]))
    said = bad.entries(1)
    assert said.sectors.tolist() == [80, 80 + 512, 80 + 1024, 8000]
    assert said.lengths.tolist() == [512, 512, 16, 8]
    assert BadBlocks.of(said) == bad


def test_there_is_room_for_500_entries_and_no_more() -> None:
    most = BadBlocks(np.arange(0, 1000, 2), np.arange(1, 1001, 2))
    assert most.fits and not most.plus(5000, 5001).fits
    assert most.plus(1, 2).fits, 'what closes a gap needs no entry'
    assert BadBlocks.of(badlist.decode(VOLUME, LEG, badlist.encode(VOLUME, LEG, most.entries(1)))) == most
    assert not BadBlocks().plus(0, 64 * 500 + 1).fits and BadBlocks().plus(0, 64 * 500).fits


def test_fields_are_where_the_format_says() -> None:
    page = badlist.encode(VOLUME, LEG, BadBlocks(np.array([3]), np.array([5])).entries(7))
    assert len(page) == 4096
    head = struct.unpack_from('<8sIIQ16s16s', page)
    assert head == (b'WIBM-BB\n', 1, 1, 7, VOLUME.bytes, LEG.bytes)
    assert struct.unpack_from('<I', page, 60) == (google_crc32c.value(page[:60] + page[64:]),)
    assert struct.unpack_from('<Q', page, 64) == (1 << 63 | 24 << 9 | 15,)
    assert page[72:] == bytes(4096 - 72)


@given(st.binary(max_size=5000))
def test_any_bytes_are_refused_or_a_list(data: bytes) -> None:
    with pytest.raises(BadMetadata):
        badlist.decode(VOLUME, LEG, data)


GOOD = badlist.encode(VOLUME, LEG, BadBlocks(np.array([3, 80]), np.array([5, 90])).entries(7))


@given(st.integers(0, 8 * 4096 - 1))
def test_no_flipped_bit_is_overlooked(bit: int) -> None:
    page = bytearray(GOOD)
    page[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMetadata):
        badlist.decode(VOLUME, LEG, bytes(page))


def sealed(page: bytearray) -> bytes:
    struct.pack_into('<I', page, 60, google_crc32c.value(bytes(page[:60] + page[64:])))
    return bytes(page)


@pytest.mark.parametrize(
    ('offset', 'form', 'value'),
    [
        (8, '<I', 2),
        (12, '<I', limits.BAD_BLOCKS_MAX + 1),
        (16, '<Q', 0),
        (16, '<Q', 1 << 63),
        (64, '<Q', 24 << 9 | 15),
        (64, '<Q', 1 << 63 | 25 << 9 | 15),
        (64, '<Q', 1 << 63 | 24 << 9 | 14),
        (72, '<Q', 1 << 63 | 32 << 9 | 15),
    ],
    ids=['version', 'count', 'no serial', 'serial', 'not acknowledged', 'start', 'length', 'overlap'],
)
def test_what_is_whole_but_cannot_be_is_refused(offset: int, form: str, value: int) -> None:
    page = bytearray(GOOD)
    struct.pack_into(form, page, offset, value)
    with pytest.raises(BadMetadata):
        badlist.decode(VOLUME, LEG, sealed(page))


def test_a_list_of_another_leg_is_refused() -> None:
    for volume, leg in ((uuid.UUID(int=1), LEG), (VOLUME, uuid.UUID(int=1))):
        with pytest.raises(BadMetadata, match='another leg'):
            badlist.decode(volume, leg, GOOD)


def test_of_two_whole_copies_the_newer_is_right() -> None:
    older = badlist.encode(VOLUME, LEG, BadBlocks().entries(6))
    torn = GOOD[:512] + bytes(4096 - 512 - 4) + b'torn'
    assert badlist.newest(VOLUME, LEG, older, GOOD)[1] == 1
    assert badlist.newest(VOLUME, LEG, GOOD, older)[1] == 0
    said, copy = badlist.newest(VOLUME, LEG, older, torn)
    assert (copy, said.serial) == (0, 6)
    with pytest.raises(BadMetadata):
        badlist.newest(VOLUME, LEG, torn, bytes(4096))


# Read errors


def test_the_count_halves_every_hour() -> None:
    errors = ReadErrors()
    for _ in range(20):
        errors = errors.another(100.0)
    assert not errors.too_many(20)
    assert errors.another(100.0).too_many(20)
    assert errors.now(100.0 + HALF_LIFE) == pytest.approx(10)
    assert errors.now(100.0 + 3 * HALF_LIFE) == pytest.approx(2.5)
    assert not errors.another(100.0 + HALF_LIFE).too_many(20)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_a_clock_that_stands_or_goes_back_forgets_nothing(times: list[float]) -> None:
    errors = ReadErrors()
    for now in sorted(times, reverse=True):
        errors = errors.another(now)
    assert errors.count <= len(times)
    assert not ReadErrors().another(5.0).too_many(1)
    assert ReadErrors().another(5.0).too_many(0)
