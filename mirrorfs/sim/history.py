"""Histories: what is done to a volume, session by session, written so that it can be stored and shortened.

A *session* is the time from a start of the pool to its end: a clean stop or a crash.  A *run* is a world and
the sessions that it goes through.  Both are plain values: `Run.text` is a Python literal that `Run.parse`
reads, which is how a failing case is kept.
"""

import ast
import random
from dataclasses import dataclass, field, replace

from mirrorfs.limits import SPARE_DELAY
from mirrorfs.metadata.wibm import PAGE_HEADER
from mirrorfs.model import DetectZeroes
from mirrorfs.sim.faults import Fault, Key
from mirrorfs.sim.resting import Operation
from mirrorfs.sim.simlane import LaneWorld
from mirrorfs.sim.world import CHUNK_BLOCKS, LOGS, PAUSES, World
from mirrorfs.volume.admin import FLAGS

STOP = 'stop'


@dataclass(frozen=True)
class Session:
    """One life of the daemon.

    `before` is done to the disks at rest (`resting.RESTING`), `operations` while it runs (`verbs.RUNNING`).
    `end` is ``stop`` or the fate of what is volatile in a crash (`mirrorfs.sim.crash`), which comes at step
    `crash_at`, or after all operations for 0.
    """

    operations: tuple[Operation, ...] = ()
    before: tuple[Operation, ...] = ()
    end: str = STOP
    crash_at: int = 0
    faults: tuple[tuple[Key, Fault], ...] = ()


@dataclass(frozen=True)
class Run:
    """A world's parameters (see `World`) and its sessions."""

    seed: int = 0
    sessions: tuple[Session, ...] = ()
    chunks: int = 2
    legs: int = 2
    logged: bool = True
    sharing: bool = False
    lane: bool = False
    pauses: tuple[int, ...] = PAUSES
    used: bool = False
    mark_interval: float = 0.0
    outside: bool = False
    zeroes: int = 0

    def world(self) -> World:
        kind = LaneWorld if self.lane else World
        return kind(
            self.chunks,
            self.legs,
            self.seed,
            self.logged,
            sharing=7 if self.sharing else None,
            lane=self.lane,
            pauses=self.pauses,
            used=self.used,
            mark_interval=self.mark_interval,
            outside=self.outside,
            zeroes=DetectZeroes(self.zeroes),
        )

    def but(self, **changes: object) -> 'Run':
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """The run as one line of Python literals."""
        sessions = [
            (
                s.before,
                s.operations,
                s.end,
                s.crash_at,
                [(key, (f.what, f.code, f.seconds)) for key, f in s.faults],
            )
            for s in self.sessions
        ]
        options = (self.chunks, self.legs, self.logged, self.sharing, self.lane, self.pauses)
        options += (self.used, self.mark_interval, self.outside, self.zeroes)  # type: ignore[assignment]
        return repr((self.seed, options, sessions))

    @classmethod
    def parse(cls, text: str) -> 'Run':
        """Return the run of a `text`.  Raises ValueError."""
        try:
            seed, (chunks, legs, logged, sharing, lane, pauses, *more), raw = ast.literal_eval(text.strip())
            sessions = tuple(
                Session(
                    operations, before, end, crash_at, tuple((key, Fault(*fault)) for key, fault in faults)
                )
                for before, operations, end, crash_at, faults in raw
            )
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f'this is no run: {error}') from None
        return cls(seed, sessions, chunks, legs, logged, sharing, lane, pauses, *more)


# Random runs


