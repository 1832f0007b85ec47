"""Scrubs: what is decided (pure), how fast it may go (virtual time), and all of it on real mounts."""

import errno
import itertools
import json
import os
import random
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from looptools import examine, field
from looptools import run as run_program
from mounts import MDSTAT_PROGRESS, MIB, MountedPool, Volume, cli, cli_ok, run, wait_for

from mirrorfs import limits
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.mirror import comparing
from mirrorfs.mirror.comparing import UNIT, Mismatch, Scrub, compare
from mirrorfs.volume.counters import Counters
from mirrorfs.volume.pacing import Pacer
from mirrorfs.volume.volume import _by_source

KIB = 1 << 10
OURS = uuid.UUID(int=7)
LEG = uuid.UUID(int=8)


# What differs


def piece(*fills: int) -> bytes:
    """Return units of one byte each."""
    return b''.join(bytes([fill]) * UNIT for fill in fills)


def test_equal_legs_have_nothing_to_list() -> None:
    assert compare(0, {0: piece(1, 2), 3: bytearray(piece(1, 2))}) == []
    assert compare(0, {0: piece(1)}) == []


def test_each_differing_unit_is_listed_with_who_agrees() -> None:
    found = compare(4 * UNIT, {0: piece(1, 2, 3), 1: piece(1, 9, 3), 2: piece(1, 2, 4)})
    assert [(m.offset, m.length, [slots for slots, _ in m.groups]) for m in found] == [
        (5 * UNIT, UNIT, [(0, 2), (1,)]),
        (6 * UNIT, UNIT, [(0, 1), (2,)]),
    ]
    assert (
        found[0].line == f'{5 * UNIT} {UNIT} 0,2={comparing.digest(piece(2))} 1={comparing.digest(piece(9))}'
    )
    assert [m.majority for m in found] == [0, 0]
    assert [m.others(0) for m in found] == [{1}, {2}] and found[0].others(5) is None


def test_units_are_cut_at_multiples_of_64_kib_wherever_a_range_begins() -> None:
    found = compare(UNIT - 512, {0: bytes(1024), 1: b'x' * 1024})
    assert [(m.offset, m.length) for m in found] == [(UNIT - 512, 512), (UNIT, 512)]


@pytest.mark.parametrize(
    ('fills', 'majority'),
    [
        ((1, 2), None),
        ((1, 1, 2), 0),
        ((2, 1, 1), 1),
        ((1, 2, 3), None),
        ((1, 1, 2, 2), None),
        ((1, 1, 2, 3), None),
    ],
)
def test_a_majority_is_more_than_half(fills: tuple[int, ...], majority: int | None) -> None:
    (found,) = compare(0, {slot: piece(fill) for slot, fill in enumerate(fills)})
    assert found.majority == majority


