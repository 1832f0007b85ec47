"""What histories are made of: the operations on a running volume, and what is done to it between its runs.

An operation is a tuple: a name from `RUNNING` or `RESTING`, then its arguments.  Blocks are of 4096 bytes,
slots and disks are numbers, chunks are of `CHUNK` bytes.
"""

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from mirrorfs.errors import Refused
from mirrorfs.intent.states import NEEDS_RESYNC, UNWRITTEN
from mirrorfs.limits import SECTOR
from mirrorfs.metadata import wibm
from mirrorfs.model import LegState
from mirrorfs.sim.checkers import CHUNK, CHUNK_BLOCKS, best_super, decode_super, leg_of
from mirrorfs.sim.crashleg import CrashDisk, keep_all
from mirrorfs.sim.model import BLOCK, tags
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import World

Operation = tuple[Any, ...]
QUIET_PATIENCE = 600.0
"""Virtual seconds within which resync and recovery end."""


async def perform(world: World, operation: Operation) -> None:
    """Perform one operation on the running volume.  Raises Violation."""
    name, *arguments = operation
    world.tally[name] += 1
    world.trace.append(f'> {" ".join(str(word) for word in operation)}')
    await RUNNING[name](world, *arguments)


DESTRUCTIVE = {'old', 'foreign', 'shrink', 'corrupt'}


def prepare(world: World, operation: Operation) -> None:
    """Do something to the disks or the pool of a world that does not run.

    What would destroy the last good copy is left out: every run must end well.
    """
    name, *arguments = operation
    if name in DESTRUCTIVE and not _spared(world, f'd{arguments[0]}'):
        return
    world.tally[name] += 1
    world.trace.append(f'= {" ".join(str(word) for word in operation)}')
    RESTING[name](world, *arguments)


# Requests for bytes


async def _write(world: World, block: int, count: int = 1, *, durable: bool = False) -> None:
    write = world.model.begin(block, count)
    world.trace.append(f'tag {write.tag} for blocks {block}-{block + count - 1}')
    try:
        await world.port.write(block * BLOCK, world.model.data(write), durable=durable)
    except OSError as error:
        world.model.fail(write)
        world.say(f'write: {error}')
        _expected(world, error)
        return
    world.model.ack(write)
    world.acknowledged += 1
    world.checkers.everywhere(write)
    if durable:
        world.model.synced(write)
        world.checkers.flushed(write.blocks)


async def _write_sync(world: World, block: int, count: int = 1) -> None:
    """A write that is durable when it is answered, as of a file opened with O_DSYNC."""
    await _write(world, block, count, durable=True)


async def _burst(world: World, block: int, count: int, times: int) -> None:
    """Write to the same place again and again: from the second time on it is the lane's, if there is one."""
    for _ in range(times):
        await _write(world, block, count)


async def _discard(world: World, block: int, count: int) -> None:
    write = world.model.begin(block, count, zeros=True)
    try:
        await world.port.discard(block * BLOCK, count * BLOCK)
    except OSError as error:
        world.model.fail(write)
        world.say(f'discard: {error}')
        _expected(world, error)
        return
    world.model.ack(write)


async def _flush(world: World) -> None:
    began = world.model.tick()
    try:
        await world.port.flush()
    except OSError as error:
        world.say(f'flush: {error}')
        _expected(world, error)
        return
    world.model.flushed(began)
    world.checkers.flushed()


async def _read(world: World, block: int, count: int = 1) -> None:
    now = world.model.tick()
    try:
        data = bytes(await world.port.read(block * BLOCK, count * BLOCK))
    except OSError as error:
        world.say(f'read: {error}')
        _expected(world, error)
        return
    if len(data) != count * BLOCK:
        raise Violation('promise', f'a read of {count} blocks returned {len(data)} bytes')
    for at in range(count):
        world.checkers.promised(block + at, now, tags(data[at * BLOCK : (at + 1) * BLOCK]))


def _expected(world: World, error: OSError) -> None:
    """An error that reaches a caller must come from a planned fault."""
    if not world.troubled:
        raise Violation('defect', f'an error without a fault: {error}')


# What an admin does


async def _fail(world: World, slot: int) -> None:
    await _admin(world, world.admin.fail, slot)


async def _readd(world: World, slot: int | str) -> None:
    await _admin(world, world.admin.re_add, slot)


