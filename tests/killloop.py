"""Kills a daemon that is being written to, again and again, and checks what is left every time.

    python tests/killloop.py [--power-cut] [--rounds N] [--minutes M] [--seed S] [--first ROUND] [--legs N]
        [--mount OPTIONS]

The legs are on fault filesystems (`faultfs`).  A round: some processes write; a leg may fail or hang, be
failed, come back; the daemon is killed at a random moment or leg call; with --power-cut each leg then loses
what it likes of what it had not synced; some daemons are killed again while they recover.  After the next
start every sector must hold what was promised, two reads must agree, and once all is settled the legs must
be equal, and durable, byte for byte.  Every few rounds fio writes, and verifies what it had acknowledged.

All choices come from the seed and the number of the round.  Processes and clocks add their own, so the same
seed leads to similar rounds, not the same; `--first N` begins at a round that failed.  Ends after --rounds or
--minutes, whichever is first; exit code 1 if anything broke a promise.  The folder of a failure is kept with
--keep.  --sabotage breaks something on purpose: the exit code must then be 1.
"""

import argparse
import contextlib
import errno
import json
import math
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from faulttools import MIB, FaultPool, Watchdog, have_fio
from mounts import Volume, fallocate, run, wait_for

from mirrorfs.leg.opening import read_super