@dataclass
class Composer:
    """Makes a run up, from one seed."""

    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f'run {self.seed}')

    def run(self) -> Run:
        rng = self.rng
        self.legs = rng.choice((2, 2, 2, 2, 3, 3, 1))
        self.chunks = rng.choice((2, 2, 3, 4))
        self.disks = self.legs
        self.outside = rng.random() < OUTSIDE_SHARE
        self.zeroes = rng.choice((0, 0, 1, 2, 2))
        sessions = [self._session() for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
        rotten = any(word[0] == 'corrupt' for session in sessions for word in session.before)
        moved = self.outside or 'log' in repr(sessions)  # a log outside has one host
        if rng.random() < 0.1 and self.legs == self.disks == 2 and not rotten and not moved:
            sessions += self._apart()
        return Run(
            self.seed,
            tuple(sessions),
            self.chunks,
            self.legs,
            logged=self.outside or rng.random() < 0.85,
            sharing=rng.random() < 0.1,
            lane=rng.random() < LANE_SHARE,
            pauses=rng.choice(((0,), PAUSES, PAUSES, (1, 1, 2, 5), (0, 0, 0, 15))),
            used=rng.random() < USED_SHARE,
            mark_interval=rng.choice((0.0, 0.0, 0.0, 5.0)),
            outside=self.outside,
            zeroes=self.zeroes,
        )

    def _session(self) -> Session:
        rng = self.rng
        before = tuple(self._rest() for _ in range(rng.choice((0, 0, 0, 1, 1, 2))))
        operations = tuple(self._operation() for _ in range(rng.randrange(2, 9)))
        end = rng.choice((STOP, STOP, 'kill', 'kill', 'none', 'all', 'd0', 'd1', 'tear', 'tear', 'tear'))
        if end == 'tear':
            end = f'tear:{rng.randrange(1000)}'
        crash_at = 0 if end == STOP else rng.choice((0, rng.randrange(5, 60), rng.randrange(5, 200)))
        return Session(operations, before, end, crash_at, self._faults())

    def _apart(self) -> list[Session]:
        """Two hosts go on with one leg each, and meet again."""
        writes = tuple(self._writing() for _ in range(2))
        back = self.rng.choice(((), (('away', 0),)))
        resolved = self.rng.choice(((), (('resolve', 0),), (('resolve', 1),)))
        return [
            Session(writes, (('save-pool',), ('away', 1))),
            Session((self._writing(), ('flush',)), (('old-pool',), ('away', 0))),
            Session((self._writing(), ('flush',)), (('meet', 0), *back, *resolved)),
            *(Session((self._writing(),)) for _ in resolved),
        ]

    # Between runs

    def _rest(self) -> Operation:
        rng, disk = self.rng, self._disk()
        name = rng.choices(*zip(*_RESTING.items(), strict=True))[0]
        if name == 'swap':
            return ('swap', 0, 1) if self.legs > 1 else ('save', 0)
        if name == 'corrupt':
            page = rng.randrange(6)
            if page in (2, 3) and rng.random() < 0.5:  # the states of all chunks, all in the same way
                return (name, disk, page, PAGE_HEADER, 1 << rng.randrange(5), self.chunks)
            return (name, disk, page)
        if name == 'litter':
            return (name, self.disks)
        if name == 'assemble':
            return (name, 'force') if rng.random() < 0.4 else (name,)
        if name in ('away', 'save', 'old') and self.outside and rng.random() < 0.3:
            disk = LOGS[0]
        return (name,) if name == 'force' else (name, disk)

    # While it runs

    def _operation(self) -> Operation:
        rng = self.rng
        name = rng.choices(*zip(*_RUNNING.items(), strict=True))[0]
        if name == 'both':
            return ('both', *(self._line() for _ in range(rng.choice((2, 2, 2, 3, 5)))))
        return self._named(name)

    def _line(self) -> Operation:
        """What is done beside something else."""
        if self.rng.random() < 0.7:
            return self._simple()
        return ('then', *(self._simple() for _ in range(self.rng.choice((2, 3, 4)))))

    def _simple(self) -> Operation:
        while True:
            operation = self._operation()
            if operation[0] not in ('both', 'hang', 'quiet'):
                return operation

    def _named(self, name: str) -> Operation:
        rng = self.rng
        match name:
            case 'write' | 'write-sync':
                return (name, *self._range())
            case 'burst':
                return (name, *self._range(), rng.choice((2, 3, 5, 9)))
            case 'read' | 'discard' | 'zeroes' | 'zeroes-sync':
                return (name, *self._range())
            case 'bad':
                start, count = self._range()
                return (name, self._disk(), rng.choice(('read', 'read', 'write')), start, min(count, 3))
            case 'list':
                start, count = self._range()
                return (name, rng.randrange(self.legs), start, min(count, 3))
            case 'repair':
                return (name, rng.choice((-1, self._disk())))
            case 'fail' | 'remove' | 'split' | 'unshared':
                return (name, self._disk())
            case 'readd':
                return (name, rng.choice(('missing', self._disk())))
            case 'add' | 'spare' | 'shared':
                return (name, self._new_disk())
            case 'replace':
                return (name, self._disk(), rng.choice((self._new_disk(), -1)))
            case 'flag':
                return (name, self._disk(), rng.choice(FLAGS), rng.random() < 0.7)
            case 'block':
                return (name, self._disk(), rng.choice((0.5, 5.0)))
            case 'backlog':
                return (name, self._disk(), rng.choice((0, 1, 3, 100, 100)))
            case 'raid-disks':
                return (name, rng.randrange(1, 4))
            case 'grow':
                self.chunks = min(self.chunks + rng.randrange(1, 3), 6)
                return (name, self.chunks)
            case 'quorum':
                return (name, rng.choice((1, 2, 2, 3)), rng.choice(('error', 'readonly', 'wait')))
            case 'log':
                return (name, rng.choice(('none', 'internal', *LOGS, *LOGS)), rng.random() < 0.5)
            case 'detect-zeroes':
                return (name, rng.choice(('off', 'on', 'unmap', 'unmap')))
            case 'sleep':
                return (name, rng.choice((0.1, 1.0, 6.0, 12.0, SPARE_DELAY + 5)))
            case 'hang' | 'release' | 'vanish' | 'appear':
                if self.outside and rng.random() < 0.3:
                    return (name, LOGS[0])
                return (name, rng.randrange(self.legs))
        return (name,)

    def _writing(self) -> Operation:
        return ('write', *self._range())

    def _range(self) -> tuple[int, int]:
        """A few blocks, mostly the same ones, sometimes across chunks or a whole chunk."""
        rng, blocks = self.rng, self.chunks * CHUNK_BLOCKS
        chunk = rng.randrange(self.chunks)
        start = chunk * CHUNK_BLOCKS + rng.choice((0, 0, 0, 1, 2, CHUNK_BLOCKS - 1))
        count = rng.choice((1, 1, 1, 2, 3, CHUNK_BLOCKS, 2 * CHUNK_BLOCKS))
        if rng.random() < 0.15:
            start, count = chunk * CHUNK_BLOCKS, CHUNK_BLOCKS
        return start, min(count, blocks - start)

    def _new_disk(self) -> int:
        self.disks = min(self.disks + 1, 5)
        return self.disks - 1

    def _disk(self) -> int:
        return self.rng.randrange(self.disks)

    # What goes wrong

    def _faults(self) -> tuple[tuple[Key, Fault], ...]:
        """Faults on one disk, its victim, or no space on all, or an error of the pool."""
        rng = self.rng
        kind = rng.choices(('none', 'victim', 'full', 'pool'), (60, 30, 5, 5))[0]
        if kind == 'none':
            return ()
        nth = rng.choice((rng.randrange(1, 12), rng.randrange(1, 60)))
        if kind == 'pool':
            return ((('pool', 'any', nth), Fault(code=rng.choice(_CODES))),)
        if kind == 'full':
            span = rng.choice((1, 2, 10))
            disks = [f'd{n}' for n in range(self.legs)]
            return tuple(((d, 'write', nth + n), Fault(code=ENOSPC)) for d in disks for n in range(span))
        victim = f'd{rng.randrange(rng.choice((self.legs, self.disks)))}'
        if self.outside and rng.random() < 0.4:
            victim = f'd{LOGS[0]}'
        return tuple(self._fault(victim) for _ in range(rng.choice((1, 1, 2))))

    def _fault(self, victim: str) -> tuple[Key, Fault]:
        rng = self.rng
        what = rng.choice(('error', 'error', 'error', 'short', 'slow', 'hang', 'gone'))
        kind = 'write' if what == 'short' else rng.choice(('write', 'write', 'flush', 'read', 'any'))
        seconds = rng.choice((0.3, 1.0, 5.0, 20.0)) if what in ('slow', 'hang') else 0.0
        nth = rng.choice((rng.randrange(1, 6), rng.randrange(1, 40)))
        return (victim, kind, nth), Fault(what, rng.choice(_CODES), seconds)


ENOSPC = 28
ENXIO = 6
_CODES = (5, 5, ENXIO, ENXIO, ENOSPC)
LANE_SHARE = 0.2
USED_SHARE = 0.25
OUTSIDE_SHARE = 0.25
_RESTING = {
    'away': 8,
    'swap': 3,
    'save': 4,
    'old': 3,
    'foreign': 1,
    'stranger': 1,
    'shrink': 1,
    'corrupt': 4,
    'force': 1,
    'assemble': 4,
    'litter': 2,
    'lengthen': 1,
}
_RUNNING = {
    'write': 20,
    'write-sync': 4,
    'burst': 8,
    'read': 8,
    'flush': 10,
    'discard': 6,
    'zeroes': 6,
    'zeroes-sync': 1,
    'both': 14,
    'fail': 6,
    'readd': 8,
    'remove': 2,
    'add': 2,
    'spare': 2,
    'shared': 3,
    'unshared': 1,
    'replace': 3,
    'split': 3,
    'look': 1,
    'merge': 2,
    'flag': 2,
    'block': 1,
    'raid-disks': 1,
    'backlog': 2,
    'grow': 2,
    'quorum': 2,
    'detect-zeroes': 1,
    'log': 3,
    'sweep': 5,
    'sleep': 4,
    'quiet': 4,
    'scrub': 3,
    'repair': 2,
    'idle': 1,
    'hang': 1,
    'release': 3,
    'vanish': 1,
    'appear': 2,
    'bad': 3,
    'list': 1,
}