async def _remove(world: World, slot: int) -> None:
    await _admin(world, world.admin.remove, slot)


async def _add(world: World, number: int) -> None:
    await _admin(world, world.admin.add, f'/sim/d{number}')


async def _admin(world: World, verb: Callable[[str], Awaitable[None]], word: int | str) -> None:
    try:
        await verb(str(word))
    except (Refused, OSError) as refusal:
        world.say(f'refused: {refusal}')
    if not world.volume.keeper.in_sync:
        raise Violation('last-copy', 'the last in-sync leg is gone')


async def _grow(world: World, chunks: int) -> None:
    """Grow the volume; what is new reads as zeros."""
    world.model.grow(chunks * CHUNK_BLOCKS)
    try:
        await world.volume.grow(chunks * CHUNK)
    except (Refused, OSError) as refusal:
        world.say(f'refused: {refusal}')
    world.chunks = world.volume.record.chunks


# What happens by itself


async def _sweep(world: World) -> None:
    """Two sweeps: what was quiet before is cleared."""
    assert world.started
    for _ in range(2):
        try:
            await world.started.clearer.sweep()
        except OSError as error:
            world.say(f'sweep: {error}')


async def _sleep(world: World, seconds: float) -> None:
    await trio.sleep(seconds)


async def _quiet(world: World) -> None:
    """Wait until nothing is left to resync or recover, in bounded virtual time."""
    world.checkers.made['bounded'] += 1
    with trio.move_on_after(QUIET_PATIENCE):
        while _busy(world):
            await trio.sleep(0.5)
        return
    raise Violation('bounded', 'resync or recovery does not end')


def _busy(world: World) -> bool:
    volume = world.volume
    sources = {disk.name for disk in world.checkers.in_sync()}
    if volume.broken or sources <= world.gone:
        return False  # nothing can be done
    spares = any(s in volume.keeper.members for s in volume.record.where(LegState.SPARE))
    doubtful = len(volume.keeper.in_sync) > 1 and volume.log.count(NEEDS_RESYNC) > 0
    return spares or doubtful


async def _both(world: World, *operations: Operation) -> None:
    """Several operations at once."""
    async with trio.open_nursery() as nursery:
        for operation in operations:
            nursery.start_soon(perform, world, operation)


async def _then(world: World, *operations: Operation) -> None:
    """Several operations, one after the other: what may be under way beside others."""
    for operation in operations:
        await perform(world, operation)


async def _hang(world: World, number: int, seconds: float = 20.0) -> None:
    """No call on a disk returns until `release`, or for so long."""
    if f'd{number}' not in world.hung:
        world.hang(f'd{number}', seconds)


async def _release(world: World, number: int) -> None:
    """A disk answers again, and calls on it that were given up land."""
    if f'd{number}' in world.disks:
        world.release(f'd{number}')


async def _vanish(world: World, number: int) -> None:
    """A disk fails every call, from now until `appear`."""
    world.gone.add(f'd{number}')
    world.troubled = True


async def _appear(world: World, number: int) -> None:
    world.gone.discard(f'd{number}')


async def _exchange(world: World, number: int) -> None:
    """A disk that is not in use is replaced by its copy while the volume runs."""
    _old(world, number)


async def _copy(world: World, number: int) -> None:
    _save(world, number)


async def _check(world: World, how: str = 'reads') -> None:
    """After a start: every block is what was promised, reads agree, all legs at hand end equal.

    ``reads`` come before resync has ended, ``resync`` is awaited first.
    """
    if how == 'resync':
        await _quiet(world)
    began = world.model.tick()
    first = await _read_all(world)
    for block, seen in enumerate(first):
        world.checkers.promised(block, began, seen)
    await _quiet(world)
    world.checkers.equal()
    await _welcome_back(world)
    began = world.model.tick()
    for block, seen in enumerate(await _read_all(world)):
        world.checkers.promised(block, began, seen)
    world.checkers.equal()
    await _flush(world)
    for block, seen in enumerate(first):
        world.model.settle(block, seen)


