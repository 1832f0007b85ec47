"""The log in a file of its own: its format, when it is believed, and what legs are told beside it."""

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs import limits
from mirrorfs.errors import BadMetadata
from mirrorfs.intent.log import MAP, IntentLog
from mirrorfs.intent.states import ALL, DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, UNZEROED
from mirrorfs.metadata import logfile, wibm
from mirrorfs.mirror import membership
from mirrorfs.model import NO_UUID, Generation, LegState, Slot, VolumeRecord
from mirrorfs.volume import doubt
from mirrorfs.volume.logplace import place_of

CHUNK = 64 << 10
OURS, LOG = uuid.UUID(int=7), uuid.UUID(int=8)


@st.composite
def headers(draw: st.DrawFn) -> logfile.LogHeader:
    chunk = 1 << draw(st.integers(16, 26))
    sectors = draw(st.integers(1, 1 << 30))
    size = min(sectors * limits.SECTOR, limits.CHUNKS_MAX * chunk)
    least = wibm.pages_for(-(-size // chunk))
    return logfile.LogHeader(
        draw(st.uuids()),
        draw(st.uuids()),
        draw(st.text('abcäöü-_', min_size=1, max_size=60)),
        size,
        chunk,
        draw(st.integers(1, (1 << 63) - 1)),
        draw(st.integers(1, (1 << 63) - 1)),
        logfile.LogLayout(draw(st.integers(least, least + 10_000))),
    )


HEADER = logfile.LogHeader(LOG, OURS, 'v', 10 * CHUNK, CHUNK, 5, 3, logfile.LogLayout(1))


@given(headers())
def test_a_header_is_read_as_it_was_written(header: logfile.LogHeader) -> None:
    page = logfile.encode_header(header)
    assert len(page) == wibm.PAGE
    assert logfile.decode_header(page) == header


@given(st.integers(0, wibm.PAGE * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    page = bytearray(logfile.encode_header(HEADER))
    page[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMetadata):
        logfile.decode_header(bytes(page))


@given(st.binary(max_size=2 * wibm.PAGE))
@settings(max_examples=50)
def test_nothing_else_is_taken_for_a_header(data: bytes) -> None:
    with pytest.raises(BadMetadata):
        logfile.decode_header(data)


def test_the_newer_of_two_headers_is_taken_and_one_is_enough() -> None:
    older, newer = logfile.encode_header(HEADER), logfile.encode_header(replace(serial=9))
    assert logfile.newest_header(older, newer) == (replace(serial=9), 1)
    assert logfile.newest_header(newer, bytes(4096)) == (replace(serial=9), 0)
    with pytest.raises(BadMetadata, match='no log header'):
        logfile.newest_header(bytes(4096), b'')


def replace(**changes: object) -> logfile.LogHeader:
    facts = {name: getattr(HEADER, name) for name in HEADER.__dataclass_fields__}
    return logfile.LogHeader(**(facts | changes))  # type: ignore[arg-type]


@given(st.integers(1, 1 << 40), st.integers(16, 26), st.integers(0, 1 << 24))
def test_no_two_pages_of_a_layout_overlap_and_all_are_within_it(size: int, shift: int, most: int) -> None:
    layout = logfile.new_layout(size, 1 << shift, most)
    assert layout.room == 0 or layout.size <= max(most, logfile.PAGES_OFFSET)
    places = [layout.page_offset(page, copy) for copy in (0, 1) for page in range(min(layout.room, 3))]
    assert len(set(places)) == len(places)
    assert all(logfile.PAGES_OFFSET <= at <= layout.size - wibm.PAGE for at in places)
    assert logfile.new_layout(size, 1 << shift).chunks_max >= min(-(-size >> shift), limits.CHUNKS_MAX)


def test_the_layout_is_as_specified() -> None:
    layout = logfile.new_layout(64 << 20, CHUNK)  # room for 16384 chunks
    assert (layout.room, layout.size) == (5, 8192 + 2 * 5 * 4096)
    places = [layout.page_offset(page, copy) for copy in (0, 1) for page in (0, 4)]
    assert places == [8192, 24576, 28672, 45056]


# What is believed


def record(**changes: object) -> VolumeRecord:
    slots = (Slot(LegState.IN_SYNC, uuid.UUID(int=1)), *(Slot(),) * (limits.SLOTS - 1))
    lineage = (Generation(uuid.UUID(int=2), 0, 1),)
    return VolumeRecord(OURS, 'v', 10 * CHUNK, CHUNK, 1, slots, lineage, events=3, log_id=LOG).but(**changes)


@pytest.mark.parametrize(
    ('header', 'serial', 'why'),
    [
        (HEADER, 5, ''),
        (replace(events=4, serial=6), 5, ''),
        (replace(volume=LOG), 5, 'the log of volume'),
        (replace(log=OURS), 5, 'it is log'),
        (replace(events=2), 5, 'old copy'),
        (replace(serial=4), 5, 'old copy'),
        (replace(layout=logfile.LogLayout(0)), 5, 'room for 0'),
    ],
)
def test_only_the_present_log_of_the_volume_is_believed(
    header: logfile.LogHeader, serial: int, why: str
) -> None:
    found = doubt.disbelief(header, record(), serial)
    assert why in found and bool(why) == bool(found)


@given(st.lists(st.tuples(st.integers(0, ALL), st.integers(0, ALL)), min_size=10, max_size=10))
def test_a_start_takes_the_map_from_legs_and_all_else_from_outside(flags: list[tuple[int, int]]) -> None:
    legs, outside = np.array(flags, np.uint8).T
    serials = np.array([9], np.uint64), np.array([0], np.uint8)
    image = doubt.map_alone(wibm.LogImage(legs, *serials))
    log, behind = doubt.merge(record(), {0: image}, {0: image})
    assert not behind
    doubt.add_outside(log, wibm.LogImage(outside, np.array([12], np.uint64), serials[1]))
    assert np.array_equal(log.states, (legs & MAP) | (outside & (ALL & ~MAP)))
    assert np.array_equal(log.durable, log.states)
    assert log.serial == 12


# What legs are told


def test_legs_are_given_the_pages_whose_map_changed_and_the_map_alone() -> None:
    log = IntentLog(OURS, np.full(3 * wibm.PAGE_CHUNKS, UNWRITTEN, np.uint8), 0)
    log.update(0, 0, set_=DIRTY)
    log.update(wibm.PAGE_CHUNKS, wibm.PAGE_CHUNKS, set_=DIRTY | MODIFIED, clear=UNWRITTEN)
    last = 2 * wibm.PAGE_CHUNKS
    log.update_chunks(np.array([last]), set_=NEEDS_RESYNC | UNZEROED)
    batch = log.begin()
    assert set(batch.states) == {0, 1, 2}
    told = batch.of_map()
    assert {page: int(states[0]) for page, states in told.states.items()} == {1: 0, 2: UNWRITTEN | UNZEROED}
    log.abandon(batch)
    assert set(log.begin().of_map().states) == {1, 2}, 'what was given up is told again'
    assert not log.begin().states
    log.touch_all()
    assert set(log.begin().of_map().states) == {0, 1, 2}
    log.grow(len(log) + 5, UNWRITTEN)
    assert set(log.begin().of_map().states) == {2, 3}


# Moving it


def test_without_a_log_nothing_is_tracked() -> None:
    away, spare = Slot(LegState.FAULTY, LOG, tracked_since=2), Slot(LegState.SPARE, LOG, mark=3)
    before = record().with_slot(1, away).with_slot(2, spare)
    after = membership.move_log(before, None)
    assert (after.logged, after.log_id, after.events) == (False, NO_UUID, before.events + 1)
    assert after.slots[1] == away.but(tracked_since=0)
    assert after.slots[2] == spare.but(full=True, mark=0)
    for log, path in ((NO_UUID, ''), (OURS, '/log')):
        moved = membership.move_log(after, log, path)
        assert (moved.logged, moved.log_id, moved.log_path, moved.slots) == (True, log, path, after.slots)
    assert membership.move_log(before, NO_UUID).slots == before.slots


@pytest.mark.parametrize(
    ('changes', 'place'),
    [({'log_path': '/a'}, '/a'), ({'log_id': NO_UUID}, 'internal'), ({'logged': False}, 'none')],
)
def test_places_have_names(changes: dict[str, object], place: str) -> None:
    assert place_of(record(**changes)) == place
