"""What histories are made of: the operations on a running volume.  What is done between its runs: `resting`.

An operation is a tuple: a name from `RUNNING`, then its arguments.  Blocks are of 4096 bytes, slots and disks
are numbers, chunks are of `CHUNK` bytes.
"""

import errno
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from mirrorfs.errors import Refused
from mirrorfs.intent.states import NEEDS_RESYNC
from mirrorfs.model import LegState
from mirrorfs.sim.checkers import CHUNK, CHUNK_BLOCKS, leg_of
from mirrorfs.sim.model import BLOCK, tags
from mirrorfs.sim.resting import RESTING, Operation
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import World

QUIET_PATIENCE = 600.0
"""Virtual seconds within which resync and recovery end."""


async def perform(world: World, operation: Operation) -> None:
    """Perform one operation on the running volume.  Raises Violation."""
    name, *arguments = operation
    world.tally[name] += 1
    world.trace.append(f'> {" ".join(str(word) for word in operation)}')
    await RUNNING[name](world, *arguments)


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


async def _log(world: World, place: str | int, force: bool = False) -> None:
    """The log moves: ``none``, ``internal``, or the number of a disk."""
    word = place if isinstance(place, str) else f'/sim/d{place}'
    await _admin(world, partial(world.admin.move_log, force=force), word)


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
    RESTING['old'](world, number)


async def _copy(world: World, number: int) -> None:
    RESTING['save'](world, number)


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
    'log': _log,
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