async def _welcome_back(world: World) -> None:
    """Every leg that left and is at hand can be taken back and brought up to date."""
    record, keeper = world.volume.record, world.volume.keeper
    for slot in [n for n, s in enumerate(record.slots) if s.state.is_stale]:
        name = record.slots[slot].path.rsplit('/', 1)[-1]
        if name in world.away | world.gone | world.foreign | world.unreadable or name not in world.disks:
            continue
        if leg_of(world.disks[name]) != record.slots[slot].leg:
            continue  # it has changed places with one that the volume had forgotten
        if world.volume.record.slots[slot].state is LegState.VACANT:
            continue  # forgotten since the volume is at full strength again
        with trio.move_on_after(60):
            while (member := keeper.quarantine.get(slot)) and member.leg.calls:
                await trio.sleep(1)
        apart = world.checkers.grew_apart(name)
        try:
            await world.admin.re_add(str(slot))
        except Refused as refusal:
            if apart and refusal.errno == errno.EINVAL:
                continue
            raise Violation('operator', f'slot {slot} may not come back: {refusal}') from refusal
        if apart:
            raise Violation('strangers', f'{name} was changed apart and is overwritten without a word')
        await _quiet(world)
        if slot not in keeper.in_sync:
            raise Violation('operator', f'slot {slot} did not come back: {world.events[-5:]}')


async def _read_all(world: World) -> list[list[int]]:
    """Return the tags of every block, read chunk by chunk."""
    found: list[list[int]] = []
    for chunk in range(world.chunks):
        data = bytes(await world.port.read(chunk * CHUNK, CHUNK))
        found.extend(tags(data[at : at + BLOCK]) for at in range(0, CHUNK, BLOCK))
    return found


RUNNING: dict[str, Callable[..., Awaitable[None]]] = {
    'write': _write,
    'write-sync': _write_sync,
    'burst': _burst,
    'read': _read,
    'flush': _flush,
    'discard': _discard,
    'fail': _fail,
    'readd': _readd,
    'remove': _remove,
    'add': _add,
    'grow': _grow,
    'sweep': _sweep,
    'sleep': _sleep,
    'quiet': _quiet,
    'both': _both,
    'then': _then,
    'hang': _hang,
    'release': _release,
    'vanish': _vanish,
    'appear': _appear,
    'copy': _copy,
    'exchange': _exchange,
    'check': _check,
}


# Between runs


def _spared(world: World, victim: str) -> bool:
    """Whether a disk is there, and another one has all that was ever acknowledged."""
    others = (name for name in world.disks if name != victim and world.checkers.is_current(name))
    return victim in world.disks and any(others)


def _away(world: World, *numbers: int) -> None:
    """Just these disks are missing at the next start.  One whose log has rotted needs the others."""
    if world.rotten <= {f'd{number}' for number in numbers}:
        world.away = {f'd{number}' for number in numbers}


def _swap(world: World, one: int, other: int) -> None:
    """Two disks change places: each is found at the other's path."""
    first, second = f'd{one}', f'd{other}'
    for marks in (world.tainted, world.foreign, world.apart, world.unreadable):
        found = {first, second} & marks
        if len(found) == 1:
            marks.symmetric_difference_update({first, second})
    world.disks[first], world.disks[second] = world.disks[second], world.disks[first]
    for name in (first, second):
        world.disks[name].name = name


def _save(world: World, number: int) -> None:
    """Keep a copy of a disk for `old`."""
    if f'd{number}' in world.disks:
        world.saved[f'd{number}'] = world.disks[f'd{number}'].copy()


def _old(world: World, number: int) -> None:
    """Somebody puts the copy that was saved in the place of a disk."""
    name = f'd{number}'
    if name in world.saved:
        before, world.disks[name] = world.disks[name], world.saved[name].cut(keep_all)
        if before.digest() != world.disks[name].digest():
            world.tainted.add(name)


def _foreign(world: World, number: int) -> None:
    """A leg of another volume lies where a disk was."""
    name = f'd{number}'
    disk, record = CrashDisk(name, world.disks[name].size), world.pool
    sup = best_super(world.disks[name])
    if sup is None:
        return
    stranger = wibm.LegSuper(record.but(uuid=_other(record.uuid)), _other(sup.leg), sup.slot, sup.layout, 9)
    for offset in wibm.SUPER_OFFSETS:
        disk.write(offset, wibm.encode_super(stranger))
    disk.flush(disk.writes)
    world.disks[name] = disk
    world.foreign.add(name)


def _other(identity: Any) -> Any:
    return type(identity)(int=identity.int ^ 1)


