"""The intent log in memory, look-ahead, range locks and the hot table: what may be relied on, and when.

`is_durable` is held against a model that keeps every state of the medium that a crash could leave.
"""

import random
import uuid

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mirrorfs import hot, limits
from mirrorfs.intent.log import Batch, IntentLog
from mirrorfs.intent.lookahead import STREAMS, Lookahead
from mirrorfs.intent.states import ALL, DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN, UNZEROED, WORDS
from mirrorfs.locks import ChunkLocks
from mirrorfs.metadata import wibm

VOLUME = uuid.UUID(int=1)
PER_PAGE = wibm.PAGE_CHUNKS
SETS = (0, DIRTY, MODIFIED, NEEDS_RESYNC, DIRTY | MODIFIED, DIRTY | NEEDS_RESYNC)
CLEARS = (0, UNWRITTEN, UNWRITTEN | UNZEROED, DIRTY, NEEDS_RESYNC, MODIFIED)


def fresh(chunks: int, state: int = UNWRITTEN) -> IntentLog:
    return IntentLog(VOLUME, np.full(chunks, state, np.uint8), 0)


class Durable(RuleBasedStateMachine):
    """Updates, batches that end well or badly, growth; against all that a crash could leave of each page."""

    @initialize(chunks=st.integers(1, 2 * PER_PAGE + 5), state=st.sampled_from((UNWRITTEN, 0, DIRTY)))
    def start(self, chunks: int, state: int) -> None:
        self.log = fresh(chunks, state)
        self.wanted = [state] * chunks
        self.left: list[set[int]] = [{state} for _ in range(chunks)]
        """For every chunk the states that the medium may hold after a crash."""
        self.batch: Batch | None = None
        self.serials = [0]

    def interesting(self, data: st.DataObject) -> tuple[int, int]:
        near = [0, 1, PER_PAGE - 1, PER_PAGE, len(self.wanted) // 2, len(self.wanted) - 1]
        choose = st.sampled_from([n for n in near if n < len(self.wanted)])
        first, second = data.draw(choose), data.draw(choose)
        first, last = min(first, second), max(first, second)
        return first, min(last, first + 3)

    @rule(data=st.data(), set_=st.sampled_from(SETS), clear=st.sampled_from(CLEARS))
    def update(self, data: st.DataObject, set_: int, clear: int) -> None:
        clear &= ~set_
        first, last = self.interesting(data)
        before = self.wanted[first : last + 1]
        after = [(state | set_) & ~clear for state in before]
        self.wanted[first : last + 1] = after
        assert self.log.update(first, last, set_, clear) == (before != after)

    @rule(data=st.data(), set_=st.sampled_from(SETS), clear=st.sampled_from(CLEARS))
    def update_chunks(self, data: st.DataObject, set_: int, clear: int) -> None:
        clear &= ~set_
        first, last = self.interesting(data)
        chunks = list(range(first, last + 1))[::2]
        changed = 0
        for chunk in chunks:
            after = (self.wanted[chunk] | set_) & ~clear
            changed += after != self.wanted[chunk]
            self.wanted[chunk] = after
        assert self.log.update_chunks(np.array(chunks, np.intp), set_, clear) == changed

    @precondition(lambda self: self.batch is None)
    @rule()
    def begin(self) -> None:
        self.batch = self.log.begin()
        assert self.batch.serial > self.serials[-1], 'serials only ever grow'
        self.serials.append(self.batch.serial)
        for page, stored in self.batch.states.items():
            for at, state in enumerate(stored.tolist()):
                assert state == self.wanted[page * PER_PAGE + at], 'a batch stores what is wanted'
                self.left[page * PER_PAGE + at].add(state)
        for chunk, state in enumerate(self.wanted):
            assert chunk // PER_PAGE in self.batch.states or self.left[chunk] == {state}, 'a change left out'
        assert not self.log.pending

    @precondition(lambda self: self.batch is not None)
    @rule()
    def finish(self) -> None:
        assert self.batch
        self.log.finish(self.batch)
        for page, stored in self.batch.states.items():
            for at, state in enumerate(stored.tolist()):
                self.left[page * PER_PAGE + at] = {state}
        self.batch = None

    @precondition(lambda self: self.batch is not None)
    @rule()
    def abandon(self) -> None:
        assert self.batch
        self.log.abandon(self.batch)
        assert self.log.pending or not self.batch.states
        self.batch = None

    @precondition(lambda self: self.batch is None)
    @rule(more=st.sampled_from((1, 3, PER_PAGE)))
    def grow(self, more: int) -> None:
        if len(self.wanted) < 4 * PER_PAGE:
            before = len(self.wanted)
            self.log.grow(before + more, UNWRITTEN)
            self.wanted += [UNWRITTEN] * more
            self.left += [{UNWRITTEN}] * more
            self.left[before:] = [{UNWRITTEN} for _ in range(more)]
            assert self.log.pending
            assert self.log.pages == wibm.pages_for(before + more)

    @invariant()
    def memory_is_what_was_asked_for(self) -> None:
        assert self.log.states.tolist() == self.wanted

    @invariant()
    def counts_are_those_of_all_chunks(self) -> None:
        for flag, word in WORDS.items():
            assert self.log.count(flag) == sum(state & flag != 0 for state in self.wanted), word

    @invariant()
    def what_counts_as_durable_is_in_everything_that_a_crash_could_leave(self) -> None:
        for chunk in {0, 1, 2, 3, PER_PAGE - 1, PER_PAGE, PER_PAGE + 1, len(self.wanted) - 1}:
            if chunk >= len(self.wanted):
                continue
            for flag in (DIRTY, MODIFIED, NEEDS_RESYNC):
                if self.log.is_durable(chunk, chunk, set_=flag):
                    assert all(state & flag for state in self.left[chunk]), WORDS[flag]
            if self.log.is_durable(chunk, chunk, clear=UNWRITTEN):
                assert not any(state & UNWRITTEN for state in self.left[chunk])

    @invariant()
    def when_nothing_is_under_way_all_that_is_stored_counts(self) -> None:
        if self.batch is None and not self.log.pending:
            for chunk in (0, len(self.wanted) - 1):
                state = self.wanted[chunk]
                marks = state & (DIRTY | MODIFIED | NEEDS_RESYNC)
                assert self.log.is_durable(chunk, chunk, set_=marks, clear=UNWRITTEN & ~state)


Durable.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestDurable = Durable.TestCase


def test_a_large_log_is_counted_in_steps() -> None:
    log = fresh(300 * PER_PAGE)
    steps = 1
    while log.count_some():
        steps += 1
    assert steps > 1 and log.count(UNWRITTEN) == 300 * PER_PAGE
    log.update(0, 0, clear=UNWRITTEN)
    assert not log.count_some() and log.count(UNWRITTEN) == 300 * PER_PAGE - 1
    log.add(np.full(300 * PER_PAGE, DIRTY, np.uint8))
    assert log.count(DIRTY) == 300 * PER_PAGE and log.is_durable(0, 300 * PER_PAGE - 1, set_=DIRTY)


def test_a_mark_wanted_during_a_batch_is_not_durable_when_that_batch_is() -> None:
    log = fresh(4)
    log.update(0, 0, set_=DIRTY)
    batch = log.begin()
    log.update(1, 1, set_=DIRTY)
    log.finish(batch)
    assert log.is_durable(0, 0, set_=DIRTY)
    assert not log.is_durable(1, 1, set_=DIRTY)
    assert log.pending


def test_a_mark_that_is_being_cleared_protects_no_more_even_if_it_is_wanted_again() -> None:
    log = fresh(1, DIRTY)
    log.update(0, 0, clear=DIRTY)
    clearing = log.begin()
    log.update(0, 0, set_=DIRTY)
    assert not log.is_durable(0, 0, set_=DIRTY)
    log.finish(clearing)
    assert not log.is_durable(0, 0, set_=DIRTY)
    log.finish(log.begin())
    assert log.is_durable(0, 0, set_=DIRTY)


def test_one_batch_takes_the_changes_of_all_and_only_the_pages_that_changed() -> None:
    log = fresh(5 * PER_PAGE)
    log.update(PER_PAGE, PER_PAGE, set_=DIRTY)
    log.update(3 * PER_PAGE - 1, 3 * PER_PAGE, set_=DIRTY)
    assert sorted(log.begin().states) == [1, 2, 3]
    assert log.begin().states == {}


def test_an_encoded_batch_decodes_to_what_was_wanted() -> None:
    log = fresh(PER_PAGE + 10)
    log.update(PER_PAGE + 2, PER_PAGE + 3, set_=DIRTY | MODIFIED, clear=UNWRITTEN)
    whole = log.whole()
    copies = b''.join(whole.encode(page, 0) for page in sorted(whole.states))
    image = wibm.decode_log(VOLUME, len(log), lambda copy: b'' if copy else copies)
    assert image.damaged == 0
    assert np.array_equal(image.states, log.states)
    assert set(image.serials.tolist()) == {whole.serial}


def test_where_and_count_find_the_flags_asked_for() -> None:
    log = IntentLog(VOLUME, np.array([0, DIRTY, DIRTY | UNWRITTEN, UNWRITTEN, DIRTY | MODIFIED], np.uint8), 0)
    assert log.where(DIRTY).tolist() == [1, 2, 4]
    assert log.where(DIRTY, UNWRITTEN).tolist() == [1, 4]
    assert log.where(0, UNWRITTEN).tolist() == [0, 1, 4]
    assert (log.count(DIRTY), log.count(MODIFIED)) == (3, 1)


def test_flags_are_single_bits_and_all_have_words() -> None:
    assert sum(WORDS) == ALL
    assert all(flag.bit_count() == 1 for flag in WORDS)


# Look-ahead


def test_a_sequential_writer_finds_ever_more_chunks_marked_up_to_the_limit() -> None:
    ahead = Lookahead(limit=16)
    at, reaches = 0, []
    for _ in range(8):
        end = ahead.ahead(at, at, 1000)
        reaches.append(end - at)
        at = end + 1
    assert reaches == [0, 1, 2, 4, 8, 16, 16, 16]


def test_a_random_writer_marks_nothing_ahead() -> None:
    ahead = Lookahead()
    assert [ahead.ahead(chunk, chunk, 1000) for chunk in (5, 90, 7, 300)] == [5, 90, 7, 300]


def test_a_stream_grows_although_many_of_its_requests_come_at_once() -> None:
    ahead = Lookahead(limit=64)
    ends = [ahead.ahead(chunk, chunk, 1000) for chunk in range(16)]
    assert all(end >= chunk for chunk, end in enumerate(ends))
    assert ends[-1] - 15 >= 16


def test_who_writes_one_chunk_again_and_again_marks_nothing_ahead() -> None:
    ahead = Lookahead()
    assert [ahead.ahead(7, 7, 1000) for _ in range(5)] == [7] * 5


def test_look_ahead_ends_at_the_volume() -> None:
    ahead = Lookahead(limit=64)
    at = 0
    while at < 100:
        end = ahead.ahead(at, at, 100)
        assert end <= 99
        at = end + 1


def test_several_streams_are_followed_and_their_number_is_bounded() -> None:
    ahead = Lookahead(limit=4)
    ends = {stream: ahead.ahead(stream * 1000, stream * 1000, 10**6) for stream in range(STREAMS)}
    grown = {stream: ahead.ahead(end + 1, end + 1, 10**6) - end - 1 for stream, end in ends.items()}
    assert set(grown.values()) == {1}
    for stream in range(1000):
        ahead.ahead(stream * 1000 + 500, stream * 1000 + 500, 10**6)
    assert len(ahead._streams) == STREAMS


# Locks


async def test_overlapping_exclusive_holds_go_one_after_another_in_order_of_arrival() -> None:
    locks = ChunkLocks()
    order: list[str] = []
    inside: set[str] = set()

    async def hold(name: str, first: int, last: int, shared: bool, excludes: str) -> None:
        async with locks.hold(first, last, shared=shared):
            order.append(name)
            assert not inside & set(excludes), f'{name} beside {inside}'
            inside.add(name)
            await trio.testing.wait_all_tasks_blocked()
            inside.remove(name)

    async with trio.open_nursery() as nursery:
        for name, first, last, shared, excludes in (
            ('a', 0, 3, False, 'bcd'),
            ('b', 2, 5, False, 'acd'),
            ('c', 3, 3, True, 'ab'),
            ('d', 3, 4, True, 'ab'),
            ('e', 6, 9, False, ''),
        ):
            nursery.start_soon(hold, name, first, last, shared, excludes)
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert [name for name in order if name != 'e'] == ['a', 'b', 'c', 'd']


async def test_readers_share_and_a_writer_is_not_starved_by_later_readers() -> None:
    locks = ChunkLocks()
    order: list[str] = []
    leave = trio.Event()

    async def hold(name: str, shared: bool, wait: trio.Event | None = None) -> None:
        async with locks.hold(0, 0, shared=shared):
            order.append(name)
            if wait is not None:
                await wait.wait()

    async with trio.open_nursery() as nursery:
        for name, shared, wait in (
            ('r1', True, leave),
            ('r2', True, leave),
            ('w', False, None),
            ('r3', True, None),
        ):
            nursery.start_soon(hold, name, shared, wait)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ['r1', 'r2']
        leave.set()
    assert order == ['r1', 'r2', 'w', 'r3']


async def test_a_waiter_that_gives_up_lets_those_behind_it_pass() -> None:
    locks = ChunkLocks()
    passed = trio.Event()
    leave = trio.Event()
    scope = trio.CancelScope()

    async def reader() -> None:
        async with locks.hold(0, 9, shared=True):
            await leave.wait()

    async def impatient() -> None:
        with scope:
            async with locks.hold(5, 5):
                raise AssertionError('granted beside a reader')

    async def behind() -> None:
        async with locks.hold(5, 5, shared=True):
            passed.set()

    async with trio.open_nursery() as nursery:
        for task in (reader, impatient, behind):
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
        assert not passed.is_set()
        assert locks.is_exclusive(5)
        scope.cancel()
        with trio.fail_after(1):
            await passed.wait()
        assert not locks.is_exclusive(5)
        leave.set()
    assert locks._holds == []


async def test_waiting_and_held_exclusive_ranges_are_told() -> None:
    locks = ChunkLocks()
    async with locks.hold(2, 4), locks.hold(6, 6, shared=True):
        assert [locks.is_exclusive(chunk) for chunk in range(8)] == [False, False, *[True] * 3, *[False] * 3]
        assert locks.exclusive_ranges() == [(2, 4)]
    assert locks.exclusive_ranges() == []


async def test_random_holds_never_overlap_in_conflict_and_all_are_served() -> None:
    rng = random.Random(7)
    locks = ChunkLocks()
    held: list[tuple[int, int, bool]] = []
    served = 0

    async def hold(first: int, last: int, shared: bool, ticks: int) -> None:
        nonlocal served
        async with locks.hold(first, last, shared=shared):
            for low, high, other in held:
                assert last < low or high < first or (shared and other)
            held.append((first, last, shared))
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            held.remove((first, last, shared))
            served += 1

    async with trio.open_nursery() as nursery:
        for _ in range(400):
            first = rng.randrange(20)
            nursery.start_soon(hold, first, first + rng.randrange(5), rng.random() < 0.5, rng.randrange(4))
    assert served == 400


# The hot table


def table(chunks: int = 8, chunk_size: int = 1 << 16) -> hot.HotTable:
    return hot.HotTable(chunks * chunk_size - 512, chunk_size)


@given(st.integers(0, 7), st.integers(0, 7), st.lists(st.integers(0, 7), min_size=8, max_size=8))
def test_withdrawing_takes_all_permission_in_the_range_and_none_outside(
    one: int, other: int, flags: list[int]
) -> None:
    first, last = min(one, other), max(one, other)
    hot_table = table()
    hot_table.flags[:] = bytes(flags)
    assert hot_table.withdraw(first, last) == any(flags[first : last + 1])
    assert list(hot_table.flags) == flags[:first] + [0] * (last - first + 1) + flags[last + 1 :]


def test_withdrawing_writes_leaves_reads() -> None:
    hot_table = table(3)
    hot_table.flags[:] = bytes((hot.READ | hot.WRITE, hot.ZEROS, hot.WRITE))
    hot_table.withdraw_writes()
    assert list(hot_table.flags) == [hot.READ, hot.ZEROS, 0]


def test_growing_keeps_permissions_and_gives_none_to_what_is_new() -> None:
    hot_table = table(2)
    hot_table.flags[:] = bytes((hot.READ, hot.WRITE))
    hot_table.touched[:] = b'\1\0'
    view = hot_table.view()  # an exported view must not stop the growth
    hot_table.grow(5 << 16)
    assert list(hot_table.flags) == [hot.READ, hot.WRITE, 0, 0, 0]
    assert list(hot_table.touched) == [1, 0, 0, 0, 0]
    assert hot_table.size == 5 << 16
    assert len(view) == 2
    hot_table.grow((5 << 16) + 512)
    assert len(hot_table.flags) == 6


@pytest.mark.parametrize('chunk_size', [limits.CHUNK_MIN, limits.CHUNK_DEFAULT, limits.CHUNK_MAX])
def test_a_chunk_has_one_home_and_neighbours_within_16_mib_share_it(chunk_size: int) -> None:
    hot_table = hot.HotTable(1 << 30, chunk_size)
    hot_table.homes = ('a', 'b')
    homes = [hot_table.home(chunk) for chunk in range(len(hot_table.flags))]
    step = max(1, (16 << 20) // chunk_size)
    assert set(homes[:step]) == {0}
    assert set(homes[step : 2 * step]) == {1}
    assert homes == [hot_table.home(chunk) for chunk in range(len(hot_table.flags))]