SECTOR = 512
SIZE = 2 * MIB
"""What our own writers write to; fio has as much behind it."""
SECTORS = SIZE // SECTOR
CHUNK = 64 << 10
PATIENCE = 60.0
"""Seconds after which a daemon that does not answer is a violation: far more than anything here needs."""
LEG_TIMEOUT = 1.0
WRITERS_MAX = 4
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a caller is told when the daemon dies."""
PUNCH = 0x01 | 0x02
LOSSES = ('fail', 'fail', 'write EIO', 'plain ENOSPC', 'fsync EIO', 'dsync EIO', 'plain hang')
REFUSALS = (errno.EBUSY, errno.ENOENT, errno.EIO, errno.ENOSPC, errno.ETIMEDOUT)
"""What a verb for legs may say: the last leg in sync, calls still under way, a leg that fails again."""
SABOTAGES = ('lying-fsync', 'forget', 'differ', 'garbage')
Tags = npt.NDArray[np.int64]


class Violation(AssertionError):
    """A promise was broken."""


# What was promised


class Ledger:
    """For every sector: which tags may be seen.  In memory shared with the writers.

    A tag is the number of a write to a sector, counted by the one writer that the sector has.  Tag 0 is
    zeros; a discard has a tag of its own, and is seen as zeros.  All arrays are int64 [sectors].

    begun, acked: the last write that began, that was acknowledged.  synced: the last write known to be
    durable, one row for each writer.  zeroed: the last discard that began.  floor, start: what was seen,
    durably, when all was last at rest, and `begun` at that time.
    """

    def __init__(self, sectors: int, writers: int) -> None:
        rows = 5 + writers
        self._memory = mmap.mmap(-1, rows * sectors * 8)
        table = np.frombuffer(self._memory, np.int64).reshape(rows, sectors)
        self.begun, self.acked, self.zeroed, self.floor, self.start = table[:5]
        self.synced = table[5:]

    def check(self, seen: Tags, power: bool) -> None:
        """Raise Violation unless every sector holds a tag that it may hold (-1 means garbage)."""
        needed = self.synced.max(axis=0) if power else np.maximum(self.acked, self.synced.max(axis=0))
        old = (seen == self.floor) & (needed <= self.start)
        new = (seen > self.start) & (seen >= needed) & (seen <= self.begun)
        zeros = (seen == 0) & (self.zeroed > self.start) & (self.zeroed >= needed)
        wrong = np.flatnonzero(~(old | new | zeros))
        if len(wrong):
            at = int(wrong[0])
            promise = 'durable' if power else 'acknowledged'
            raise Violation(
                f'{len(wrong)} sectors are wrong. Sector {at} (byte {at * SECTOR}) has write {seen[at]}; '
                f'{promise} is {needed[at]}, begun {self.begun[at]}, discarded {self.zeroed[at]}, '
                f'at rest it was {self.floor[at]} (begun {self.start[at]})'
            )

    def settle(self, seen: Tags) -> None:
        """What was seen has been synced: nothing older may be seen again."""
        self.floor[:] = seen
        self.start[:] = self.begun
        self.acked[:] = self.zeroed[:] = 0
        self.synced[:] = 0


def sectors_of(first: int, count: int, tag: int) -> bytes:
    """Return the bytes of sectors first…: each says which it is and which write, all through."""
    words = np.empty((count, SECTOR // 16, 2), np.int64)
    words[:, :, 0] = np.arange(first + 1, first + count + 1).reshape(count, 1)
    words[:, :, 1] = tag
    return words.tobytes()


def tags_of(data: bytes | bytearray) -> Tags:
    """Return the tag of each sector; -1 where it holds what no write wrote there, or a part of it."""
    words = np.frombuffer(data, np.int64).reshape(-1, SECTOR // 16, 2)
    numbers = np.arange(1, len(words) + 1).reshape(-1, 1)
    tags = words[:, 0, 1].copy()
    whole = (words[:, :, 0] == numbers).all(axis=1) & (words[:, :, 1] == tags.reshape(-1, 1)).all(axis=1)
    whole &= tags > 0
    zeros = ~words.any(axis=(1, 2))
    tags[~whole] = -1
    tags[zeros] = 0
    return tags


# Writers


@dataclass
class Writer:
    """One writing process: it owns some ranges of sectors, and writes there until the mount is gone."""

    number: int
    image: Path
    ledger: Ledger
    ranges: list[tuple[int, int]]
    seed: str
    stop: npt.NDArray[np.int64]
    """int64 [1]: not 0 when writers are to end."""

    def run(self) -> int:
        """Return 0 when stopped, else the errno that ended it."""
        self.chance = random.Random(self.seed)
        self.buffer = mmap.mmap(-1, MIB)
        self.tag = int(self.ledger.begun.max())
        try:
            self.fd = os.open(self.image, os.O_RDWR | os.O_DIRECT)
            while not self.stop[0]:
                low, high = self.chance.choice(self.ranges)
                first = self.chance.randrange(low, high)
                self._operate(first, min(high, first + self.chance.choice([1, 2, 8, 8, 8, 16, 64, 256])))
        except OSError as error:
            return error.errno or 255
        return 0

    def _operate(self, first: int, last: int) -> None:
        what = self.chance.random()
        if what < 0.08:
            snapshot = self.ledger.acked.copy()
            os.fsync(self.fd) if what < 0.04 else os.fdatasync(self.fd)
            mine = self.ledger.synced[self.number]
            np.maximum(mine, snapshot, out=mine)
            return
        self.tag += 1
        if what < 0.12:
            self.ledger.zeroed[first:last] = self.tag
            self.ledger.begun[first:last] = self.tag
            fallocate(self.fd, PUNCH, first * SECTOR, (last - first) * SECTOR)
        else:
            self.ledger.begun[first:last] = self.tag
            self._write(first, last, os.RWF_DSYNC if what < 0.17 else 0)
            if what < 0.17:
                self.ledger.synced[self.number, first:last] = self.tag
        self.ledger.acked[first:last] = self.tag

    def _write(self, first: int, last: int, flags: int) -> None:
        data = sectors_of(first, last - first, self.tag)
        self.buffer[: len(data)] = data
        with memoryview(self.buffer) as view, view[: len(data)] as part:
            done = os.pwritev(self.fd, [part], first * SECTOR, flags)
        if done != len(data):
            raise OSError(errno.EMSGSIZE, f'{done} of {len(data)} bytes')


def shares(chance: random.Random, writers: int) -> list[list[tuple[int, int]]]:
    """Deal the sectors out, in ranges, to so many writers, so that most chunks have several."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(writers)]
    at = 0
    while at < SECTORS:
        end = min(SECTORS, at + chance.choice([8, 16, 64, 256]))
        found[chance.randrange(writers)].append((at, end))
        at = end
    if chance.random() < 0.5:  # a small working set: the same chunks are written, cleaned, written again
        found = [chance.sample(ranges, min(len(ranges), 3)) for ranges in found]
    return [ranges for ranges in found if ranges]


