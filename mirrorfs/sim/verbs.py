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
from mirrorfs.limits import SECTOR
from mirrorfs.model import DetectZeroes, LegState, WriterPolicy
from mirrorfs.sim.checkers import CHUNK, CHUNK_BLOCKS, leg_of
from mirrorfs.sim.model import BLOCK, tags
from mirrorfs.sim.resting import RESTING, Operation
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import Image, World
from mirrorfs.volume.splitting import SplitOff

SECTORS = BLOCK // SECTOR
FOR_BYTES = {'write', 'write-sync', 'burst', 'read', 'discard', 'zeroes', 'zeroes-sync'}
QUIET_PATIENCE = 600.0
"""Virtual seconds within which resync and recovery end."""


async def perform(world: World, operation: Operation) -> None:
    """Perform one operation on the running volume.  Raises Violation."""
    name, *arguments = operation
    world.tally[name] += 1
    world.trace.append(f'> {" ".join(str(word) for word in operation)}')
    if name in FOR_BYTES and sum(arguments[:2]) > world.model.blocks:
        world.say('beyond the end')  # a growth that is yet to come, or was never made
        return
    await RUNNING[name](world, *arguments)


# Requests for bytes


async def _write(
    world: World, block: int, count: int = 1, *, durable: bool = False, zeros: bool = False
) -> None:
    write = world.model.begin(block, count, zeros=zeros)
    world.trace.append(f'tag {write.tag} for blocks {block}-{block + count - 1}')
    wanted = world.volume.record.quorum
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
    world.checkers.quorum(write, min(wanted, world.volume.record.quorum))
    if durable:
        world.model.synced(write)
        world.checkers.flushed(write.blocks)


async def _write_sync(world: World, block: int, count: int = 1) -> None:
    """A write that is durable when it is answered, as of a file opened with O_DSYNC."""
    await _write(world, block, count, durable=True)


async def _zeroes(world: World, block: int, count: int = 1) -> None:
    """Zeros are written, as data; what becomes of them the volume knows."""
    await _write(world, block, count, zeros=True)


async def _zeroes_sync(world: World, block: int, count: int = 1) -> None:
    await _write(world, block, count, durable=True, zeros=True)


async def _burst(world: World, block: int, count: int, times: int) -> None:
    """Write to the same place again and again: from the second time on it is the lane's, if there is one."""
    for _ in range(times):
        await _write(world, block, count)


async def _discard(world: World, block: int, count: int) -> None:
    write = world.model.begin(block, count, zeros=True)
    wanted = world.volume.record.quorum
    try:
        await world.port.discard(block * BLOCK, count * BLOCK)
    except OSError as error:
        world.model.fail(write)
        world.say(f'discard: {error}')
        _expected(world, error)
        return
    world.model.ack(write)
    world.checkers.quorum(write, min(wanted, world.volume.record.quorum))


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
    """An error that reaches a caller must come from a planned fault, or from a quorum that was lost."""
    refused = world.below and error.errno in (errno.EIO, errno.EROFS)
    if not world.troubled and not refused:
        raise Violation('defect', f'an error without a fault: {error}')


# What an admin does


async def _quorum(world: World, legs: int, policy: str) -> None:
    """So many legs must be in sync for writes; else they fail or wait."""
    try:
        settings = {'quorum': legs, 'quorum_policy': WriterPolicy[policy.upper()]}
        await world.volume.quorum.change(**settings)
    except (Refused, OSError) as refusal:
        world.say(f'refused: {refusal}')


async def _detect_zeroes(world: World, word: str) -> None:
    """What becomes of writes of zeros from now on."""
    try:
        await world.volume.space.detect_zeroes(DetectZeroes[word.upper()])
    except (Refused, OSError) as refusal:
        world.say(f'refused: {refusal}')


async def _fail(world: World, slot: int) -> None:
    await _admin(world, world.admin.fail, slot)


async def _readd(world: World, slot: int | str) -> None:
    await _admin(world, world.admin.re_add, slot)


