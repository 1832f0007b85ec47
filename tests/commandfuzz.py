"""Random commands for the control table, on a pool in memory: nothing unexpected is raised, and a refused
command changes nothing, neither what is durable nor what the pool says of itself.

    python tests/commandfuzz.py [--count 1000000] [--seed 0]

Every BATCH commands begin with a new pool; a failure names the seed and the batch, which replay it alone:
``--seed N --batch M``.  `tests/test_command_fuzz.py` runs some of it at every commit.
"""

import argparse
import contextlib
import errno
import functools
import logging
import os
import random
import time
import uuid
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import trio

from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.events import EventLog
from mirrorfs.fs import mdstat
from mirrorfs.fs.control import BITMAP_FILES, LEG_FILES, POOL_FILES, VOLUME_FILES, parse
from mirrorfs.fs.tree import CONTROL, Node, Tree
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.pool import Entry, Pool
from mirrorfs.sim.crashleg import CrashDisk, CrashLeg
from mirrorfs.sim.determinism import run
from mirrorfs.sim.poolfiles import Inode, SimFiles
from mirrorfs.volume.admin import Admin
from mirrorfs.volume.creation import Request
from mirrorfs.volume.lifecycle import Settings
from mirrorfs.volume.volume import Volume

BATCH = 500
"""Commands for one pool."""
WINDOW = 50
"""Refused commands between two looks at all that the pool says of itself."""
MOUNT = '/mnt'
MIB = 1 << 20
CHUNK = 64 << 10
DISK_MAX = 4 * MIB
"""What a simulated disk can be: more is as on a full one."""
QUIET = 8.0
"""Virtual seconds in which all that a command has begun comes to its end."""
PATIENCE = 600.0


class Unexpected(AssertionError):
    """What may never happen, with all that is needed to see it again."""


class SmallLeg(CrashLeg):
    """A leg on a disk that cannot grow for ever."""

    async def extend(self, size: int) -> bool:
        if size > DISK_MAX:
            raise OSError(errno.ENOSPC, 'the disk is full')
        return await super().extend(size)


@dataclass
class Disks:
    """Where the legs of a pool in memory come from.  See `mirrorfs.leg.base.Opener`."""

    disks: dict[str, CrashDisk] = field(default_factory=dict)

    async def admit(self, path: str) -> None:
        await trio.lowlevel.checkpoint()
        if path == MOUNT or path.startswith(f'{MOUNT}/'):
            raise Refused(errno.EINVAL, f'{path} is in this very mount')

    async def open(self, path: str, *, create_size: int = 0) -> tuple[Leg, bool]:
        await self.admit(path)
        folder, _, name = path.rpartition('/')
        created = name not in self.disks
        if folder != '/sim' or not name or (created and not create_size):
            raise Refused(errno.ENOENT, f'{path} is not there')
        if created and create_size > DISK_MAX:
            raise Refused(errno.ENOSPC, f'{path} cannot be made so long')
        if created:
            self.disks[name] = CrashDisk(name, create_size)
        disk = self.disks[name]
        if disk.holder:
            raise Refused(errno.EBUSY, f'{path} is in use')
        disk.holder = leg = SmallLeg(disk)
        return leg, created

    async def probe(self, path: str) -> object:
        await trio.lowlevel.checkpoint()
        return self.disks[path[5:]].digest() if path[5:] in self.disks else None

    async def require_blank(self, leg: Leg) -> None:
        assert isinstance(leg, CrashLeg)
        await trio.lowlevel.checkpoint()
        if leg.disk.visible.extents(0, wibm.LOG_OFFSET):
            raise Refused(errno.EEXIST, f'{leg.path} holds something')

    async def discard_new(self, leg: Leg) -> None:
        del self.disks[leg.path.rpartition('/')[2]]


