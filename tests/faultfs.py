"""A filesystem that fails on purpose: one leg file, over a backing file that holds what is durable.

    python tests/faultfs.py BACKING MOUNTPOINT

The mount has two files: `leg`, what a mirror writes to, and `.control`.  What was written since the last
fsync is volatile: reads see it at once, the backing file does not have it.  fsync and fdatasync make all of
it durable, a write with O_DSYNC or RWF_DSYNC just its own bytes, as on a disk filesystem.  A power cut lets
each volatile write be kept, dropped, or torn at sectors.  When a process is killed nothing is lost and
nothing becomes durable.  A change of the size is durable at once.

Commands are written to `.control`, one a write; a wrong one fails with EINVAL:

    rule KIND do=WHAT [nth=N] [every] [step=N] [seconds=S] [pid=P]
                    at the Nth call of a kind from now on (the next one if not said) do WHAT; with `every`
                    at each later one, too (with `step` at some).  The first rule that applies is taken;
                    each counts all calls of its kind.
    bad KIND OFFSET LENGTH
                    from now on reads of these bytes fail with EIO until they are written (KIND `read`), or
                    writes to them do (`write`)
    good            no range is bad any more
    clear           forget all rules; calls that hang go on hanging
    release         let the calls that hang go on: they take effect now
    cut SEED [FATE] power cut, for when whoever used the leg is dead.  FATE: `random` (the default), or `all`,
                    `none`, `tear` for every volatile write.  Calls that hang never take effect.

    KIND  read, write (of either kind), dsync, plain (durable writes, others), punch, fsync, any
    WHAT  an errno name: the call fails with it and has no effect
          short: a write takes half of its bytes; delay: answers S seconds later, having taken effect at once;
          hang: takes effect and answers when released, or after S seconds; flip: one bit of the data is
          wrong; lie: says that it is durable, which it is not; kill: ends process P, then takes effect

Reading `.control` gives JSON: calls of each kind so far, how many rules fired, how many calls hang, what is
volatile.  Bytes and sync of the leg are served straight from the FUSE descriptor, since pyfuse3 does not tell
which writes are durable; pyfuse3 serves the rest.  No page cache is between: each read and write gets here.
"""

import contextlib
import errno
import itertools
import json
import os
import random
import signal
import socket
import stat
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pyfuse3
import trio

from mirrorfs.fs import mounting, wire

SECTOR = 512
REQUEST_MAX = 1 << 20
LEG, CONTROL = pyfuse3.ROOT_INODE + 1, pyfuse3.ROOT_INODE + 2
NAMES = {b'leg': LEG, b'.control': CONTROL}
KINDS = {'read', 'write', 'dsync', 'plain', 'punch', 'fsync', 'any'}
DEEDS = {'short', 'delay', 'hang', 'flip', 'lie', 'kill'}
PUNCH = 0x02


