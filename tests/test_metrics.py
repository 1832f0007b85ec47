"""The control file ``metrics``: read by Prometheus' own parser, on real mounts in all states; histograms."""

import errno
import itertools
import math
import os
import random
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from mounts import MIB, MountedPool, Volume, wait_for, write_control
from prometheus_client.parser import text_string_to_metric_families

from mirrorfs.fs.exposition import Exposition, Family, labels
from mirrorfs.fs.metrics import FAMILIES
from mirrorfs.histogram import Histogram
from mirrorfs.mirror.legcalls import LegCalls

pytestmark = pytest.mark.timeout(120)
mount = pytest.mark.mount

# Histograms

SECONDS = st.floats(0, 1e4, allow_nan=False)


@given(st.lists(SECONDS))
def test_every_value_is_in_the_bucket_that_its_bounds_say(values: list[float]) -> None:
    histogram = Histogram()
    bounds = [0.0, *histogram.bounds, math.inf]
    for value in values:
        before = list(histogram.counts)
        histogram.add(value)
        (at,) = (n for n, count in enumerate(histogram.counts) if count != before[n])
        assert bounds[at] * (1 - 1e-12) <= value <= bounds[at + 1] * (1 + 1e-12)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == pytest.approx(sum(values))


@given(st.lists(st.integers(0, 5000)))
def test_whole_numbers_are_counted_up_to_their_bound(values: list[int]) -> None:
    histogram = Histogram(1, 11)
    for value in values:
        histogram.add(value)
    for number, bound in enumerate(histogram.bounds):
        assert sum(histogram.counts[: number + 1]) == sum(value <= bound for value in values)


# What a leg is asked for


async def test_calls_are_timed_whether_they_succeed_fail_or_are_given_up(autojump_clock: object) -> None:
    made = LegCalls()

    async def take(seconds: float, failure: OSError | None = None) -> str:
        await trio.sleep(seconds)
        if failure:
            raise failure
        return 'done'

    assert await made.timed('read', 4096, take(1)) == 'done'
    with pytest.raises(OSError):
        await made.timed('read', 4096, take(2, OSError(errno.EIO, 'bad')))
    with trio.move_on_after(4):
        await made.timed('read', 4096, take(1000))
    calls = made.by_kind['read']
    assert (calls.bytes, calls.errors, sum(calls.seconds.counts)) == (4096, 1, 3)
    assert calls.seconds.sum == pytest.approx(7)
    assert not sum(made.by_kind['write'].seconds.counts)


# The text


@dataclass
class Scrape:
    """One reading, parsed; samples by name and labels."""

    text: str

    def __post_init__(self) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f'{key} is there twice'
                self.samples[key] = sample.value

    def __call__(self, name: str, **wanted: str) -> float:
        """Return the one sample of that name with these labels."""
        (found,) = self.all(name, **wanted)
        return found

    def all(self, name: str, **wanted: str) -> list[float]:
        return [
            v for (n, about), v in self.samples.items() if n == name and wanted.items() <= dict(about).items()
        ]

    def holds(self, name: str, label: str, **wanted: str) -> str:
        """Return the one word of a set that holds."""
        (word,) = (
            dict(about)[label]
            for (n, about), v in self.samples.items()
            if n == name and v == 1 and wanted.items() <= dict(about).items()
        )
        return word

    def check(self) -> None:
        """Everything that holds of any reading."""
        for family in self.families.values():
            name = family.name if family.type != 'counter' else f'{family.name}_total'
            assert (FAMILIES[name].kind, FAMILIES[name].help) == (family.type, family.documentation)
            if family.type == 'histogram':
                self._check_histogram(family.name)
        assert all(value >= 0 for value in self.samples.values())

    def _check_histogram(self, name: str) -> None:
        series: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
        for (n, about), value in self.samples.items():
            if n == f'{name}_bucket':
                pairs = dict(about)
                bound = float(pairs.pop('le'))
                series.setdefault(frozenset(pairs.items()), []).append((bound, value))
        for about, buckets in series.items():
            counts = [count for _, count in buckets]
            assert buckets == sorted(buckets) and counts == sorted(counts), f'{name} is not cumulative'
            assert buckets[-1] == (math.inf, self.samples[f'{name}_count', about])
            assert self.samples[f'{name}_sum', about] >= 0

    def check_since(self, before: 'Scrape') -> None:
        """No counter, nor bucket, is less than it was; none is gone."""
        for family in before.families.values():
            if family.type in ('counter', 'histogram'):
                for sample in family.samples:
                    key = (sample.name, frozenset(sample.labels.items()))
                    assert self.samples[key] >= sample.value, key


TEXT = st.text(st.characters(exclude_categories=['Cs']))