class Bench:
    """A pool in memory with volumes of all kinds, the tree of its control files, and what it looks like.

    `start` it: on what `furnished` has made, or with nothing at all.
    """

    def __init__(self, seed: str, made: 'Bench | None' = None) -> None:
        self.rng = random.Random(seed)
        self.opener, self.files = Disks(), SimFiles()
        if made:
            self.opener.disks = {name: disk.copy() for name, disk in made.opener.disks.items()}
            self.files = made.files.copy()
        else:
            mark = '/pool/mirrorfs.json'
            self.files.visible[mark] = self.files.durable[mark] = Inode()
        self._now = made._now if made else 1_000_000
        self.settings = Settings(look_interval=0, clock=self._clock, new_uuid=self._new_uuid, paced=False)

    def _clock(self) -> int:
        self._now += 1
        return self._now

    def _new_uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128))

    async def start(self, nursery: trio.Nursery) -> None:
        """Start all volumes; none has a session yet."""
        self.pool = Pool(PoolDirectory('/pool', self.files), self.opener, EventLog(), self.settings)
        await self.pool.start(nursery)
        self.tree = Tree(self.pool, MOUNT)
        await trio.sleep(QUIET)

    async def furnish(self) -> None:
        """Make the volumes, of which one cannot start any more, and stop the pool."""
        create = self.pool.create
        await create(Request('a', MIB, ['/sim/a0', '/sim/a1', '/sim/a2'], CHUNK))
        await create(Request('b', MIB, ['/sim/b0', '/sim/b1'], CHUNK, logged=False))
        await create(Request('c', MIB, ['/sim/c0', 'missing'], CHUNK))
        await create(Request('d', MIB, ['/sim/d0', '/sim/d1'], CHUNK, log_path='/sim/dlog'))
        await create(Request('dead', MIB, ['/sim/gone'], CHUNK))
        await self.pool.spares.add('/sim/shared', size=2 * MIB)
        await self._admin('c').add('/sim/idle', spare=True)
        for name in 'abd':
            await self._volume(name).write(0, b'x' * 3 * CHUNK)
        await self._admin('a').fail('2')
        await self._volume('a').write(5 * CHUNK, b'y' * CHUNK)
        await trio.sleep(QUIET)
        await self.pool.stop()
        del self.opener.disks['gone']

    def _volume(self, name: str) -> Volume:
        return self.pool.entries[name].require()[0].volume

    def _admin(self, name: str) -> Admin:
        return self.pool.entries[name].require()[1]

    # What it looks like

    def fingerprint(self) -> object:
        """Return what differs once anything durable has changed, or a fact in memory that is quick to see."""
        files = tuple((name, inode.visible, inode.durable) for name, inode in self.files.visible.items())
        disks = tuple((name, disk.writes, disk.holder) for name, disk in self.opener.disks.items())
        return files, disks, tuple(_facts(entry) for entry in self.pool.entries.values())

    def status(self) -> object:
        """Return what status.json says, but for what time changes."""
        volumes = [mdstat.volume_status(entry) for entry in self.pool.entries.values()]
        for volume in volumes:
            for sync in ('sync', 'last_sync'):
                for key in ('speed', 'eta_seconds'):
                    (volume.get(sync) or {}).pop(key, None)
            volume.pop('log', None)
        return volumes, [(spare.path, spare.size, spare.state) for spare in self.pool.spares.spares]

    # One command

    def node(self, path: tuple[str, ...]) -> Node | None:
        return self.tree.node(path)

    async def write(self, path: tuple[str, ...], data: bytes) -> bool:
        """Do as the mount does for one write; return whether it was accepted."""
        node = self.node(path)
        if node is None or node.file is None or node.file.act is None or node.place is None:
            return False
        try:
            with trio.fail_after(PATIENCE):
                await node.file.act(node.place, parse(data))
        except (Refused, OSError):
            return False
        return True


@functools.cache
def furnished() -> Bench:
    """Return a pool at rest with volumes, to be copied."""

    async def furnish() -> Bench:
        async with trio.open_nursery() as nursery:
            made = Bench('furnished')
            await made.start(nursery)
            await made.furnish()
            nursery.cancel_scope.cancel()
        return made

    return run(furnish, 0)


def _facts(entry: Entry) -> object:
    """Return what a command can change of a volume, in memory."""
    if not entry.started or not entry.admin:
        return entry.name, entry.refusal, entry.record
    volume, rebuilder, admin = entry.started.volume, entry.started.rebuilder, entry.admin
    keeper = volume.keeper
    return (
        entry.name,
        entry.record,
        rebuilder.frozen,
        rebuilder.action,
        rebuilder.scrub.state,
        entry.started.clearer.allowed,
        tuple(keeper.members),
        tuple(keeper.absent),
        keeper.session,
        keeper.outside,
        tuple(volume.blocked),
        tuple(admin.standby),
        admin.splitter.held,
        volume.log.states.tobytes(),
    )


# Commands