async def _remove(world: World, slot: int) -> None:
    await _admin(world, world.admin.remove, slot)


async def _add(world: World, number: int) -> None:
    await _admin(world, world.admin.add, f'/sim/d{number}')


async def _spare(world: World, number: int) -> None:
    """A disk becomes a hot spare."""
    await _admin(world, partial(world.admin.add, spare=True), f'/sim/d{number}')


async def _shared(world: World, number: int) -> None:
    """A disk is given to the pool as a spare for all its volumes."""
    spares, size = world.running_pool.spares, world.layout.data_offset + world.chunks * CHUNK
    try:
        await spares.add(f'/sim/d{number}', size=size)
    except (Refused, OSError) as refusal:
        world.say(f'refused: {refusal}')
    else:
        world.given.add(f'd{number}')


async def _unshared(world: World, number: int) -> None:
    """It is taken away again."""
    before = f'd{number}' in world.given
    world.given.discard(f'd{number}')
    try:
        await world.running_pool.spares.remove(f'/sim/d{number}')
    except Refused as refusal:
        world.say(f'refused: {refusal}')
        if before and f'd{number}' in world.shared:
            world.given.add(f'd{number}')
    except OSError as error:
        world.say(f'not removed, or so: {error}')


async def _replace(world: World, slot: int, number: int) -> None:
    """A disk, or a spare, is to take the place of a leg."""
    word = f'/sim/d{number}' if number >= 0 else 'spare'
    await _admin(world, partial(world.admin.replace, str(slot)), word)


async def _split(world: World, slot: int) -> None:
    """A leg is split off; its image shows what the volume is now."""
    splitter, began = world.admin.splitter, world.model.tick()
    before, alone = splitter.held, not world.beside
    await _admin(world, world.admin.split, slot)
    if splitter.held and splitter.held is not before:
        world.point = None
        seen = await _read_image(world, splitter.held)
        if seen and alone:
            world.checkers.split_off(began, seen)
        if splitter.held:
            world.point = seen


async def _look(world: World) -> None:
    """The image of the leg that is split off is what it was."""
    held = world.admin.splitter.held
    if held is None or world.point is None:
        return
    name = held.leg.path.rsplit('/', 1)[-1]
    if name in world.tainted | world.foreign | world.unreadable | world.rotten:
        return  # somebody changed it
    seen = await _read_image(world, held)
    if seen and world.point is not None:
        world.checkers.same_image(world.point, seen)