def fork(body: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = body()
        finally:
            os._exit(code)
    return pid


# Rounds


@dataclass
class Options:
    seed: int = 0
    power: bool = False
    legs: int = 2
    sabotage: str = ''
    fio_every: int = 6
    verbose: bool = False
    mount: str = ''
    """More mount options."""


@dataclass
class Round:
    """One round: what is to happen, decided beforehand."""

    number: int
    chance: random.Random
    fio: bool
    log: list[str] = field(default_factory=list)
    """What happened, for a failure."""
    lost: bool = False
    """Whether a leg was to be lost: then another one must not be taken away at the next start."""

    def say(self, text: str) -> None:
        self.log.append(text)


class Loop:
    """The pool, the ledger, and the rounds on them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.counts: Counter[str] = Counter()
        self.ledger = Ledger(SECTORS, WRITERS_MAX)
        self._memory = mmap.mmap(-1, 4096)
        self.stop = np.frombuffer(self._memory, np.int64)[:1]
        self.dog = Watchdog()
        self.power_since_rest = False
        mount = filter(None, (f'leg_timeout={LEG_TIMEOUT}', options.mount))
        self.pool = FaultPool(options.legs, ','.join(mount))
        self.volume: Volume

    def close(self, keep: bool) -> None:
        self.dog.end()
        if keep:
            kept = Path('/var/tmp') / f'killloop-failed-{os.getpid()}'
            shutil.copytree(self.pool.base, kept, ignore=shutil.ignore_patterns('mnt', 'fault.?'))
            print(f'kept in {kept}')
        self.pool.clean()

    def begin(self) -> None:
        with self.watched():
            self.pool.start()
            self.volume = self.pool.volume('x', 2 * SIZE, self.options.legs, f'chunk={CHUNK >> 10}K')
            self.dog.guard(self.pool.pid, PATIENCE)
        if self.options.sabotage == 'lying-fsync':
            self._lie()

    def _lie(self) -> None:
        for leg in self.pool.faults:
            leg.rule('fsync', 'lie', every=True)

    @contextlib.contextmanager
    def watched(self, seconds: float = PATIENCE) -> Iterator[None]:
        """What is done within must be answered in time, else it is a violation."""
        if self.pool.process:
            self.dog.guard(self.pool.pid, seconds)
        try:
            yield
        except OSError as error:
            if self.dog.barked:
                raise Violation(f'the daemon did not answer within {seconds:g} s') from error
            raise Violation(f'unexpected: {error!r}') from error
        finally:
            self.dog.rest()
        if self.dog.barked:
            raise Violation(f'the daemon did not answer within {seconds:g} s')

    # A round

    def play(self, number: int) -> None:
        """Raises Violation, with what happened in the round."""
        chance = random.Random(f'{self.options.seed}/{number}')
        every = self.options.fio_every
        turn = Round(number, chance, fio=bool(every) and number % every == every - 1 and have_fio())
        try:
            self._play(turn)
        except AssertionError as error:
            raise Violation(f'{error}\nround {number}: ' + '; '.join(turn.log)) from error
        if self.options.verbose:
            print(f'round {number}: ' + '; '.join(turn.log), flush=True)

    def _play(self, turn: Round) -> None:
        chance = turn.chance
        with self.watched():
            self.volume.write('bitmap/time_base', chance.choice(['0.01', '0.05', '0.3', '5']))
        if turn.fio:
            self._with_fio(turn)
        else:
            self._with_writers(turn)
        self._cut(turn)
        for _ in range(2):
            if chance.random() < 0.2:
                self._kill_in_recovery(turn)
                self._cut(turn)
        self._sabotage(turn)
        self._start(turn, hide=chance.random() < 0.15 and not turn.lost)
        self._examine(turn)
        if chance.random() < 0.1:
            self._stop_cleanly(turn)

    def _with_writers(self, turn: Round) -> None:
        chance = turn.chance
        writers = chance.randint(1, WRITERS_MAX)
        self.stop[:] = 0
        pids = []
        for number, ranges in enumerate(shares(chance, writers)):
            seed = f'{self.options.seed}/{turn.number}/{number}'
            pids.append(fork(Writer(number, self.volume.image, self.ledger, ranges, seed, self.stop).run))
        turn.say(f'{len(pids)} writers')
        try:
            self._let_live(turn)
        finally:
            self._kill()
            self.stop[0] = 1
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        strange = [code for code in codes if code not in (0, *DEAD)]
        if strange:  # all end since the daemon is dead, and for no other reason
            raise Violation(f'a writer ended with {errno.errorcode.get(strange[0], strange[0])}')

    def _kill(self) -> None:
        if self.pool.process:
            self.pool.process.kill()

    def _with_fio(self, turn: Round) -> None:
        """fio writes; what it says was acknowledged (with power cuts: durable) must verify afterwards."""
        self._fio = Fio(self.volume.image, self.pool.base, turn.chance.randrange(1 << 30), self.options.power)
        turn.say('fio')
        process = self._fio.begin()
        try:
            with self.watched():
                before = self.volume.status()['io']['writes']
                wait_for(lambda: self.volume.status()['io']['writes'] > before, 'fio writes')
            self._let_live(turn)
        finally:
            self._kill()
            process.wait(PATIENCE)

    def _let_live(self, turn: Round) -> None:
        """Let the daemon live for a while, and things go wrong meanwhile; it is dead afterwards."""
        chance, daemon = turn.chance, self.pool.process
        assert daemon
        whole = chance.choice([0.02, 0.05, 0.1, 0.2, 0.4]) * (0.5 + chance.random())
        self.dog.guard(daemon.pid, PATIENCE)
        doomed = chance.random() < 0.3
        if doomed:
            leg, nth = chance.randrange(len(self.pool.faults)), chance.choice([1, 3, 10, 50, 200])
            kind = chance.choice(['any', 'dsync', 'plain', 'fsync'])
            self.pool.faults[leg].rule(kind, 'kill', nth=nth, pid=daemon.pid)
            turn.say(f'killed at {kind} {nth} of leg {leg} if that is before {whole:.3f} s')
        begun = time.monotonic()
        if chance.random() < 0.35:
            _sleep(whole * chance.random(), daemon)
            self._lose_a_leg(turn)
        _sleep(begun + whole - time.monotonic(), daemon)
        self.pool.kill()
        self.dog.rest()
        turn.say(f'killed after {time.monotonic() - begun:.3f} s')
        self.counts['kills'] += 1
        for fault in self.pool.faults:
            fault.clear()
        if self.options.sabotage == 'lying-fsync':
            self._lie()

    def _lose_a_leg(self, turn: Round) -> None:
        """Fail a leg, or let it fail; perhaps take it back.  The daemon may die meanwhile."""
        chance = turn.chance
        leg = chance.randrange(len(self.pool.faults))
        turn.lost = True
        how = chance.choice(LOSSES)
        turn.say(f'leg {leg}: {how}')
        self.counts['legs lost'] += 1
        daemon = self.pool.process
        assert daemon
        try:
            if how == 'fail':
                self.volume.write('fail', str(leg))
            else:
                kind, do = how.split()
                if self._others_well(leg):
                    self.pool.faults[leg].rule(
                        kind, do, nth=chance.randint(1, 5), every=do != 'hang', seconds=1.5
                    )
                _sleep(1.2 if do == 'hang' else 0.05 * chance.random(), daemon)
            if chance.random() < 0.6:
                _sleep(0.05 * chance.random(), daemon)
                self.pool.faults[leg].clear()
                self.volume.write('re-add', 'missing')
                turn.say('re-added')
        except OSError as error:  # refused (the last leg, still busy), or dead
            turn.say(errno.errorcode.get(error.errno or 0, '?'))
            if error.errno not in (*DEAD, *REFUSALS):
                raise

    def _others_well(self, leg: int) -> bool:
        """Whether another leg is in sync: one good copy of everything is left, so no caller may fail."""
        states = [slot['state'] for slot in self.volume.status()['legs']]
        return any(state == 'in_sync' for number, state in enumerate(states) if number != leg)

    def _cut(self, turn: Round) -> None:
        """With --power-cut, mostly, lose what was not synced; a leg by leg decision."""
        if self.options.power and turn.chance.random() < 0.85:
            turn.say('power cut')
            self.pool.power_cut(f'{self.options.seed}/{turn.number}/{len(turn.log)}')
            self.power_since_rest = True
            self.counts['power cuts'] += 1

    def _kill_in_recovery(self, turn: Round) -> None:
        chance = turn.chance
        self.pool.spawn()
        daemon = self.pool.process
        assert daemon
        turn.say('killed again')
        if chance.random() < 0.5:
            self.pool.faults[chance.randrange(len(self.pool.faults))].rule(
                'any', 'kill', nth=chance.randint(1, 60), pid=daemon.pid
            )
        _sleep(0.15 * chance.random(), daemon)
        self.pool.kill()
        for leg in self.pool.faults:
            leg.clear()
        if self.options.sabotage == 'lying-fsync':
            self._lie()
        self.counts['kills'] += 1

    def _start(self, turn: Round, hide: bool) -> None:
        """Start; with `hide`, one leg that is not needed cannot be read at first, and is lost."""
        hidden = self._dispensable(turn.chance) if hide else None
        if hidden is not None:
            turn.say(f'leg {hidden} away at the start')
            self.counts['legs lost'] += 1
            self.pool.faults[hidden].rule('read', 'EIO', every=True)
        self.pool.spawn()
        with self.watched():
            self.pool.await_answer()
        if hidden is not None:
            self.pool.faults[hidden].clear()

    def _dispensable(self, chance: random.Random) -> int | None:
        """Return a leg that the volume can start without: the pool says that another one is in sync, too."""
        definition = json.loads((self.pool.directory / 'volumes' / 'x.json').read_text())
        good = [int(slot) for slot, facts in definition['slots'].items() if facts['state'] == 'in_sync']
        return chance.choice(good) if len(good) == self.options.legs else None

    def _examine(self, turn: Round) -> None:
        """All that was promised is there; twice the same; and in the end the same on all legs."""
        with self.watched():
            state = self.volume.status()
            if state['state'] == 'inactive':
                raise Violation(f'the volume did not start: {state}')
            first = self._read()
            tags = tags_of(first[:SIZE])
            self.ledger.check(tags, self.power_since_rest)
            if turn.fio:
                self._fio.verify(self.counts)
            if self._read() != first:
                raise Violation('two reads disagree while it resyncs')
            states = [leg['state'] for leg in self.volume.status()['legs']]
            if any(word not in ('in_sync', 'spare') for word in states) and turn.chance.random() < 0.7:
                self._re_add(turn)
            self.volume.settled(PATIENCE)
            if self._read() != first:
                raise Violation('what was read has changed when all was settled')
            with self.volume.open() as fd:
                os.fsync(fd)
            self._compare(first)
        self.ledger.settle(tags)
        self.power_since_rest = False

    def _re_add(self, turn: Round) -> None:
        try:
            self.volume.write('re-add', 'missing')
            turn.say('legs taken back')
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise

    def _read(self) -> bytes:
        with self.volume.open(os.O_RDONLY | os.O_DIRECT) as fd:
            parts = [os.pread(fd, MIB, at) for at in range(0, self.volume.size, MIB)]
        data = b''.join(parts)
        if len(data) != self.volume.size:
            raise Violation(f'a read of {self.volume.size} bytes gave {len(data)}')
        return data

    def _compare(self, wanted: bytes) -> None:
        """Every leg in sync has the volume's bytes, and has them durably."""
        good = [leg['slot'] for leg in self.volume.status()['legs'] if leg['state'] == 'in_sync']
        self.counts['legs compared'] += len(good)
        twin = self.pool.durable_twin(self.volume)
        for slot in good:
            for what, volume in (('holds', self.volume), ('durably holds', twin)):
                data = volume.leg_data(slot)
                if data != wanted:
                    at = next(
                        i
                        for i in range(0, len(data), SECTOR)
                        if data[i : i + SECTOR] != wanted[i : i + SECTOR]
                    )
                    raise Violation(f'leg {slot} {what} something else at byte {at} than the volume shows')

    def _stop_cleanly(self, turn: Round) -> None:
        """Unmount and start anew: nothing is left to copy, nor volatile on legs that took part."""
        with self.watched():
            good = [leg['slot'] for leg in self.volume.status()['legs'] if leg['state'] == 'in_sync']
            self.pool.stop(PATIENCE)
        for slot in good:
            if left := self.pool.faults[slot].facts()['volatile']:
                raise Violation(f'{left} writes are volatile on leg {slot} after a clean stop')
        turn.say('stopped cleanly')
        self.counts['clean stops'] += 1
        with self.watched():
            self.pool.start()
            if copied := self.volume.status()['resynced_bytes']:
                raise Violation(f'{copied} bytes were resynced after a clean stop')

    def _sabotage(self, turn: Round) -> None:
        """Break something on purpose, behind the mirror's back, while nothing runs."""
        if self.options.sabotage == 'forget':  # an acknowledged write is gone, on all legs alike
            lost = np.flatnonzero(self.ledger.acked > self.ledger.start)
            self._damage(lost[:1], range(len(self.pool.faults)), bytes(SECTOR))
        elif self.options.sabotage == 'garbage':
            some = np.flatnonzero(self.ledger.begun)
            self._damage(some[:1], range(len(self.pool.faults)), b'\xde\xad' * (SECTOR // 2))
        elif self.options.sabotage == 'differ':  # where nothing is dirty, so that no resync mends it
            clean = np.flatnonzero((self.ledger.floor > 0) & (self.ledger.begun == self.ledger.start))
            self._damage(clean, [1], b'\xde\xad' * (SECTOR // 2))

    def _damage(self, sectors: Tags, slots: Any, data: bytes) -> None:
        for slot in slots:
            with open(self.pool.faults[slot].path, 'r+b', buffering=0) as file:
                base = read_super(file.fileno())[0].layout.data_offset
                for sector in sectors.tolist():
                    os.pwrite(file.fileno(), data, base + sector * SECTOR)
                os.fsync(file.fileno())


def _sleep(seconds: float, daemon: Any) -> None:
    """Sleep, but not beyond the end of the daemon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and daemon.poll() is None:
        time.sleep(min(0.005, max(0.0, until - time.monotonic())))


class Fio:
    """fio jobs that write with checksums to the second half of the image until the daemon is gone.

    Each job has one write under way at a time: of several that fail at once fio's state does not tell
    which were acknowledged.  With `durable` each write is synced before it is acknowledged.
    """

    JOBS = 4

    def __init__(self, image: Path, folder: Path, seed: int, durable: bool) -> None:
        self._folder = folder / 'fio'
        self._folder.mkdir(exist_ok=True)
        share = SIZE // self.JOBS
        self._words = [
            *f'fio --name=v --filename={image} --numjobs={self.JOBS} --randseed={seed} --direct=1'.split(),
            *f'--offset={SIZE} --offset_increment={share} --size={share} --bs=4k --rw=randwrite'.split(),
            *'--ioengine=psync --verify=crc32c --verify_fatal=1'.split(),
            *(['--sync=dsync'] if durable else []),
        ]

    def _states(self) -> list[Path]:
        return list(self._folder.glob('*-verify.state'))

    def begin(self) -> 'subprocess.Popen[bytes]':
        for state in self._states():
            state.unlink()
        with open(self._folder / 'log', 'wb') as log:
            return subprocess.Popen(
                [*self._words, '--do_verify=0', '--verify_state_save=1', '--rate_iops=400'],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def verify(self, counts: Counter[str]) -> None:
        """Have fio read what it was told was written.  Raises Violation."""
        if len(self._states()) < self.JOBS:
            return  # some had not begun
        done = run(*self._words, '--verify_only', '--verify_state_load=1', cwd=self._folder, timeout=PATIENCE)
        said = done.stdout + done.stderr
        if done.returncode or 'verify:' in said or 'err= 0' not in said:
            raise Violation(f'fio: {said[-3000:]}')
        read = re.search(r'READ: .*io=(\d+)KiB', said)
        counts['fio verifies'] += 1
        counts['KiB verified by fio'] += int(read.group(1)) if read else 0


# The command


def parse(arguments: list[str]) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=0, help='end after so many rounds')
    parser.add_argument('--minutes', type=float, default=0, help='begin no round after so many minutes')
    parser.add_argument('--seed', type=int, default=None, help='where all choices come from')
    parser.add_argument('--first', type=int, default=0, help='number of the first round')
    parser.add_argument('--power-cut', action='store_true', help='cut the power of the legs, too')
    parser.add_argument('--legs', type=int, default=2)
    parser.add_argument('--fio-every', type=int, default=6, help='fio writes in every Nth round; 0: never')
    parser.add_argument('--keep', action='store_true', help='keep the legs and logs of a failure')
    parser.add_argument('--mount', default='', metavar='OPTIONS', help='more mount options, as direct_legs')
    parser.add_argument('--verbose', action='store_true', help='say what happens in each round')
    parser.add_argument('--sabotage', choices=SABOTAGES, default='', help='break something on purpose')
    return parser.parse_args(arguments)


def play(
    options: Options, *, rounds: int = 1 << 60, seconds: float = math.inf, first: int = 0, keep: bool = False
) -> tuple[int, Counter[str]]:
    """Play so many rounds, or so long; return how many it were, and what happened in them.

    Raises Violation, which says how to have it again.  `keep`: keep the folder of a failure.
    """
    loop = Loop(options)
    began = said = time.monotonic()
    number, failed = first, True
    try:
        loop.begin()
        while number - first < rounds and (now := time.monotonic()) - began < seconds:
            if now - said >= 10:
                said = now
                print(f'killloop: {number - first} rounds in {now - began:.0f} s', flush=True)
            loop.play(number)
            number += 1
        failed = False
    except AssertionError as error:
        again = f'--seed {options.seed} --first {number}'
        log = loop.pool.log()[-3000:]
        raise Violation(f'VIOLATION in round {number} (again: {again})\n{error}\n{log}') from error
    finally:
        loop.close(keep and failed)
    return number - first, loop.counts


def told(rounds: int, counts: Counter[str]) -> str:
    """Return what happened in one line."""
    return f'{rounds} rounds: ' + ', '.join(f'{count} {what}' for what, count in sorted(counts.items()))


def main(arguments: list[str]) -> int:
    asked = parse(arguments)
    seed = int.from_bytes(os.urandom(4), 'little') if asked.seed is None else asked.seed
    rounds = asked.rounds or (1 << 60 if asked.minutes else 20)
    print(f'killloop: seed {seed}', flush=True)
    options = Options(
        seed, asked.power_cut, asked.legs, asked.sabotage, asked.fio_every, asked.verbose, asked.mount
    )
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: sys.exit(2))  # cleaning up
    seconds = asked.minutes * 60 or math.inf
    try:
        done = play(options, rounds=rounds, seconds=seconds, first=asked.first, keep=asked.keep)
    except Violation as violation:
        print(f'killloop: {violation}', flush=True)
        return 1
    print(f'killloop: seed {seed}: no violation in {told(*done)}', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
