"""The mount end to end on legs that fail: killed, cut off from power, with a fault at every leg call.

MIRRORFS_KILL_SECONDS says how long each of the two kill loops runs.  What the legs do wrong is `faultfs`'s.
"""

import errno
import itertools
import mmap
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from faulttools import FaultPool
from killloop import DEAD, REFUSALS, SECTOR, Ledger, Options, Violation, play, sectors_of, tags_of, told
from mounts import KEEP_SIZE, MIB, PUNCH_HOLE, Volume, child, exit_code, fallocate, wait_for

from mirrorfs.intent.states import NEEDS_RESYNC
from mirrorfs.locks import ChunkLocks, Hold
from mirrorfs.volume import volume as mirror

pytestmark = [pytest.mark.mount]
KILL_SECONDS = float(os.environ.get('MIRRORFS_KILL_SECONDS', '90'))
CHUNK = 128
"""Sectors."""


# Killed again and again


@pytest.mark.timeout(KILL_SECONDS + 150)
@pytest.mark.parametrize('power', [False, True], ids=['sigkill', 'power cut'])
def test_nothing_promised_is_lost_however_often_the_daemon_dies(
    power: bool, tell: Callable[[str], None]
) -> None:
    """Writers, fio with checksums, legs that fail and return; a kill in each round, and all is checked."""
    seed = random.randrange(1 << 32)
    rounds, counts = play(Options(seed, power), seconds=KILL_SECONDS)
    tell(f'{"power cut" if power else "SIGKILL"}, seed {seed}: {told(rounds, counts)}')
    assert counts['kills'] >= rounds >= KILL_SECONDS / 5
    assert counts['legs compared'] > rounds
    assert bool(counts['power cuts']) == power


SABOTAGES = {
    'lying-fsync': ('sectors are wrong', 'holds something else'),
    'forget': ('sectors are wrong',),
    'differ': ('holds something else', 'sectors are wrong', 'two reads disagree'),
    'garbage': ('has write -1',),
}
"""What is broken on purpose, and what the loop may say of it."""


@pytest.mark.timeout(150)
@pytest.mark.parametrize('sabotage', SABOTAGES)
def test_the_kill_loop_finds_what_is_broken_on_purpose(sabotage: str) -> None:
    """A check that never failed is not known to work."""
    seed = random.randrange(1 << 32)
    with pytest.raises(Violation) as caught:
        play(Options(seed, power=True, sabotage=sabotage, fio_every=0), rounds=60)
    assert any(words in str(caught.value) for words in SABOTAGES[sabotage]), caught.value