@given(
    st.lists(st.integers(0, 20), max_size=4, unique=True), st.integers(0, 20 * UNIT), st.integers(1, 4 * UNIT)
)
def test_a_range_is_cut_by_whose_copy_is_trusted(units: list[int], start: int, length: int) -> None:
    trusted = {unit: unit % 3 for unit in units}
    parts = list(_by_source(start, start + length, trusted))
    assert parts[0][0] == start and parts[-1][1] == start + length
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
    for low, high, slot in parts:
        assert low < high
        assert {trusted.get(unit) for unit in range(low // UNIT, (high - 1) // UNIT + 1)} == {slot}


# What is remembered

PLACES = tuple(Mismatch(at * UNIT, UNIT, (((0,), 'aa'), ((1, 2), 'bb'))) for at in (1, 3, 5))
SCRUBS = [
    Scrub(),
    Scrub('repair', LEG, 12, 8, 99, 'fixed', 3, PLACES, 5, ((0, UNIT, 2), (UNIT, 512, 1))),
]


@pytest.mark.parametrize('scrub', SCRUBS)
def test_a_state_comes_back_as_it_was_stored(scrub: Scrub) -> None:
    text = comparing.encode(scrub, OURS)
    assert comparing.decode(text, OURS) == scrub
    assert comparing.decode(text, uuid.UUID(int=1)) == Scrub(), 'the state of another volume of that name'


@given(st.data())
def test_a_damaged_state_is_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    text = comparing.encode(SCRUBS[1], OURS)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + 1 :]
    try:
        assert isinstance(comparing.decode(damaged, OURS), Scrub)
    except BadMetadata:
        pass
    for raw in (text[:at], '[]', '7', 'null', '{}', json.dumps({**json.loads(text), 'position': 'x'})):
        with pytest.raises(BadMetadata):
            comparing.decode(raw, OURS)


def test_a_pass_replaces_what_was_listed_where_it_has_been() -> None:
    state = Scrub(listed=PLACES).begin('check', None)
    state = state.seen(0, 4 * UNIT, 1, [PLACES[1]])
    assert state.listed == PLACES[1:] and state.position == 4 * UNIT and state.differing == 1
    assert state.seen(4 * UNIT, 8 * UNIT, 0, []).finish().listed == PLACES[1:2]


def test_what_has_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, 'MISMATCHES_MAX', 2)
    state = Scrub().begin('check', None).seen(0, 8 * UNIT, 3, PLACES)
    assert state.listed == PLACES[:2] and state.more == 1 and state.differing == 3


def test_a_pass_that_is_given_up_leaves_its_place_in_sync_min() -> None:
    state = Scrub(sync_max=4000).begin('repair', LEG).seen(0, 1000 * 512, 0, [])
    assert state.give_up() == Scrub(sync_min=1000, sync_max=4000)
    assert state.give_up().begin('check', None).position == 1000 * 512
    assert state.finish() == Scrub()


def test_sync_min_and_sync_max_keep_to_the_rules_of_md() -> None:
    assert Scrub().set_sync_min(15).sync_min == 8
    for change, code in [
        (lambda: Scrub(sync_max=8).set_sync_min(9), errno.EINVAL),
        (lambda: Scrub(action='check').set_sync_min(0), errno.EBUSY),
        (lambda: Scrub(sync_min=16).set_sync_max(8), errno.EINVAL),
        (lambda: Scrub(action='check').set_sync_max(8), errno.EBUSY),
        (lambda: Scrub(action='check', sync_max=16).set_sync_max(8), errno.EBUSY),
        (lambda: Scrub(action='check').begin('check', None), errno.EBUSY),
        (lambda: Scrub().set_mode('gentle'), errno.EINVAL),
    ]:
        with pytest.raises(Refused) as caught:
            change()
        assert caught.value.errno == code
    assert Scrub(action='check', sync_max=8).set_sync_max(None).sync_max is None


def test_what_a_repair_was_at_is_trusted_before_what_was_voted() -> None:
    state = Scrub(listed=PLACES, mending=((UNIT, UNIT, 0), (8 * UNIT, UNIT, 2)))
    assert state.trusted() == {1: 0, 3: 1, 5: 1, 8: 2}


# How fast


class Hot:
    reads = writes = 0


class Record:
    speed_min = speed_max = 0


class Idle:
    """All that a pacer looks at of a volume."""

    def __init__(self) -> None:
        self.hot, self.counters, self.record = Hot(), Counters(), Record()


async def go(pacer: Pacer, steps: int, step: float = 0.01, moved: int = MIB) -> float:
    """Make steps; return how long they took, in virtual seconds."""
    began = trio.current_time()
    pacer.begin()
    for _ in range(steps):
        await trio.sleep(step)
        await pacer.pace(moved, lambda: False)
    return trio.current_time() - began


async def calling(volume: Idle, pause: float) -> None:
    """Somebody uses the volume, for ever."""
    while True:
        await trio.sleep(pause)
        volume.hot.writes += 1