def _shrink(world: World, number: int) -> None:
    """A disk comes back smaller than what its superblock says that it holds."""
    disk = world.disks[f'd{number}']
    for medium in (disk.durable, disk.visible):
        medium.size -= CHUNK
    world.unreadable.add(disk.name)


def _corrupt(
    world: World, number: int, page: int, first: int = 0, mask: int = 0x5A, count: int = SECTOR
) -> None:
    """Some bytes of one copy of a superblock (page 0, 1) or of the log (2, 3) rot on a disk."""
    disk = world.disks[f'd{number}']
    at = [*wibm.SUPER_OFFSETS, *(world.layout.page_offset(0, copy) for copy in (0, 1))][page] + first
    if any(write.offset < at + count and at < write.end for write in disk.pending):
        return  # what waits to be written would mend it
    for medium in (disk.durable, disk.visible):
        medium.write(at, bytes(byte ^ mask for byte in medium.read(at, count)))
    if page > 1:
        world.rotten.add(disk.name)
    if not any(decode_super(disk.durable.read(offset, wibm.PAGE)) for offset in wibm.SUPER_OFFSETS):
        world.unreadable.add(disk.name)


def _litter(world: World, number: int) -> None:
    """A device that is not in use yet is full of something else."""
    name = f'd{number}'
    if name not in world.disks:
        world.disks[name] = disk = CrashDisk(name, world.layout.data_offset + world.chunks * CHUNK)
        world.fill_with_garbage(disk, world.layout.data_offset)


def _lengthen(world: World, number: int) -> None:
    """A disk is longer than it need be, and full of something else there."""
    disk = world.disks.get(f'd{number}')
    if disk is None:
        return
    for medium in (disk.durable, disk.visible):
        medium.size += 2 * CHUNK
    disk.size += 2 * CHUNK
    world.fill_with_garbage(disk, disk.size - 2 * CHUNK)


def _force(world: World) -> None:
    """The admin says that the next start may give up what is not at hand."""
    world.force = True


def _save_pool(world: World) -> None:
    """Another host has a copy of the pool, and of what it was promised."""
    world.saved_pool = world.files.copy(), world.model.copy(), world.acknowledged


def _old_pool(world: World) -> None:
    """From now on that copy is used.  What was written since it was made is unknown to it."""
    if world.saved_pool:
        files, model, before = world.saved_pool
        world.written_apart = world.acknowledged - before
        world.other_model = world.model.copy()
        world.hosts_apart = True
        world.files, world.model = files.copy(), model.copy()
        world.files.cut(True)
        world.mount_files()
        world.acknowledged = 0


def _meet(world: World, *numbers: int) -> None:
    """The disks that the first host wrote to come back: a split brain, if both hosts wrote."""
    world.hosts_apart = False
    if world.written_apart and world.acknowledged:
        world.apart |= {f'd{number}' for number in numbers}
    elif world.written_apart and world.other_model:
        world.model = world.other_model.copy()


def _remember(world: World) -> None:
    """Keep what is on the disks and in the pool, after a clean stop, for `unchanged`."""
    world.remembered = _everything(world) if world.at_rest else None


def _unchanged(world: World) -> None:
    """Invariant 12: nothing was written since, so nothing has changed."""
    world.checkers.made['start-twice'] += 1
    if world.remembered not in (None, _everything(world)):
        raise Violation('start-twice', 'a start without a write changed a disk or the pool')


def _everything(world: World) -> object:
    return world.files.digest(), [(name, disk.digest()) for name, disk in sorted(world.disks.items())]


RESTING: dict[str, Callable[..., None]] = {
    'away': _away,
    'swap': _swap,
    'save': _save,
    'old': _old,
    'foreign': _foreign,
    'shrink': _shrink,
    'corrupt': _corrupt,
    'litter': _litter,
    'lengthen': _lengthen,
    'force': _force,
    'save-pool': _save_pool,
    'old-pool': _old_pool,
    'meet': _meet,
    'remember': _remember,
    'unchanged': _unchanged,
}


def given_up(world: World) -> None:
    """After a forced start: what the legs held that were left out was given up by the admin's word."""
    disk = world.checkers.in_sync()[0]
    states = world.volume.log.states
    for block in range(world.model.blocks):
        at = world.layout.data_offset + block * BLOCK
        unwritten = states[block // CHUNK_BLOCKS] & UNWRITTEN
        world.model.give_up(block, [0] if unwritten else tags(disk.visible.read(at, BLOCK)))