@given(TEXT, st.floats(allow_nan=False))
async def test_any_label_is_read_back_as_it_was(text: str, value: float) -> None:
    into = Exposition({'some': Family('gauge', 'Some help.'), 'none': Family('gauge', 'Nothing.')})
    into.add('some', labels(leg=text, volume='v'), value)
    scrape = Scrape(''.join([part async for part in into.text()]))
    assert scrape.samples == {('some', frozenset({('leg', text), ('volume', 'v')})): value}


def test_a_label_that_is_not_utf8_is_shown_by_escapes() -> None:
    assert labels(leg=os.fsdecode(b'/legs/\xff')) == r'leg="/legs/\\udcff"'


def test_names_and_units_are_those_that_prometheus_wants() -> None:
    for name, family in FAMILIES.items():
        assert name.endswith('_total') == (family.kind == 'counter'), name
        assert family.help.endswith('.') and '\n' not in family.help and '\\' not in family.help
        assert not any(unit in name for unit in ('_ms', '_us', '_kib', '_sectors', '_percent')), name


# On real mounts


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


@pytest.fixture
def volume(pool: MountedPool) -> Iterator[Volume]:
    made = pool.volume(size=32 * MIB)
    yield made
    made.destroy()


def scrape(pool: MountedPool) -> Scrape:
    found = Scrape((pool.control / 'metrics').read_text())
    found.check()
    return found


@contextmanager
def writing(volume: Volume) -> Iterator[None]:
    """Have a thread write and sync, here and there, all the while."""
    ended = threading.Event()

    def write() -> None:
        with volume.open() as fd:
            for number in range(1 << 20):
                os.pwrite(fd, b'w' * 4096, number * 37 % 8000 * 4096)
                if number % 16 == 0:
                    os.fsync(fd)
                if ended.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@mount
def test_the_file_is_for_everybody_to_read(pool: MountedPool) -> None:
    assert stat.S_IMODE((pool.control / 'metrics').stat().st_mode) == 0o444
    with pytest.raises(PermissionError):
        write_control(pool.control / 'metrics', 'anything')


@mount
def test_a_pool_without_volumes_and_a_fresh_volume() -> None:
    with MountedPool() as pool:
        pool.start()
        empty = scrape(pool)
        assert empty('mirrorfs_up', pool=str(pool.directory)) == 1
        assert empty('mirrorfs_info', mountpoint=str(pool.mountpoint), pid=str(pool.pid)) == 1
        assert not empty.all('mirrorfs_volume_size_bytes')
        volume = pool.volume('disk', 8 * MIB)
        fresh = scrape(pool)
        fresh.check_since(empty)
        assert fresh.holds('mirrorfs_volume_state', 'state', volume='disk') == 'clean'
        assert fresh('mirrorfs_volume_size_bytes') == 8 * MIB
        assert (
            fresh('mirrorfs_volume_chunks_flagged', flag='unwritten') == fresh('mirrorfs_volume_chunks') == 8
        )
        assert fresh('mirrorfs_volume_legs_missing') == 0 and fresh('mirrorfs_volume_legs_wanted') == 2
        assert fresh('mirrorfs_events_total', event='NewArray') == 1
        for slot, leg in enumerate(volume.legs):
            where = {'slot': str(slot), 'leg': str(leg)}
            assert fresh.holds('mirrorfs_leg_state', 'state', **where) == 'in_sync'
            assert fresh('mirrorfs_leg_bad_blocks', **where) == 0


@mount
def test_requests_are_counted_and_timed(pool: MountedPool, volume: Volume) -> None:
    where = {'volume': volume.name}
    before = scrape(pool)
    volume.put(0, b'a' * 4096)
    volume.put(0, b'b' * 8192)
    volume.get(0, 4096)
    after = scrape(pool)
    after.check_since(before)

    def more(name: str, **about: str) -> float:
        return after(name, **where, **about) - before(name, **where, **about)

    assert more('mirrorfs_volume_writes_total') == 2
    assert more('mirrorfs_volume_written_bytes_total') == 12288
    assert more('mirrorfs_volume_reads_total') == 1
    assert more('mirrorfs_volume_flushes_total') == 2
    assert more('mirrorfs_volume_request_seconds_count', operation='write') == 2 - more(
        'mirrorfs_volume_lane_writes_total'
    )
    slow_flushes = more('mirrorfs_volume_request_seconds_count', operation='flush')
    assert more('mirrorfs_volume_lane_flush_seconds_count') + slow_flushes == 2
    assert more('mirrorfs_volume_log_commits_total') == more('mirrorfs_volume_log_commit_seconds_count') > 0
    for slot in '01':
        assert more('mirrorfs_leg_call_seconds_count', slot=slot, kind='write') > 0
        assert more('mirrorfs_leg_call_bytes_total', slot=slot, kind='write') > 0
        assert more('mirrorfs_leg_call_bytes_total', slot=slot, kind='metadata') >= 4096
    assert after('mirrorfs_volume_chunks_flagged', flag='dirty', **where) > 0
    with volume.open() as fd, pytest.raises(OSError):
        os.pwrite(fd, b'beyond', 32 * MIB)
    failed = scrape(pool)
    assert failed('mirrorfs_volume_request_errors_total', operation='write', **where) == 1