async def test_nobody_is_waited_for_on_an_idle_volume(autojump_clock: trio.testing.MockClock) -> None:
    assert await go(Pacer(Idle()), 100) == pytest.approx(1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize('mode', comparing.MODES)
async def test_a_ceiling_that_the_admin_has_set_always_holds(
    mode: str, autojump_clock: trio.testing.MockClock
) -> None:
    volume = Idle()
    volume.record.speed_max = 10 * KIB
    pacer = Pacer(volume)  # type: ignore[arg-type]
    pacer.mode = mode
    assert await go(pacer, 100) == pytest.approx(10.0, rel=0.01)


async def test_the_ceiling_of_md_holds_only_beside_somebody(autojump_clock: trio.testing.MockClock) -> None:
    volume = Idle()
    pacer = Pacer(volume)  # type: ignore[arg-type]
    pacer.mode = 'fixed'
    fast = {'steps': 400, 'step': 0.0001, 'moved': MIB}
    assert await go(pacer, **fast) == pytest.approx(0.04)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calling, volume, 0.001)
        took = await go(pacer, **fast)
        nursery.cancel_scope.cancel()
    assert took == pytest.approx(400 * KIB / limits.SPEED_MAX, rel=0.05)


async def test_yielding_rests_beside_somebody_but_keeps_to_the_floor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    volume = Idle()
    pacer = Pacer(volume)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calling, volume, 0.001)
        assert await go(pacer, 100) > 1.9
        assert pacer.width == 1
        volume.record.speed_min = 80 * KIB  # 12.5 ms a step
        assert await go(pacer, 100) == pytest.approx(1.25, rel=0.05)
        nursery.cancel_scope.cancel()
    await trio.sleep(1)
    assert pacer.width == limits.WINDOWS_IN_FLIGHT


@pytest.mark.parametrize(('slower', 'least', 'most'), [(10, 1.5, 3.0), (1, 1.0, 1.0)])
async def test_rests_are_as_long_as_callers_are_held_up(
    slower: int, least: float, most: float, autojump_clock: trio.testing.MockClock
) -> None:
    volume = Idle()
    pacer = Pacer(volume)  # type: ignore[arg-type]
    copying = False

    async def caller() -> None:
        """Waits for each answer, which takes longer while something is copied."""
        while True:
            await trio.sleep(0.0005 * (slower if copying else 1))
            volume.hot.reads += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller)
        pacer.begin()
        for _ in range(300):
            copying = True
            await trio.sleep(0.01)
            copying = False
            await pacer.pace(MIB, lambda: False)
        nursery.cancel_scope.cancel()
    assert least <= pacer.backoff <= most


async def test_the_slow_path_counts_too(autojump_clock: trio.testing.MockClock) -> None:
    volume = Idle()
    volume.counters.waited, volume.counters.waits = 0.1, 100
    pacer = Pacer(volume)  # type: ignore[arg-type]
    pacer.begin()
    for _ in range(100):
        await trio.sleep(0.01)
        volume.counters.waited += 0.01  # ten times as long as before
        volume.counters.waits += 1
        volume.counters.writes += 1
        await pacer.pace(MIB, lambda: False)
    assert pacer.backoff == limits.BACKOFF_MAX


async def test_a_rest_ends_when_the_pass_is_to_end(autojump_clock: trio.testing.MockClock) -> None:
    volume = Idle()
    volume.record.speed_max = 1
    pacer = Pacer(volume)  # type: ignore[arg-type]
    pacer.begin()
    began = trio.current_time()
    await pacer.pace(MIB, lambda: trio.current_time() > began + 5)
    assert 5 <= trio.current_time() - began < 6


# On real mounts

mount = pytest.mark.mount
UNITS = MIB // UNIT


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