# A fault at every call


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the Nth call of a kind on one leg."""

    kind: str
    do: str
    leg: int = 1
    seconds: float | None = None
    power: bool = False
    workers: int = 2
    """How many scripts are played at once; who mostly waits can do so with others."""

    @property
    def deadly(self) -> bool:
        return self.do == 'kill'


FAULTS = {
    'EIO on leg 0': Fault('any', 'EIO', leg=0),
    'EIO on leg 1': Fault('any', 'EIO'),
    'ENOSPC': Fault('write', 'ENOSPC'),
    'EROFS': Fault('write', 'EROFS'),
    'short': Fault('write', 'short'),
    'delay': Fault('any', 'delay', seconds=0.35, workers=4),
    'hang': Fault('any', 'hang', seconds=0.9, workers=4),
    'kill': Fault('any', 'kill', leg=0),
    'kill and power cut': Fault('any', 'kill', power=True),
}
LEG_TIMEOUT = 0.5


@dataclass
class Script:
    """A fixed sequence of writes, syncs and verbs with a fault at the Nth call, and what must hold then.

    The other leg is well all the time, so no caller may see an error.
    """

    SIZE = MIB

    pool: FaultPool
    fault: Fault
    nth: int
    ledger: Ledger = field(default_factory=lambda: Ledger(Script.SIZE // SECTOR, 1))
    tag: int = 0

    def __post_init__(self) -> None:
        self.leg = self.pool.faults[self.fault.leg]
        self.volume = Volume(self.pool, 'x', self.SIZE, self.pool.leg_paths('x', 2))

    def run(self) -> bool:
        """Play the script, check, clean up; return whether the fault came to pass."""
        began = self.leg.facts()
        self._calls = began['calls'][self.fault.kind]
        try:
            self._arm(self.pool.pid)
            self._play()
        except (OSError, AssertionError):
            if not self._died(began['fired']):
                raise
        fired = bool(self.leg.facts()['fired'] > began['fired'])
        self.pool.clear()
        if not self.pool.process:
            self.pool.start()
        if any(volume['name'] == 'x' for volume in self.pool.status()['volumes']):
            self._check()
            self.pool.write('destroy', 'x')
        else:
            assert self.fault.deadly and not self.ledger.begun.any(), 'the volume is gone'
        self._blank_legs()
        return fired

    def _arm(self, pid: int) -> None:
        """Have it go wrong at what is then the Nth call since the script began."""
        left = self.nth - (self.leg.facts()['calls'][self.fault.kind] - self._calls)
        if left > 0:
            options = {'seconds': self.fault.seconds, 'pid': pid if self.fault.deadly else None}
            given = {name: value for name, value in options.items() if value is not None}
            self.leg.rule(self.fault.kind, self.fault.do, nth=left, **given)

    def _fired(self) -> bool:
        return self.leg.facts()['calls'][self.fault.kind] - self._calls >= self.nth

    def _died(self, fired: int) -> bool:
        """Whether the daemon died as it should; then nothing of it is left, and the power cut, if asked."""
        if not self.fault.deadly or self.leg.facts()['fired'] == fired:
            return False
        if self.pool.process:
            self.pool.reap()
        if self.fault.power:
            self.pool.power_cut(self.nth)
        return True

    def _play(self) -> None:
        self._create()
        self.write(0, 8)
        self.write(CHUNK - 3, 6)
        self.sync()
        self.write(4, 16)
        self.write(3 * CHUNK, 8, os.RWF_DSYNC)
        self.punch(2, 4)
        self.read()
        self.verb('fail', str(self.fault.leg))
        self.write(5 * CHUNK, 9)
        self.write(0, 1)
        self.verb('re-add', 'missing')
        self.write(6 * CHUNK, 300)
        self.volume.settled()
        self.sync()
        self._restart()
        self.write(CHUNK, 8)
        self.read()
        self.punch(5 * CHUNK, CHUNK)
        self.write(5 * CHUNK + 1, 1)
        self._stop()

    def _create(self) -> None:
        """Create the volume; if that is refused nothing must be left of it, and it can be tried again."""
        words = ('x', self.SIZE, 2, 'chunk=64K')
        try:
            self.pool.volume(*words)
        except OSError as error:
            if error.errno in DEAD or not self._fired():
                raise
            assert self.pool.status()['volumes'] == []
            self._blank_legs()
            self.pool.volume(*words)

    def _blank_legs(self) -> None:
        wait_for(lambda: not any(leg.facts()['hanging'] for leg in self.pool.faults), 'calls to return')
        for leg in self.pool.faults:
            os.truncate(leg.path, 0)

    def _stop(self) -> None:
        self.pool.stop()
        np.maximum(self.ledger.synced[0], self.ledger.acked, out=self.ledger.synced[0])

    def _restart(self) -> None:
        self._stop()
        self.pool.clear()
        self.pool.spawn(prepare=lambda: self._arm(os.getpid()))
        self.pool.await_answer()

    def verb(self, file: str, word: str) -> None:
        """Give a command; it may be refused once the fault has come."""
        try:
            self.volume.write(file, word)
        except OSError as error:
            own = getattr(errno, self.fault.do, errno.EIO)
            if error.errno not in (*REFUSALS, own) or not self._fired():
                raise

    def write(self, first: int, count: int, flags: int = 0) -> None:
        self.tag += 1
        self.ledger.begun[first : first + count] = self.tag
        with self.volume.open(os.O_RDWR | os.O_DIRECT) as fd:
            data = sectors_of(first, count, self.tag)
            assert os.pwritev(fd, [data], first * SECTOR, flags) == len(data)
        self.ledger.acked[first : first + count] = self.tag
        if flags & os.RWF_DSYNC:
            self.ledger.synced[0, first : first + count] = self.tag

    def punch(self, first: int, count: int) -> None:
        self.tag += 1
        self.ledger.begun[first : first + count] = self.ledger.zeroed[first : first + count] = self.tag
        with self.volume.open() as fd:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, first * SECTOR, count * SECTOR)
        self.ledger.acked[first : first + count] = self.tag

    def sync(self) -> None:
        with self.volume.open() as fd:
            os.fsync(fd)
        np.maximum(self.ledger.synced[0], self.ledger.acked, out=self.ledger.synced[0])

    def read(self, power: bool = False) -> bytes:
        with self.volume.open(os.O_RDONLY | os.O_DIRECT) as fd:
            data = os.pread(fd, self.SIZE, 0)
        self.ledger.check(tags_of(data), power)
        return data

    def _check(self) -> None:
        """All that was promised is there; in the end it is durable on both legs."""
        assert self.volume.status()['state'] != 'inactive'
        before = self.read(self.fault.power)
        self._take_back()
        assert self.read(self.fault.power) == before
        self.pool.stop()
        assert [leg.facts()['volatile'] for leg in self.pool.faults] == [0, 0]
        for volume in (self.volume, self.pool.durable_twin(self.volume)):
            assert volume.assert_legs_equal() == before
        self.pool.start()

    def _take_back(self) -> None:
        """A lost leg comes back."""
        if any(leg['state'] not in ('in_sync', 'spare') for leg in self.volume.status()['legs']):
            self.volume.write('re-add', 'missing')
        assert {leg['state'] for leg in self.volume.settled()['legs']} == {'in_sync'}


def run_all(pool: FaultPool, fault: Fault, numbers: Iterator[int]) -> int:
    """Run the script with the fault at these calls, to its end; return how many times (255: failed)."""
    done, nth = 0, 0
    try:
        pool.start()
        for nth in numbers:
            if not Script(pool, fault, nth).run():
                return done
            done += 1
    except BaseException:
        os.write(2, f'with {fault} at call {nth}:\n{traceback.format_exc()}{pool.log()[-3000:]}'.encode())
    return 255


@pytest.mark.timeout(150)
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_at_any_call_of_a_leg_costs_nothing(name: str, tell: Callable[[str], None]) -> None:
    """N = 1, 2, 3… until the script ends before its Nth call."""
    fault = FAULTS[name]
    with ExitStack() as stack:
        pools = [
            stack.enter_context(FaultPool(2, f'leg_timeout={LEG_TIMEOUT}')) for _ in range(fault.workers)
        ]
        pids = [
            stack.enter_context(child(partial(run_all, pool, fault, itertools.count(number, len(pools)))))
            for number, pool in enumerate(pools, 1)
        ]
        codes = [exit_code(pid, 140) for pid in pids]
    assert 255 not in codes
    tell(f'{name}: {sum(codes)} runs')
    assert sum(codes) > (100 if fault.kind == 'any' else 30)


# Many writers to one place

WRITERS, BURSTS, BURST_SECONDS = 8, 12, 0.3
REGION = 512
"""Sectors that all write to: four chunks."""


def scribble(volume: Volume, number: int, until: float, askew: int) -> int:
    """Write anywhere in the region until then, or the daemon dies."""
    chance = random.Random(f'{number}/{until}')
    buffer = mmap.mmap(-1, REGION * SECTOR + mmap.PAGESIZE)
    try:
        with volume.open(os.O_RDWR | os.O_DIRECT) as fd:
            for count in itertools.count(1):
                if time.monotonic() > until:
                    return 0
                first = chance.randrange(REGION)
                size = min(chance.choice([1, 2, 8, 8, 64, 200, REGION]), REGION - first)
                data = sectors_of(first, size, number << 32 | count)
                buffer[askew : askew + len(data)] = data
                with memoryview(buffer) as view, view[askew : askew + len(data)] as part:
                    flags = os.RWF_DSYNC if chance.random() < 0.2 else 0
                    assert os.pwritev(fd, [part], first * SECTOR, flags) == len(data)
                if chance.random() < 0.02:
                    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, first * SECTOR, size * SECTOR)
    except OSError as error:
        return 0 if error.errno in DEAD else error.errno or 255
    return 0


def leave_alone(volume: Volume, pool: FaultPool, until: float) -> None:
    pass


def stall(volume: Volume, pool: FaultPool, until: float) -> None:
    """A leg stalls at times, for so long that the data lane is replaced; all goes on without it."""
    for leg in pool.faults:
        leg.rule('plain', 'delay', nth=20, seconds=0.3)


def fail_and_return(volume: Volume, pool: FaultPool, until: float) -> None:
    """Legs are failed, or fail, and come back, one at a time."""
    for number in itertools.cycle([0, 1, 1, 0]):
        if time.monotonic() > until - 0.1:
            return
        if number:
            volume.write('fail', str(number))
        else:
            # Not EIO, which may be that of a block: there is room for all blocks of the volume in the list.
            pool.faults[number].rule('plain', 'ENXIO', every=True)
            wait_for(lambda: volume.status()['degraded'], 'a write fails on leg 0')
            pool.clear()
        time.sleep(0.03)
        volume.write('re-add', 'missing')
        volume.settled()


def kill(volume: Volume, pool: FaultPool, until: float) -> None:
    time.sleep(BURST_SECONDS / 2)
    pool.kill()


def cut(volume: Volume, pool: FaultPool, until: float) -> None:
    kill(volume, pool, until)
    pool.power_cut(until)


TROUBLES = {'none': leave_alone, 'stalls': stall, 'failures': fail_and_return, 'kill': kill, 'power cut': cut}


@pytest.mark.timeout(120)
@pytest.mark.parametrize('askew', [0, 1], ids=['aligned', 'askew'])
@pytest.mark.parametrize('trouble', TROUBLES)
def test_overlapping_writes_of_many_processes_leave_equal_legs(trouble: str, askew: int) -> None:
    """Equal and durable after each burst; and each sector from one writer, unless the kernel cut writes
    within sectors, which it does where buffers are not aligned."""
    overlap(TROUBLES[trouble], askew)


def overlap(
    trouble: Callable[[Volume, FaultPool, float], None],
    askew: int = 0,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Have many processes write to one place, in bursts, with trouble meanwhile; compare after each."""
    with FaultPool(2, f'leg_timeout={LEG_TIMEOUT}') as pool, ExitStack() as stack:
        pool.spawn(prepare=prepare).await_answer()
        volume = pool.volume('x', MIB, 2, 'chunk=64K')
        volume.write('bitmap/time_base', '0.05')
        seen = set()
        for _ in range(BURSTS):
            until = time.monotonic() + BURST_SECONDS
            pids = [
                stack.enter_context(child(partial(scribble, volume, number, until, askew)))
                for number in range(1, WRITERS + 1)
            ]
            trouble(volume, pool, until)
            assert [exit_code(pid) for pid in pids] == [0] * WRITERS
            pool.clear()
            if not pool.process:
                pool.spawn(prepare=prepare).await_answer()
            assert {leg['state'] for leg in volume.settled()['legs']} == {'in_sync'}
            pool.stop()
            data = volume.assert_legs_equal()
            assert pool.durable_twin(volume).assert_legs_equal() == data
            tags = tags_of(data)
            assert askew or -1 not in tags, 'writes are mixed within a sector'
            seen |= {int(tag) >> 32 for tag in tags}
            pool.spawn(prepare=prepare).await_answer()
        assert len(seen) > WRITERS // 2


def keep_no_order() -> None:
    ChunkLocks.is_exclusive = lambda *_: False  # type: ignore[method-assign]
    Hold.conflicts = lambda *_: False  # type: ignore[method-assign]


def resync_nothing() -> None:
    async def equalise(volume: mirror.Volume, first: int, last: int) -> None:
        volume.log.update(first, last, clear=NEEDS_RESYNC)

    mirror.Volume._equalise = equalise  # type: ignore[method-assign]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(('plant', 'trouble'), [(keep_no_order, stall), (resync_nothing, cut)])
def test_legs_that_differ_are_noticed(
    plant: Callable[[], None], trouble: Callable[[Volume, FaultPool, float], None]
) -> None:
    """With the rule broken that keeps them equal the same test fails."""
    with pytest.raises(AssertionError, match=r'differ at byte|mixed within'):
        overlap(trouble, prepare=plant)