WORDS = (
    '0 1 2 3 9 15 16 -1 00 01 1.5 1e9 nan inf -inf 0x10 +8 ٣ ² 18446744073709551616 '
    '99999999999999999999999999 '
    'missing failed detached spare internal none file force keep add remove max min system default yield '
    'idle frozen resync recover recovery check repair reshape true false y n '
    'faulty re-add blocked -blocked writemostly -writemostly write_mostly failfast -failfast in_sync insync '
    'want_replacement -want_replacement error readonly wait partial full always never '
    '1M 64K 0M 2M 1P 99999T 16777217 65536 1048576 512 513 -5M 1,5M chunk=64K chunk=3M chunk= log=none '
    'log=/sim/log9 log=/mnt/a log=relative colour=red = a=b=c a b c d dead e new a@split b@split @split '
    '/sim/a0 /sim/a1 /sim/a2 /sim/b1 /sim/c0 /sim/d1 /sim/dlog /sim/idle /sim/shared /sim/new /sim/gone '
    '/sim/other / // /. /.. /sim/../sim/a0 /mnt /mnt/a /mnt/.mirrorfs/create relative ./x ../x ~ '
    '/dev/null /dev/zero /proc/self/mem /etc/passwd /nonexistent/x .hidden -x --force a/b'
).split()
ODD = ['', ' ', '\t', '\0', '\x1b[2J', 'ü' * 60, '𝕏', '\u202e', '\ud7ff', '"', "'", '\\']
ODD += ['n' * 129, '/' + 'x' * 5000]
RIGHT: dict[str, list[str]] = {
    'create': ['e 1M /sim/{n} /sim/{n}b', 'e 1M /sim/{n} force', 'e 256K missing /sim/{n} log=none'],
    'destroy': ['e', 'e', 'e', '{v}'],
    'spares': ['add /sim/{n} 2M', 'remove /sim/shared', 'add /sim/new 4M force'],
    'add': ['/sim/{n}', '/sim/{n} spare', '/sim/new force write_mostly', '/sim/a2'],
    'remove': ['{l}', 'failed', 'detached'],
    'fail': ['{l}'],
    're-add': ['{l}', 'missing'],
    'replace': ['{l} /sim/{n}', '{l} spare'],
    'split': ['{l}'],
    'merge': ['{l}', '{v}@split'],
    'resolve': ['keep {l}'],
    'size': ['2M', '{k}'],
    'quorum': ['1', '2', '{l}'],
    'quorum_policy': ['error', 'wait', 'readonly'],
    'raid_disks': ['{l}', '4'],
    'sync_action': ['check', 'repair', 'repair {l}', 'idle', 'frozen', 'recover'],
    'state': ['faulty', 'remove', 're-add', 'blocked', '-blocked', 'writemostly', 'want_replacement'],
    'bad_blocks': ['{k} 8', '0 {k}', '16 8'],
    'location': ['none', 'internal', '/sim/log{l} force', '/sim/{n}'],
    'time_base': ['{l}.5', '5'],
    'backlog': ['{k}', '0', '256'],
}
Path = tuple[str, ...]


def places(bench: Bench) -> list[list[Path]]:
    """Return the paths of all control files, and some that are none, by the names of the files."""
    found: dict[str, list[Path]] = {name: [(CONTROL, name)] for name in POOL_FILES}
    for name in [*bench.pool.entries, 'nobody']:
        at = (CONTROL, 'volumes', name)
        for file in VOLUME_FILES:
            found.setdefault(f'volume {file}', []).append((*at, file))
        for file in BITMAP_FILES:
            found.setdefault(file, []).append((*at, 'bitmap', file))
        for file in LEG_FILES:
            found.setdefault(f'leg {file}', []).extend((*at, 'legs', str(n), file) for n in range(4))
    return list(found.values())


def command(rng: random.Random, file: str) -> bytes:
    """Return the bytes of one write: right words, right words out of place, or anything."""
    kind = rng.random()
    if kind < 0.15 and file in RIGHT:
        values = {
            'n': rng.choice(['new', 'x1', 'x2']),
            'v': rng.choice(['a', 'b', 'c', 'dead', 'e']),
            'l': rng.randrange(5),
            'k': rng.choice([0, 8, 7, 2048, 1 << 20, -1, 1 << 63]),
        }
        return rng.choice(RIGHT[file]).format(**values).encode()
    if kind < 0.85:
        words = rng.choices(WORDS, k=rng.choice((0, 1, 1, 1, 2, 2, 3, 5)))
        if rng.random() < 0.2:
            words.insert(rng.randrange(len(words) + 1), rng.choice(ODD))
        if rng.random() < 0.1 and words:
            quote = rng.choice('\'"')
            words[-1] = f'{quote}{words[-1]}{quote if rng.random() < 0.7 else ""}'
        return rng.choice((' ', ' ', ' ', '  ', '\t', '\n')).join(words).encode() + rng.choice((b'', b'\n'))
    if kind < 0.9997:
        return rng.randbytes(rng.randrange(1, 24))
    return rng.choice((b'x', b'1 ', b'\n', b'"', b'\xff')) * rng.choice((1000, 65536, 65537, 1 << 20))