def fill(volume: Volume, length: int = 0, seed: int = 1) -> bytes:
    """Fill the image, or its start, with random bytes that are durable; return them."""
    data = random.Random(seed).randbytes(length or volume.size)
    with volume.open() as fd:
        for at in range(0, len(data), MIB):
            os.pwrite(fd, data[at : at + MIB], at)
        os.fsync(fd)
    return data


def corrupt(volume: Volume, leg: int, offset: int, length: int = 512) -> None:
    """Change bytes of a leg behind the volume's back."""
    base = examine(volume.legs[leg])[0]['data_offset']
    fd = os.open(volume.legs[leg], os.O_RDWR)
    try:
        old = os.pread(fd, length, base + offset)
        os.pwrite(fd, bytes(byte ^ 0x55 for byte in old), base + offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def scrub(volume: Volume, words: str = 'check', seconds: float = 60) -> list[list[str]]:
    """Scrub, wait for the end; return the lines of `mismatches`."""
    volume.write('sync_action', words)
    wait_for(lambda: volume.read('sync_action') == 'idle\n', f'end of {words}', seconds)
    return mismatches(volume)


def mismatches(volume: Volume) -> list[list[str]]:
    return [line.split() for line in volume.read('mismatches').splitlines()]


def refusal(volume: Volume, file: str, words: str) -> tuple[int, str]:
    """Return the errno of a write that must be refused, and what events say of it."""
    with pytest.raises(OSError) as caught:
        volume.write(file, words)
    return caught.value.errno or 0, volume.pool.events()[-1]


@mount
def test_check_names_the_place_and_the_legs_and_changes_nothing(pool: MountedPool) -> None:
    volume = pool.volume('disk', 16 * MIB, legs=3)
    fill(volume)
    assert scrub(volume) == [] and volume.read('mismatch_cnt') == '0\n'
    corrupt(volume, 1, 3 * MIB + 70_000)
    before = [leg.read_bytes() for leg in volume.legs]
    ((offset, length, same, other),) = scrub(volume)
    assert int(offset) == 3 * MIB + UNIT and int(length) == UNIT
    assert re.fullmatch(r'0,2=[0-9a-f]{16}', same) and re.fullmatch(r'1=[0-9a-f]{16}', other)
    assert volume.read('mismatch_cnt') == '128\n'
    assert volume.read('last_sync_action') == 'check\n'
    status = volume.status()
    assert status['mismatch_cnt'] == 128
    assert status['mismatches'][0]['offset'] == int(offset)
    assert [leg['slots'] for leg in status['mismatches'][0]['legs']] == [[0, 2], [1]]
    base = examine(volume.legs[0])[0]['data_offset']
    assert [leg.read_bytes()[base:] for leg in volume.legs] == [data[base:] for data in before]
    assert any('RebuildFinished disk check, 128 sectors differ' in event for event in pool.events())


@mount
def test_repair_takes_the_majority_of_three(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB, legs=3)
    data = fill(volume)
    corrupt(volume, 0, 0)
    corrupt(volume, 1, 5 * MIB)
    corrupt(volume, 2, 5 * MIB + UNIT)
    assert len(scrub(volume)) == 3
    assert scrub(volume, 'repair') == []
    assert volume.read('mismatch_cnt') == f'{3 * 128}\n', 'what was found counts, as with md'
    assert scrub(volume) == [] and volume.read('mismatch_cnt') == '0\n'
    pool.stop()
    assert volume.assert_legs_equal() == data


@mount
def test_where_no_majority_is_repair_leaves_it_listed(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB, legs=3)
    fill(volume)
    corrupt(volume, 0, 0, 64)
    corrupt(volume, 1, 64, 64)
    corrupt(volume, 2, 2 * MIB)
    assert [line[0] for line in scrub(volume, 'repair')] == ['0']
    assert [line[0] for line in scrub(volume)] == ['0']


@mount
def test_two_legs_need_a_choice(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB)
    data = fill(volume)
    corrupt(volume, 0, MIB)
    code, said = refusal(volume, 'sync_action', 'repair')
    assert code == errno.EINVAL and 'repair 0 or repair 1' in said and 'majority' in said
    assert volume.read('sync_action') == 'idle\n' and mismatches(volume) == []
    assert len(scrub(volume)) == 1
    assert scrub(volume, f'repair {volume.legs[1]}') == []
    pool.stop()
    assert volume.assert_legs_equal() == data


@mount
def test_what_cannot_be_scrubbed_is_refused(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB, legs=3)
    assert refusal(volume, 'sync_action', 'repair 7')[0] == errno.ENOENT
    assert refusal(volume, 'sync_action', 'repair 0 1')[0] == errno.EINVAL
    assert refusal(volume, 'sync_action', 'check 0')[0] == errno.EINVAL
    volume.write('fail', '0')
    code, said = refusal(volume, 'sync_action', 'repair 0')
    assert code == errno.EINVAL and 'not in sync' in said
    volume.write('fail', '1')
    code, said = refusal(volume, 'sync_action', 'check')
    assert code == errno.EINVAL and 'nothing to compare' in said


@mount
def test_what_was_found_outlives_a_restart_and_goes_with_the_volume(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB, legs=3)
    fill(volume)
    corrupt(volume, 2, 4 * MIB)
    found = scrub(volume)
    pool.kill()
    run('umount', '-l', pool.mountpoint)
    pool.start()
    assert mismatches(volume) == found and len(found) == 1
    assert volume.read('mismatch_cnt') == '128\n'
    legs = ' '.join(str(leg) for leg in volume.legs)
    pool.write('destroy', 'disk')
    assert [file.name for file in (pool.directory / 'volumes').iterdir()] == []
    pool.write('create', f'disk 8M {legs} force')
    assert mismatches(volume) == [] and volume.read('mismatch_cnt') == '0\n'


@mount
def test_a_damaged_state_costs_what_was_found_and_nothing_else(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB)
    data = fill(volume)
    scrub(volume)
    pool.stop()
    (pool.directory / 'volumes' / 'disk.scrub').write_text('{')
    pool.start()
    assert any('what scrubs have found is lost' in event for event in pool.events())
    assert volume.image.read_bytes() == data and scrub(volume) == []


@mount
@pytest.mark.parametrize('end', ['stop', 'kill'])
def test_a_check_goes_on_after_a_restart_where_it_was(pool: MountedPool, end: str) -> None:
    volume = pool.volume('disk', 64 * MIB)
    volume.write('bitmap/time_base', '0.1')
    fill(volume)
    wait_for(lambda: volume.status()['chunks']['dirty'] == 0, 'a clean log: no resync makes legs equal')
    corrupt(volume, 1, 0)
    corrupt(volume, 1, 63 * MIB)
    volume.write('sync_speed_max', str(8 * KIB))
    volume.write('sync_action', 'check')
    stored = pool.directory / 'volumes' / 'disk.scrub'
    wait_for(lambda: json.loads(stored.read_text())['position'] > 8 * MIB, 'a stored position')
    pool.stop() if end == 'stop' else pool.kill()
    run('umount', '-l', pool.mountpoint)
    position = json.loads(stored.read_text())['position']
    pool.start()
    volume.write('sync_speed_max', 'system')
    wait_for(lambda: volume.read('sync_action') == 'idle\n', 'the end of the check')
    began = [event for event in pool.events() if ' RebuildStarted disk check' in event]
    assert len(began) == 1 and f'from byte {position} on' in began[0]
    assert [int(line[0]) for line in mismatches(volume)] == [0, 63 * MIB]
    assert volume.read('mismatch_cnt') == '256\n'


@mount
def test_a_check_pauses_at_sync_max_and_idle_leaves_its_place_in_sync_min(pool: MountedPool) -> None:
    volume = pool.volume('disk', 16 * MIB)
    fill(volume)
    corrupt(volume, 1, 2 * MIB)
    corrupt(volume, 1, 6 * MIB)
    half = 4 * MIB // 512
    assert (volume.read('sync_min'), volume.read('sync_max')) == ('0\n', 'max\n')
    volume.write('sync_max', str(half))
    volume.write('sync_action', 'check')
    where = f'{half} / {16 * MIB // 512}\n'
    wait_for(lambda: volume.read('sync_completed') == where, 'the check at sync_max')
    assert volume.read('sync_action') == 'check\n'
    line = next(line for line in (pool.control / 'mdstat').read_text().splitlines() if '>' in line)
    found = MDSTAT_PROGRESS.match(line)
    assert found and found[3] == 'check' and (found[4], found[5]) == ('25', '0')
    assert refusal(volume, 'sync_min', '8')[0] == errno.EBUSY
    assert refusal(volume, 'sync_max', '8')[0] == errno.EBUSY
    assert refusal(volume, 'sync_action', 'check')[0] == errno.EBUSY
    assert refusal(volume, 'sync_action', 'resync')[0] == errno.EBUSY
    assert [int(line[0]) for line in mismatches(volume)] == [2 * MIB]
    volume.write('sync_action', 'idle')
    assert volume.read('sync_min') == f'{half}\n' and volume.read('sync_action') == 'idle\n'
    assert refusal(volume, 'sync_max', '8')[0] == errno.EINVAL
    assert refusal(volume, 'sync_min', str(half + 8))[0] == errno.EINVAL
    volume.write('sync_max', 'max')
    assert [int(line[0]) for line in scrub(volume)] == [2 * MIB, 6 * MIB]
    assert volume.read('mismatch_cnt') == '128\n', 'this pass began behind the first one'
    assert (volume.read('sync_min'), volume.read('sync_max')) == ('0\n', 'max\n')


@mount
def test_frozen_ends_a_check_and_recovery_goes_first(pool: MountedPool) -> None:
    volume = pool.volume('disk', 16 * MIB, legs=3)
    fill(volume)
    volume.write('sync_max', '2048')
    volume.write('sync_action', 'check')
    wait_for(lambda: volume.read('sync_completed').startswith('2048 '), 'the check at sync_max')
    volume.write('fail', '2')
    volume.write('re-add', '2')
    wait_for(lambda: volume.status()['degraded'] == 0, 'recovered while the check waits')
    wait_for(lambda: volume.read('sync_action') == 'check\n', 'the check goes on')
    volume.write('sync_action', 'frozen')
    assert volume.read('sync_action') == 'frozen\n' and volume.read('sync_min') == '2048\n'
    volume.write('sync_action', 'idle')
    assert volume.read('sync_action') == 'idle\n'


@mount
def test_what_was_never_written_is_not_read(pool: MountedPool) -> None:
    volume = pool.volume('disk', 64 << 30)
    with volume.open() as fd:
        os.pwrite(fd, b'x' * MIB, 40 << 30)
        os.fsync(fd)

    def bytes_read() -> int:
        return int(re.findall(r'rchar: (\d+)', Path(f'/proc/{pool.pid}/io').read_text())[0])

    before = bytes_read()
    assert scrub(volume) == []
    assert 2 * MIB <= bytes_read() - before < 4 * MIB, 'one chunk of each of two legs'


@mount
def test_a_busy_volume_gives_no_false_alarm(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB, options='chunk=64K')
    fill(volume)
    volume.write('sync_mode', 'fixed')
    rng = random.Random(3)
    with volume.open() as fd:
        for _ in range(3):
            volume.write('sync_action', 'check')
            while volume.read('sync_action') == 'check\n':
                for _ in range(50):
                    os.pwrite(fd, rng.randbytes(4096), rng.randrange(volume.size // 4096) * 4096)
            assert mismatches(volume) == [] and volume.read('mismatch_cnt') == '0\n'


@mount
def test_speeds_are_printed_and_set_as_with_md_and_the_ceiling_holds(pool: MountedPool) -> None:
    volume = pool.volume('disk', 16 * MIB)
    fill(volume)
    assert volume.read('sync_speed_min') == '1000 (system)\n'
    assert volume.read('sync_speed_max') == '200000 (system)\n'
    volume.write('sync_speed_max', str(8 * KIB))
    volume.write('sync_speed_min', '500')
    assert volume.read('sync_speed_max') == f'{8 * KIB} (local)\n'
    for word in ('0', '-1', 'fast', '1 2', str(1 << 31)):
        assert refusal(volume, 'sync_speed_max', word)[0] == errno.EINVAL
    assert refusal(volume, 'sync_mode', 'gentle')[0] == errno.EINVAL
    volume.write('sync_mode', 'fixed')
    began = time.monotonic()
    scrub(volume)
    assert time.monotonic() - began > 1.7
    pool.stop()
    pool.start()
    assert volume.read('sync_speed_max') == f'{8 * KIB} (local)\n'
    assert volume.read('sync_speed_min') == '500 (local)\n'
    assert volume.read('sync_mode') == 'fixed\n'
    volume.write('sync_speed_max', 'system')
    assert volume.read('sync_speed_max') == '200000 (system)\n'


@mount
def test_the_command_line_checks_repairs_and_says_what_differs(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB)
    data = fill(volume)
    corrupt(volume, 0, 0)
    cli_ok('check', pool.directory, 'disk')
    cli_ok('wait', pool.directory, 'disk')
    said = cli_ok('status', pool.directory, 'disk')
    assert 'differ: 1 places' in said and 'mirrorfs repair' in said
    refused = cli('repair', pool.directory, 'disk')
    assert refused.returncode == 1 and 'majority' in refused.stderr
    cli_ok('repair', pool.directory, 'disk', '--source', '1')
    cli_ok('wait', pool.directory, 'disk')
    assert 'differ' not in cli_ok('status', pool.directory, 'disk')
    cli_ok('set', pool.directory, 'disk', 'sync_speed_max', '5000')
    pool.stop()
    assert volume.assert_legs_equal() == data


@mount
@pytest.mark.loop
def test_decay_beneath_a_loop_device_is_found_while_the_page_is_cached(tmp_path: Path) -> None:
    """Scrubs read the medium: the page that a read of the image would get is right all the time."""
    with field(tmp_path) as ground, MountedPool() as pool:
        pool.start()
        media = [ground.path(f'medium{number}') for number in range(2)]
        for medium in media:
            with open(medium, 'wb') as file:
                file.truncate(20 * MIB)
        devices = [ground.loop(medium) for medium in media]
        ground.later(lambda: pool.clean())
        pool.write('create', f'disk 8M {" ".join(devices)} force')
        volume = Volume(pool, 'disk', 8 * MIB, [Path(device) for device in devices])
        data = fill(volume)
        base = examine(devices[1])[0]['data_offset']
        with open(media[1], 'r+b', buffering=0) as medium, open(devices[1], 'rb', buffering=0) as device:
            assert os.pread(device.fileno(), 4096, base + MIB) == data[MIB : MIB + 4096]
            os.pwrite(medium.fileno(), b'decayed' * 100, base + MIB)
            os.fsync(medium.fileno())
            cached = os.pread(device.fileno(), 4096, base + MIB)
            assert cached == data[MIB : MIB + 4096], 'the page was not cached: this proves nothing'
            assert [int(line[0]) for line in scrub(volume)] == [MIB]
            assert volume.image.read_bytes() == data
            assert scrub(volume, 'repair 0') == []
            assert os.pread(medium.fileno(), 4096, base + MIB) == data[MIB : MIB + 4096]
        assert scrub(volume) == []
        run_program('umount', pool.mountpoint)
        assert pool.wait() == 0
