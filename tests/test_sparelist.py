"""The mark of a shared spare and the list of them: what is decoded is what was encoded, damage is seen."""

import json
import string
import struct
import uuid
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import limits
from mirrorfs.errors import BadMetadata
from mirrorfs.metadata import logfile, wibm
from mirrorfs.metadata.spare import SpareMark, decode_mark, encode_mark
from mirrorfs.mirror import membership
from mirrorfs.mirror.sparelist import Claim, Fate, ListedSpare, SpareList, decode, encode, fate
from mirrorfs.model import Generation, LegState, Slot, VolumeRecord

MARKS = st.builds(SpareMark, st.uuids(), st.uuids())
CLAIMS = st.builds(Claim, st.uuids(), st.text(string.ascii_letters, min_size=1, max_size=20), st.uuids())
SPARES = st.builds(
    ListedSpare, st.uuids(), st.text(min_size=1, max_size=60), st.integers(0, 1 << 62), st.none() | CLAIMS
)
LISTS = st.builds(
    SpareList, st.uuids(), st.lists(SPARES, max_size=5, unique_by=lambda spare: spare.uuid).map(tuple)
)


def record(**changes: object) -> VolumeRecord:
    slots = (Slot(LegState.IN_SYNC, uuid.UUID(int=1)), *[Slot()] * (limits.SLOTS - 1))
    lineage = (Generation(uuid.UUID(int=2), 0, 1),)
    return VolumeRecord(uuid.UUID(int=3), 'v', 1 << 20, 1 << 16, 2, slots, lineage).but(**changes)


# The mark


@given(MARKS)
def test_what_a_mark_says_is_what_was_said(mark: SpareMark) -> None:
    page = encode_mark(mark)
    assert len(page) == limits.PAGE
    assert decode_mark(page) == mark


@given(MARKS, st.integers(0, limits.PAGE * 8 - 1))
def test_any_flipped_bit_is_noticed(mark: SpareMark, bit: int) -> None:
    page = bytearray(encode_mark(mark))
    page[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMetadata):
        decode_mark(bytes(page))


@given(MARKS, st.integers(1, 7))
def test_a_torn_mark_is_none(mark: SpareMark, sectors: int) -> None:
    page, at = encode_mark(mark), sectors * limits.SECTOR
    for torn in (page[:at] + bytes(limits.PAGE - at), bytes(at) + page[at:], page[:at]):
        with pytest.raises(BadMetadata):
            decode_mark(torn)


@given(st.binary(max_size=2 * limits.PAGE))
def test_arbitrary_bytes_are_no_mark(data: bytes) -> None:
    with pytest.raises(BadMetadata):
        decode_mark(data)


def test_a_version_to_come_is_not_guessed_at() -> None:
    page = bytearray(encode_mark(SpareMark(uuid.uuid4(), uuid.uuid4())))
    struct.pack_into('<I', page, 8, 2)
    struct.pack_into('<I', page, limits.PAGE - 4, google_crc32c.value(bytes(page[:-4])))
    with pytest.raises(BadMetadata, match='version 2'):
        decode_mark(bytes(page))


@given(MARKS)
def test_a_mark_is_nothing_else(mark: SpareMark) -> None:
    page = encode_mark(mark)
    for decoder in (wibm.decode_super, logfile.decode_header):
        with pytest.raises(BadMetadata):
            decoder(page)


def test_the_places_in_the_documentation_are_those_of_the_code() -> None:
    pool, spare = uuid.UUID(bytes=b'\x44' * 16), uuid.UUID(bytes=b'\x55' * 16)
    page = encode_mark(SpareMark(pool, spare))
    assert (page[:8], page[8:16]) == (b'WIBM-SPR', struct.pack('<II', 1, 4096))
    assert (page[16:32], page[32:48]) == (pool.bytes, spare.bytes)
    assert page[48:-4] == bytes(limits.PAGE - 52)
    text = (Path(__file__).parent.parent / 'docs' / 'format.md').read_text()
    assert '| 0 | 8 | magic | `WIBM-SPR` |' in text


# The list


@given(LISTS)
def test_a_list_says_what_was_written(spares: SpareList) -> None:
    assert decode(encode(spares)) == spares


@given(LISTS, st.data())
def test_a_damaged_list_is_never_half_believed(spares: SpareList, data: st.DataObject) -> None:
    text = encode(spares)
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(BadMetadata):
        decode(text[:cut])
    raw = json.loads(text)
    raw.pop(data.draw(st.sampled_from(['format', 'pool', 'spares'])))
    with pytest.raises(BadMetadata):
        decode(json.dumps(raw))


def test_what_is_no_list() -> None:
    assert decode('') == SpareList()
    spare = ListedSpare(uuid.UUID(int=5), '/leg', 1)
    twice = encode(SpareList(uuid.UUID(int=4), (spare, spare)))
    for text in ('[]', '1', '{}', 'null', twice, encode(SpareList()).replace('1', '2', 1)):
        with pytest.raises(BadMetadata):
            decode(text)


@given(LISTS, SPARES)
def test_put_and_without(spares: SpareList, spare: ListedSpare) -> None:
    put = spares.put(spare)
    assert [one for one in put.spares if one.uuid == spare.uuid] == [spare]
    others = [one for one in spares.spares if one.uuid != spare.uuid]
    assert [one for one in put.spares if one != spare] == others
    assert list(put.without(spare.uuid).spares) == others


# Claims that were cut short


def test_a_volume_that_has_the_leg_keeps_it_whatever_became_of_it() -> None:
    before = record()
    claim = Claim(before.uuid, 'v', uuid.UUID(int=9))
    assert fate(claim, [before], all_known=True) is Fate.UNDONE
    joined = membership.join(before, 1, claim.leg, '/spare')
    assert fate(claim, [joined], all_known=False) is Fate.JOINED
    gone = membership.leave(joined, [1], LegState.FAULTY, uuid.UUID(int=8), 0)
    assert fate(claim, [gone], all_known=True) is Fate.JOINED
    assert fate(claim, [membership.remove(gone, 1)], all_known=True) is Fate.JOINED
    forgotten = gone.with_slot(1, gone.slots[1].vacated())
    assert fate(claim, [forgotten], all_known=True) is Fate.UNDONE


def test_a_volume_that_is_not_known_may_have_the_leg_unless_all_are_known() -> None:
    claim = Claim(uuid.UUID(int=7), 'w', uuid.UUID(int=9))
    assert fate(claim, [record()], all_known=False) is Fate.UNKNOWN
    assert fate(claim, [record()], all_known=True) is Fate.UNDONE
    assert fate(claim, [], all_known=True) is Fate.UNDONE