class Fuzz:
    """One batch of commands on a new pool."""

    def __init__(self, seed: int, batch: int, count: int) -> None:
        self.name = f'{seed} --batch {batch}'
        self._rng = random.Random(f'commands {self.name}')
        self._count = count
        self._furnished = furnished()
        self.tally: Counter[str] = Counter()
        self._recent: list[str] = []

    async def __call__(self) -> None:
        async with trio.open_nursery() as nursery:
            bench = Bench(f'pool {self.name}', self._furnished)
            await bench.start(nursery)
            await self._all(bench)
            nursery.cancel_scope.cancel()

    async def _all(self, bench: Bench) -> None:
        files = places(bench)
        before, said = bench.fingerprint(), bench.status()
        for number in range(self._count):
            path = self._rng.choice(self._rng.choice(files))
            data = command(self._rng, path[-1])
            self._recent = [*self._recent[-WINDOW:], f'{"/".join(path)} {data[:200]!r}']
            try:
                accepted = await bench.write(path, data)
            except Exception as error:
                raise self._unexpected(f'{type(error).__name__}: {error}') from error
            self.tally['accepted' if accepted else 'refused'] += 1
            if accepted:
                self.tally[f'accepted {path[-1]}'] += 1
                await trio.sleep(QUIET)
                self._read_some(bench, files)
                before, said, self._recent = bench.fingerprint(), bench.status(), self._recent[-1:]
                continue
            self._compare(before, bench.fingerprint())
            if number % WINDOW == WINDOW - 1:
                self._compare(said, bench.status())
        self._compare(said, bench.status())

    def _compare(self, before: object, after: object) -> None:
        if before != after:
            raise self._unexpected(f'refused, but changed: {_difference(before, after)}')

    def _read_some(self, bench: Bench, files: list[list[Path]]) -> None:
        for paths in self._rng.sample(files, 5):
            node = bench.node(self._rng.choice(paths))
            if node and node.file and node.file.read and node.place:
                with contextlib.suppress(Refused, OSError):
                    node.file.read(node.place)

    def _unexpected(self, what: str) -> Unexpected:
        return Unexpected(f'--seed {self.name}: {what}\n' + '\n'.join(self._recent))


def _difference(before: object, after: object) -> str:
    """Return the first place where two values of the same make differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                return f'{key} {_difference(before.get(key), after.get(key))}'
    if isinstance(before, (tuple, list)) and isinstance(after, (tuple, list)) and len(before) == len(after):
        return next(_difference(b, a) for b, a in zip(before, after, strict=True) if b != a)
    return f'{str(before)[:1500]} -> {str(after)[:1500]}'


def try_batch(seed: int, batch: int, count: int = BATCH) -> Counter[str]:
    """Try one batch; return how many commands were accepted and refused.  Raises Unexpected, in groups."""
    logging.disable(logging.CRITICAL)
    one = Fuzz(seed, batch, count)
    run(one, batch)
    return one.tally


def fuzz(count: int, seed: int) -> Counter[str]:
    """Try `count` commands; return how many were accepted and refused.  Raises Unexpected, in groups."""
    batches = range(-(-count // BATCH))
    return sum((try_batch(seed, n, min(BATCH, count - n * BATCH)) for n in batches), Counter[str]())


def main() -> None:
    parser = argparse.ArgumentParser(description='Try random commands on a pool in memory.')
    parser.add_argument('--count', type=int, default=1_000_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--batch', type=int, help='just this one, again')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes; by default all cores')
    asked = parser.parse_args()
    if asked.batch is not None:
        print(dict(try_batch(asked.seed, asked.batch)))
        return
    began, tally, batches = time.monotonic(), Counter[str](), -(-asked.count // BATCH)
    with ProcessPoolExecutor(asked.jobs) as workers:
        for batch, one in enumerate(workers.map(try_batch, [asked.seed] * batches, range(batches)), 1):
            tally += one
            if batch % 100 == 0:
                spent = time.monotonic() - began
                print(f'{batch * BATCH} commands, {tally["accepted"]} accepted, {spent:.0f} s', flush=True)
    print(dict(tally))


if __name__ == '__main__':
    main()