@mount
def test_one_round_serves_many_writers(pool: MountedPool, volume: Volume) -> None:
    def write(seed: int) -> None:
        chance = random.Random(seed)
        with volume.open() as fd:
            for _ in range(20):
                os.pwrite(fd, b'x' * 4096, chance.randrange(32) * MIB)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = scrape(pool)
    rounds = found('mirrorfs_volume_log_commit_served_count', volume=volume.name)
    assert rounds == found('mirrorfs_volume_log_commits_total', volume=volume.name)
    assert found('mirrorfs_volume_log_commit_served_sum', volume=volume.name) > rounds


@mount
def test_under_writes_degraded_and_recovering(pool: MountedPool, volume: Volume) -> None:
    where = {'volume': volume.name}
    for at in range(32):
        volume.put(at * MIB, bytes([at + 1]) * 4096)
    with writing(volume):
        readings = [scrape(pool) for _ in range(10)]
        volume.write('fail', '1')
        readings.append(scrape(pool))
        assert readings[-1].holds('mirrorfs_leg_state', 'state', slot='1', **where) == 'faulty'
        assert readings[-1]('mirrorfs_volume_legs_missing', **where) == 1
        assert readings[-1]('mirrorfs_events_total', event='DegradedArray') == 1
        wait_for(lambda: volume.status()['chunks']['modified'] > 8, 'something is lacking')
        volume.write('sync_speed_max', '2000')
        volume.write('sync_speed_min', '1')
        volume.write('re-add', '1')
        progress: set[float] = set()

        def moves() -> bool:
            readings.append(scrape(pool))
            progress.update(readings[-1].all('mirrorfs_volume_sync_done_bytes', **where))
            return len(progress) > 2

        wait_for(moves, 'recovery goes on')
        assert readings[-1].holds('mirrorfs_volume_sync_action', 'action', **where) == 'recover'
        assert readings[-1].holds('mirrorfs_leg_state', 'state', slot='1', **where) == 'spare'
        assert max(progress) <= readings[-1]('mirrorfs_volume_sync_total_bytes', **where)
        volume.write('sync_speed_max', 'system')
        volume.settled()
        readings.append(scrape(pool))
    for before, after in itertools.pairwise(readings):
        after.check_since(before)
    assert readings[-1].holds('mirrorfs_volume_sync_action', 'action', **where) == 'idle'
    assert readings[-1].holds('mirrorfs_leg_state', 'state', slot='1', **where) == 'in_sync'
    assert readings[-1]('mirrorfs_volume_recovered_bytes_total', **where) > 0


@mount
def test_a_leg_with_any_name(pool: MountedPool) -> None:
    name = 'a "quoted" \\ back\\\\slash'
    leg = pool.legs / name
    pool.write('create', f"odd {4 * MIB} '{leg}' {pool.legs / 'even'}")
    try:
        assert scrape(pool)('mirrorfs_leg_bad_blocks', volume='odd', slot='0', leg=str(leg)) == 0
        moved = leg.rename(pool.legs / f'{name}\nand a second line')

        def followed() -> bool:
            return bool(scrape(pool).all('mirrorfs_leg_bad_blocks', volume='odd', slot='0', leg=str(moved)))

        wait_for(followed, 'the new path')
    finally:
        pool.write('destroy', 'odd')


@mount
def test_what_does_not_run_and_a_log_that_is_lost() -> None:
    with MountedPool() as pool:
        log = pool.legs / 'log'
        pool.start()
        pool.volume('lost', 4 * MIB, options=f'log={log}')
        gone = pool.volume('gone', 4 * MIB)
        assert scrape(pool)('mirrorfs_volume_log_info', volume='lost', place='external', path=str(log)) == 1
        log.unlink()
        wait_for(lambda: scrape(pool)('mirrorfs_volume_log_lost', volume='lost'), 'the log is lost')
        pool.stop()
        for leg in gone.legs:
            leg.unlink()
        pool.start()
        found = scrape(pool)
        assert found.holds('mirrorfs_volume_state', 'state', volume='gone') == 'inactive'
        assert found('mirrorfs_volume_log_info', volume='lost', place='none') == 1
        assert not found.all('mirrorfs_volume_reads_total', volume='gone')
        assert {
            Path(dict(about)['leg']) for name, about in found.samples if name == 'mirrorfs_leg_flag'
        } >= set(gone.legs)