class Medium:
    """The bytes of a leg: those that are seen, those that are durable, and what lies between."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.seen = bytearray(self._stored())
        self.volatile: list[tuple[int, bytes]] = []
        """(offset, data), in the order of the writes."""
        self.unreadable: set[int] = set()
        self.unwritable: set[int] = set()
        """Sectors that are bad."""

    def _stored(self) -> bytes:
        """Return what is durable."""
        size = os.fstat(self._file).st_size
        data = b''
        while len(data) < size and (more := os.pread(self._file, size - len(data), len(data))):
            data += more
        return data

    def spoil(self, kind: str, offset: int, length: int) -> None:
        """Make a range bad.  Raises ValueError for another kind than read and write."""
        if kind not in ('read', 'write') or offset < 0 or length <= 0:
            raise ValueError(kind)
        (self.unreadable if kind == 'read' else self.unwritable).update(sectors_of(offset, length))

    def heal(self) -> None:
        self.unreadable.clear()
        self.unwritable.clear()

    def read(self, offset: int, size: int) -> bytes:
        if self.unreadable and not self.unreadable.isdisjoint(sectors_of(offset, size)):
            raise OSError(errno.EIO, 'a bad sector')
        return bytes(self.seen[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if self.unwritable and not self.unwritable.isdisjoint(sectors_of(offset, len(data))):
            raise OSError(errno.EIO, 'a bad sector')
        self.unreadable.difference_update(range(-(-offset // SECTOR), end // SECTOR))
        if end > len(self.seen):
            self.resize(end)
        self.seen[offset:end] = data
        self.volatile.append(self._joined(offset, data))

    def _joined(self, offset: int, data: bytes) -> tuple[int, bytes]:
        """Return a write with the part before it, if both are in one sector.

        The kernel cuts a large call whose buffer is not aligned anywhere; no disk would tear it there.
        """
        if offset % SECTOR:
            for number in range(len(self.volatile) - 1, -1, -1):
                start, before = self.volatile[number]
                if start + len(before) == offset:
                    del self.volatile[number]
                    return start, before + data
        return offset, data

    def write_durably(self, offset: int, data: bytes) -> None:
        """Write; these bytes, and no others, are durable at once."""
        self.write(offset, data)
        self.volatile = [part for old in self.volatile for part in without(old, offset, offset + len(data))]
        self._store(offset, data)

    def sync(self) -> None:
        for offset, data in self.volatile:
            self._store(offset, data)
        self.volatile.clear()

    def resize(self, size: int) -> None:
        if size < len(self.seen):
            self.sync()
            del self.seen[size:]
        self.seen.extend(bytes(size - len(self.seen)))
        os.ftruncate(self._file, size)

    def cut(self, chance: random.Random, fate: str) -> None:
        """Lose the power: what survives of the volatile writes is what is durable, and seen, from now on."""
        if fate == 'random':
            fate = chance.choice(['random', 'random', 'random', 'all', 'none', 'tear', 'newest', 'oldest'])
        last = len(self.volatile) - 1
        for number, (offset, data) in enumerate(self.volatile):
            for start, piece in survivors(chance, fate, offset, data, number == last):
                self._store(start, piece)
        self.volatile.clear()
        self.seen = bytearray(self._stored())

    def _store(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self._file, data, offset) == len(data)


def sectors_of(offset: int, length: int) -> range:
    return range(offset // SECTOR, -(-(offset + length) // SECTOR))


def without(write: tuple[int, bytes], low: int, high: int) -> list[tuple[int, bytes]]:
    """Return what is left of a write when the bytes low..high of the file are taken out."""
    offset, data = write
    end = offset + len(data)
    parts = [(offset, data[: max(0, low - offset)]), (max(offset, high), data[max(0, high - offset) :])]
    return [part for part in parts if part[1]] if low < end and offset < high else [write]


def survivors(
    chance: random.Random, fate: str, offset: int, data: bytes, newest: bool
) -> list[tuple[int, bytes]]:
    """Return the parts of one volatile write that are there after the power cut."""
    if fate == 'random':
        fate = chance.choice(['all', 'none', 'tear'])
    elif fate in ('newest', 'oldest'):
        fate = 'all' if newest == (fate == 'newest') else 'none'
    if fate == 'all':
        return [(offset, data)]
    if fate == 'none':
        return []
    end = offset + len(data)
    edges = [offset, *range(offset // SECTOR * SECTOR + SECTOR, end, SECTOR), end]
    sectors = list(itertools.pairwise(edges))
    at = chance.randrange(len(sectors) + 1)
    kept = chance.choice([sectors[:at], sectors[at:], [s for s in sectors if chance.random() < 0.5]])
    return [(low, data[low - offset : high - offset]) for low, high in kept]


@dataclass
class Rule:
    """What is to go wrong, and when."""

    kind: str
    do: str
    nth: int = 1
    every: bool = False
    step: int = 1
    seconds: float | None = None
    pid: int = 0
    met: int = 0

    @classmethod
    def parse(cls, words: list[str]) -> 'Rule':
        """Raises ValueError for words that make no sense."""
        kind, *rest = words
        options = dict(word.split('=', 1) for word in rest if word != 'every')
        rule = cls(kind, options.pop('do', ''), every='every' in rest)
        rule.nth = int(options.pop('nth', '1'))
        rule.step = int(options.pop('step', '1'))
        rule.pid = int(options.pop('pid', '0'))
        if 'seconds' in options:
            rule.seconds = float(options.pop('seconds'))
        known = rule.do in DEEDS or hasattr(errno, rule.do)
        wanting = (rule.do == 'kill' and rule.pid <= 1) or (rule.do == 'delay' and rule.seconds is None)
        if options or kind not in KINDS or not known or wanting or min(rule.nth, rule.step) < 1:
            raise ValueError(' '.join(words))
        return rule

    def applies(self, kind: str) -> bool:
        """Whether the rule fires at this call, which it counts."""
        kinds = {kind, 'any', 'write'} if kind in ('dsync', 'plain') else {kind, 'any'}
        if self.kind not in kinds:
            return False
        self.met += 1
        later = self.met - self.nth
        return later == 0 or (self.every and later > 0 and later % self.step == 0)


@dataclass
class Faults:
    """The rules, and what they did."""

    rules: list[Rule] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    fired: int = 0
    hanging: int = 0
    power: int = 0
    """Counts power cuts: a call from before one has no effect after it."""
    _go: trio.Event = field(default_factory=trio.Event)

    def meet(self, kind: str) -> Rule | None:
        """Count a call; return the rule that it falls under."""
        self.calls[kind] += 1
        hits = [rule for rule in self.rules if rule.applies(kind)]
        if not hits:
            return None
        self.fired += 1
        return hits[0]

    def release(self) -> None:
        go, self._go = self._go, trio.Event()
        go.set()

    async def hang(self, seconds: float | None) -> None:
        """Return when released, or after some seconds.  Raises OSError if the power went meanwhile."""
        power = self.power
        self.hanging += 1
        with trio.move_on_after(float('inf') if seconds is None else seconds):
            await self._go.wait()
        self.hanging -= 1
        if self.power != power:
            raise OSError(errno.EIO, 'the power went')


class Server:
    """Takes requests from the FUSE descriptor: bytes of the leg are served here, the rest goes to pyfuse3."""

    def __init__(self, fuse: int, medium: Medium, faults: Faults) -> None:
        self.fuse = fuse
        self.medium = medium
        self.faults = faults
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self._opens: set[int] = set()
        """Unique numbers of OPEN requests: their replies are changed."""

    async def requests(self) -> None:
        """Serve until unmounted."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self.fuse)
                try:
                    message = os.read(self.fuse, REQUEST_MAX + (64 << 10))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        break
                    if error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        raise
                    continue
                _, opcode, unique, node, *_ = wire.IN_HEADER.unpack_from(message)
                if node == LEG and opcode in self._served:
                    nursery.start_soon(self._answer, opcode, unique, message)
                elif opcode != wire.FUSE_INTERRUPT:
                    if opcode == wire.FUSE_OPEN:
                        self._opens.add(unique)
                    await self._forward(message)
            nursery.cancel_scope.cancel()
        self.near.close()

    async def _forward(self, message: bytes) -> None:
        while True:
            try:
                self.near.send(message)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.near)

    async def replies(self) -> None:
        """Pass on what pyfuse3 answers."""
        while True:
            await trio.lowlevel.wait_readable(self.near)
            reply = bytearray(self.near.recv(1 << 20))
            if not reply:
                return
            _, failed, unique = wire.OUT_HEADER.unpack_from(reply)
            if unique in self._opens:
                self._opens.discard(unique)
                if not failed:
                    # Else the kernel would keep other calls waiting behind one that hangs.
                    wire.tune_open(reply)
            self._reply(bytes(reply))

    def _reply(self, *parts: bytes) -> None:
        try:
            os.writev(self.fuse, parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    async def _answer(self, opcode: int, unique: int, message: bytes) -> None:
        code, body = 0, b''
        try:
            body = await self._served[opcode](self, message)
        except OSError as error:
            code = error.errno or errno.EIO
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), -code, unique)
        self._reply(header, body)

    async def _disturb(self, kind: str) -> Rule | None:
        """Count a call and do what a rule asks before it takes effect; return the rule.  Raises OSError."""
        rule = self.faults.meet(kind)
        if rule is None:
            return None
        if rule.do == 'hang':
            await self.faults.hang(rule.seconds)
        elif rule.do == 'kill':
            with contextlib.suppress(ProcessLookupError):
                os.kill(rule.pid, signal.SIGKILL)
        elif rule.do not in DEEDS:
            raise OSError(getattr(errno, rule.do), rule.do)
        return rule

    async def _read(self, message: bytes) -> bytes:
        _, offset, size, *_ = wire.READ_IN.unpack_from(message, wire.BODY)
        rule = await self._disturb('read')
        data = self.medium.read(offset, size)
        if rule and rule.do == 'flip':
            data = flipped(data)
        await delay(rule)
        return data

    async def _write(self, message: bytes) -> bytes:
        _, offset, size, _, _, flags, _ = wire.WRITE_IN.unpack_from(message, wire.BODY)
        data = message[wire.WRITE_DATA : wire.WRITE_DATA + size]
        durable = bool(flags & os.O_DSYNC)
        rule = await self._disturb('dsync' if durable else 'plain')
        do = rule.do if rule else ''
        if do == 'short':
            data = data[: max(1, len(data) // 2)]
        elif do == 'flip':
            data = flipped(data)
        if durable and do != 'lie':
            self.medium.write_durably(offset, data)
        else:
            self.medium.write(offset, data)
        await delay(rule)
        return wire.WRITE_REPLY.pack(0, 0, 0, len(data), 0)[wire.OUT_HEADER.size :]

    async def _fsync(self, message: bytes) -> bytes:
        rule = await self._disturb('fsync')
        if not rule or rule.do != 'lie':
            self.medium.sync()
        await delay(rule)
        return b''

    async def _fallocate(self, message: bytes) -> bytes:
        _, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(message, wire.BODY)
        if mode & ~(PUNCH | 0x01):
            raise OSError(errno.EOPNOTSUPP, 'only holes')
        if mode & PUNCH:
            rule = await self._disturb('punch')
            length = min(length, len(self.medium.seen) - offset)
            if length > 0:
                self.medium.write(offset, bytes(length))
            await delay(rule)
        return b''

    _served: ClassVar[dict[int, Callable[['Server', bytes], Awaitable[bytes]]]] = {
        wire.FUSE_READ: _read,
        wire.FUSE_WRITE: _write,
        wire.FUSE_FSYNC: _fsync,
        wire.FUSE_FALLOCATE: _fallocate,
    }


def flipped(data: bytes) -> bytes:
    """Return data with a bit of the byte in the middle wrong."""
    wrong = bytearray(data)
    wrong[len(wrong) // 2] ^= 0x10
    return bytes(wrong)


async def delay(rule: Rule | None) -> None:
    if rule and rule.do == 'delay' and rule.seconds is not None:
        await trio.sleep(rule.seconds)


class Names(pyfuse3.Operations):
    """The two names, their attributes, and the control file."""

    def __init__(self, medium: Medium, faults: Faults) -> None:
        super().__init__()
        self.medium = medium
        self.faults = faults
        self._texts: dict[int, bytes] = {}
        """What each open control file says, as of when it was opened."""

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = (stat.S_IFDIR | 0o755) if inode == pyfuse3.ROOT_INODE else (stat.S_IFREG | 0o600)
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = len(self.medium.seen) if inode == LEG else 0
        entry.st_blocks = -(-entry.st_size // SECTOR)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name not in NAMES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(NAMES[name], ctx)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size and inode == LEG:
            self.medium.resize(attr.st_size)
        return await self.getattr(inode, ctx)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 20
        data.f_namemax = 255
        return data

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        for name, inode in sorted(NAMES.items(), key=lambda item: item[1]):
            if inode > start and not pyfuse3.readdir_reply(
                token, name, await self.getattr(inode, None), inode
            ):
                return

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if inode == CONTROL:
            fh = max(self._texts, default=CONTROL) + 1
            self._texts[fh] = self._report()
            return pyfuse3.FileInfo(fh=fh, direct_io=True, keep_cache=False)
        return pyfuse3.FileInfo(fh=LEG, direct_io=True, keep_cache=False)

    async def release(self, fh: int) -> None:
        self._texts.pop(fh, None)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._texts[fh][offset : offset + size]

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        try:
            self._command(data.decode().split())
        except ValueError:
            raise pyfuse3.FUSEError(errno.EINVAL) from None
        return len(data)

    def _report(self) -> bytes:
        faults, volatile = self.faults, self.medium.volatile
        calls = {kind: faults.calls[kind] for kind in ('read', 'dsync', 'plain', 'punch', 'fsync')}
        facts = {
            'calls': {**calls, 'write': calls['dsync'] + calls['plain'], 'any': sum(calls.values())},
            'fired': faults.fired,
            'hanging': faults.hanging,
            'volatile': len(volatile),
            'volatile_bytes': sum(len(data) for _, data in volatile),
            'rules': len(faults.rules),
        }
        return json.dumps(facts).encode() + b'\n'

    def _command(self, words: list[str]) -> None:
        """Do what a command says.  Raises ValueError."""
        match words:
            case ['rule', *rest] if rest:
                self.faults.rules.append(Rule.parse(rest))
            case ['clear']:
                self.faults.rules.clear()
            case ['bad', kind, offset, length]:
                self.medium.spoil(kind, int(offset), int(length))
            case ['good']:
                self.medium.heal()
            case ['release']:
                self.faults.release()
            case ['cut', seed] | ['cut', seed, ('random' | 'all' | 'none' | 'tear')]:
                self.medium.cut(random.Random(seed), words[2] if len(words) > 2 else 'random')
                self.faults.power += 1
                self.faults.release()
            case _:
                raise ValueError(' '.join(words))


async def serve(backing: str, mountpoint: str) -> None:
    """Mount and serve until unmounted, or told to end."""
    medium, faults = Medium(backing), Faults()
    mounting.FSTYPE = 'fuse.faultfs'
    fuse = mounting.mount(f'faultfs:{backing}', mountpoint, mounting.Options())
    try:
        server = Server(fuse, medium, faults)
        pyfuse3.init(Names(medium, faults), f'/dev/fd/{server.far.fileno()}', set(pyfuse3.default_options))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.replies)
            nursery.start_soon(pyfuse3.main)
            nursery.start_soon(_end_on_signal, nursery.cancel_scope)
            await server.requests()
            nursery.cancel_scope.cancel()
    finally:
        with contextlib.suppress(mounting.Refused):
            mounting.unmount(mountpoint, lazy=True)


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print('usage: faultfs.py BACKING MOUNTPOINT', file=sys.stderr)
        return 1
    trio.run(serve, *map(os.path.abspath, arguments))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