async def _read_image(world: World, held: SplitOff) -> Image | None:
    """Return what the image of a leg holds, None where it cannot be read."""
    held.opened += 1
    world.peeking = held.leg.path.rsplit('/', 1)[-1]
    try:
        data = await held.read(0, held.size)
    except OSError as error:
        world.say(f'image: {error}')
        _expected(world, error)
        return None
    finally:
        held.opened -= 1
        world.peeking = ''
    return [tags(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]


async def _merge(world: World) -> None:
    """The leg that was split off comes back."""
    await _admin(world, lambda word: world.admin.merge(), '')
    if world.admin.splitter.held is None:
        world.point = None


async def _flag(world: World, slot: int, flag: str, value: bool) -> None:
    """A word on a leg: write_mostly, failfast, want_replacement."""

    async def say(word: str) -> None:
        await world.admin.set_flag(world.admin.find(word), flag, value)

    await _admin(world, say, slot)


async def _block(world: World, slot: int, seconds: float) -> None:
    """No writes, for some time."""

    async def block(word: str) -> None:
        number = world.admin.find(word)
        await world.admin.block(number)
        await trio.sleep(seconds)
        await world.admin.unblock(number)

    await _admin(world, block, slot)


async def _backlog(world: World, slot: int, limit: int) -> None:
    """A leg is write-mostly, and may be behind."""
    if limit:
        await _flag(world, slot, 'write_mostly', True)
    await _admin(world, lambda word: world.admin.set_backlog(int(word)), limit)


async def _raid_disks(world: World, count: int) -> None:
    """Another number of legs is wanted."""
    await _admin(world, lambda word: world.admin.set_raid_disks(int(word)), count)


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


async def _scrub(world: World) -> None:
    """Begin to compare all legs."""
    await _begin_scrub(world, 'check')


async def _repair(world: World, slot: int = -1) -> None:
    """Begin to compare all legs, and to rewrite what differs from a slot's copy, or from the majority's."""
    await _begin_scrub(world, 'repair', None if slot < 0 else slot)


async def _begin_scrub(world: World, action: str, source: int | None = None) -> None:
    assert world.started
    try:
        await world.started.rebuilder.begin_scrub(action, source)
    except (Refused, OSError) as refusal:
        world.say(f'refused: {refusal}')


async def _idle(world: World) -> None:
    """End the pass under way; a scrub does not go on."""
    assert world.started
    try:
        await world.started.rebuilder.cancel()
    except OSError as error:
        world.say(f'idle: {error}')
    world.started.rebuilder.thaw()


async def _rot(world: World, number: int, block: int) -> None:
    """A block changes on one medium, without a word; a read may return either until it is `mended`."""
    world.rot(f'd{number}', block)


async def _found(world: World) -> None:
    """The scrub that has ended names every place that has rotted, and no other."""
    assert world.started
    listed = [place.offset for place in world.started.rebuilder.scrub.state.listed]
    if listed != [chunk * CHUNK for chunk in sorted(world.rotted)]:
        raise Violation('scrub', f'chunks {sorted(world.rotted)} have rotted, a scrub names bytes {listed}')


async def _mended(world: World) -> None:
    """From now on nobody may see what has rotted."""
    world.mended()


async def _quiet(world: World) -> None:
    """Wait until nothing is left to resync, recover or scrub, in bounded virtual time."""
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
    assert world.started
    return spares or doubtful or world.started.rebuilder.scrub.ready


async def _both(world: World, *operations: Operation) -> None:
    """Several operations at once."""
    world.beside += 1
    async with trio.open_nursery() as nursery:
        for operation in operations:
            nursery.start_soon(perform, world, operation)
    world.beside -= 1


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
    if f'd{number}' in world.disks:
        world.disks[f'd{number}'].departed = 'is gone'


async def _appear(world: World, number: int) -> None:
    world.gone.discard(f'd{number}')
    if f'd{number}' in world.disks:
        world.disks[f'd{number}'].departed = ''


async def _exchange(world: World, number: int) -> None:
    """A disk that is not in use is replaced by its copy while the volume runs."""
    RESTING['old'](world, number)


async def _bad(
    world: World, number: int, kind: str, block: int, count: int = 1, *, beside: bool = False
) -> None:
    """Blocks of a disk cannot be read (kind ``read``) or written (``write``).

    Not where another's are bad, but with `beside`.
    """
    base = world.layout.data_offset // BLOCK
    pages = {base + at for at in range(block, block + count)}
    disk = world.disks.get(f'd{number}')
    others = (other.spoiled for other in world.disks.values() if other is not disk)
    if disk and (beside or pages.isdisjoint(set().union(*others))):
        disk.spoil(kind, pages)
        world.troubled = True


async def _bad_too(world: World, number: int, kind: str, block: int, count: int = 1) -> None:
    await _bad(world, number, kind, block, count, beside=True)


async def _list(world: World, slot: int, block: int, count: int = 1) -> None:
    """The admin says that blocks of a leg are bad."""
    disk = world.disks.get(f'd{slot}')
    if disk is None:
        return
    base = world.layout.data_offset // BLOCK + block
    disk.spoiled.update(range(base, base + count))
    world.troubled = True

    async def verb(word: str) -> None:
        await world.admin.list_bad(slot, block * SECTORS, count * SECTORS)

    await _admin(world, verb, slot)


async def _copy(world: World, number: int) -> None:
    RESTING['save'](world, number)


async def _check(world: World, how: str = 'reads') -> None:
    """After a start: every block is what was promised, reads agree, all legs at hand end equal.

    ``reads`` come before resync has ended, ``resync`` is awaited first.
    """
    if how == 'resync':
        await _quiet(world)
    await _look(world)
    began = world.model.tick()
    first = await _read_all(world)
    for block, seen in enumerate(first):
        if seen is not None:
            world.checkers.promised(block, began, seen)
    await _quiet(world)
    world.checkers.equal()
    await _welcome_back(world)
    began = world.model.tick()
    for block, seen in enumerate(await _read_all(world)):
        if seen is not None:
            world.checkers.promised(block, began, seen)
    world.checkers.equal()
    await _flush(world)
    for block, seen in enumerate(first):
        if seen is not None:
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
            place = str(world.volume.record.place(slot))
            split = world.volume.record.slots[slot].state is LegState.SPLIT
            await (world.admin.merge(place) if split else world.admin.re_add(place))
        except Refused as refusal:
            if slot in keeper.members:  # it has come back by itself
                await _quiet(world)
                continue
            if apart and refusal.errno == errno.EINVAL:
                continue
            raise Violation('operator', f'slot {slot} may not come back: {refusal}') from refusal
        if apart:
            raise Violation('strangers', f'{name} was changed apart and is overwritten without a word')
        await _quiet(world)
        failfast = world.volume.record.slots[slot].failfast and world.disks[name].spoiled
        if slot not in keeper.counting and not failfast:
            raise Violation('operator', f'slot {slot} did not come back: {world.events[-5:]}')


async def _read_all(world: World) -> list[list[int] | None]:
    """Return the tags of every block, read chunk by chunk; None for what bad blocks let nobody read."""
    found: list[list[int] | None] = []
    for chunk in range(world.chunks):
        try:
            data = bytes(await world.port.read(chunk * CHUNK, CHUNK))
        except OSError:
            if not world.checkers.spoiled(chunk):
                raise
            blocks = range(chunk * CHUNK_BLOCKS, (chunk + 1) * CHUNK_BLOCKS)
            found.extend([await _read_block(world, block) for block in blocks])
        else:
            found.extend(tags(data[at : at + BLOCK]) for at in range(0, CHUNK, BLOCK))
    return found


async def _read_block(world: World, block: int) -> list[int] | None:
    try:
        return tags(bytes(await world.port.read(block * BLOCK, BLOCK)))
    except OSError:
        world.checkers.made['bad'] += 1
        return None


RUNNING: dict[str, Callable[..., Awaitable[None]]] = {
    'write': _write,
    'write-sync': _write_sync,
    'burst': _burst,
    'read': _read,
    'flush': _flush,
    'discard': _discard,
    'zeroes': _zeroes,
    'zeroes-sync': _zeroes_sync,
    'fail': _fail,
    'readd': _readd,
    'remove': _remove,
    'add': _add,
    'spare': _spare,
    'shared': _shared,
    'unshared': _unshared,
    'replace': _replace,
    'split': _split,
    'look': _look,
    'merge': _merge,
    'flag': _flag,
    'block': _block,
    'raid-disks': _raid_disks,
    'backlog': _backlog,
    'grow': _grow,
    'quorum': _quorum,
    'detect-zeroes': _detect_zeroes,
    'log': _log,
    'sweep': _sweep,
    'scrub': _scrub,
    'repair': _repair,
    'idle': _idle,
    'rot': _rot,
    'found': _found,
    'mended': _mended,
    'sleep': _sleep,
    'quiet': _quiet,
    'both': _both,
    'then': _then,
    'hang': _hang,
    'release': _release,
    'vanish': _vanish,
    'appear': _appear,
    'copy': _copy,
    'bad': _bad,
    'bad-too': _bad_too,
    'list': _list,
    'exchange': _exchange,
    'check': _check,
}
