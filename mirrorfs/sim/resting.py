"""What is done to disks and the pool of a world that does not run; `verbs` has what is done while it does.

An operation is a tuple: a name from `RESTING`, then its arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.intent.states import UNWRITTEN
from mirrorfs.limits import SECTOR
from mirrorfs.metadata import wibm
from mirrorfs.mirror.rebuilding import Claim, rebuild
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.sim.checkers import (
    CHUNK,
    CHUNK_BLOCKS,
    apart,
    best_super,
    decode_super,
    is_list,
    log_header,
    mark_of,
    newest_on,
)
from mirrorfs.sim.crashleg import CrashDisk, keep_all
from mirrorfs.sim.model import BLOCK, tags
from mirrorfs.sim.violation import Violation
from mirrorfs.sim.world import World

Operation = tuple[Any, ...]
DESTRUCTIVE = {'old', 'foreign', 'shrink', 'corrupt'}


def prepare(world: World, operation: Operation) -> None:
    """Do something to the disks or the pool of a world that does not run.

    What would destroy the last good copy is left out: every run must end well.
    """
    name, *arguments = operation
    if name in DESTRUCTIVE and not _spared(world, f'd{arguments[0]}'):
        return
    if name == 'assemble' and _log_is_outside(world):
        return  # legs do not know where it is: without the pool it is lost, which is no more than costly
    world.tally[name] += 1
    world.trace.append(f'= {" ".join(str(word) for word in operation)}')
    RESTING[name](world, *arguments)


def _log_is_outside(world: World) -> bool:
    said = [world.pool, *(sup.record for sup in map(best_super, world.disks.values()) if sup)]
    return any(record.log_is_outside for record in said)


def _spared(world: World, victim: str) -> bool:
    """Whether a disk is there, and another one has all that was ever acknowledged."""
    others = (name for name in world.disks if name != victim and world.checkers.is_current(name))
    return victim in world.disks and any(others)


def _away(world: World, *numbers: int) -> None:
    """Just these disks are missing at the next start.  One whose log has rotted needs the others."""
    serials = {name: world.checkers.log_serial(disk) for name, disk in world.disks.items()}
    world.rotten = {name for name in world.rotten if serials.get(name, 0) < max(serials.values())}
    if world.rotten <= {f'd{number}' for number in numbers}:
        world.away = {f'd{number}' for number in numbers}


def _swap(world: World, one: int, other: int) -> None:
    """Two disks change places: each is found at the other's path."""
    first, second = f'd{one}', f'd{other}'
    for marks in (
        world.tainted,
        world.foreign,
        world.apart,
        world.settled,
        world.unreadable,
        world.rotten,
    ):
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
    if name in world.saved and name not in world.shared and not _undetectable(world, name):
        before, world.disks[name] = world.disks[name], world.saved[name].cut(keep_all)
        if before.digest() != world.disks[name].digest():
            world.tainted.add(name)


def _undetectable(world: World, name: str) -> bool:
    """Whether a saved log outside the legs is of the very session: nothing but its marks would tell it."""
    before, now = (log_header(disks[name].durable) for disks in (world.saved, world.disks))
    return before is not None and now is not None and (before.log, before.serial) == (now.log, now.serial)


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


def _stranger(world: World, number: int) -> None:
    """Somebody else's disk lies where a shared spare was."""
    name = f'd{number}'
    if name in world.shared and mark_of(world.disks[name].durable) and not best_super(world.disks[name]):
        world.disks[name] = CrashDisk(name, world.disks[name].size)
        world.fill_with_garbage(world.disks[name], 0)
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
    """Some bytes of one copy of a superblock (page 0, 1), the log (2, 3) or the bad-block list (4, 5) rot."""
    disk = world.disks[f'd{number}']
    lists = [world.layout.bad_blocks_offset(copy) or 0 for copy in (0, 1)]
    logs = [world.layout.page_offset(0, copy) for copy in (0, 1)]
    at = [*wibm.SUPER_OFFSETS, *logs, *lists][page] + first
    if any(write.offset < at + count and at < write.end for write in disk.pending):
        return  # what waits to be written would mend it
    for medium in (disk.durable, disk.visible):
        medium.write(at, bytes(byte ^ mask for byte in medium.read(at, count)))
    if page in (2, 3):
        world.rotten.add(disk.name)
    if not any(decode_super(disk.durable.read(offset, wibm.PAGE)) for offset in wibm.SUPER_OFFSETS):
        world.unreadable.add(disk.name)
    if not any(is_list(disk.durable.read(offset, wibm.PAGE)) for offset in lists):
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


def _resolve(world: World, number: int) -> None:
    """The admin keeps a disk, if the next start finds that legs grew apart."""
    world.keep = number


def _assemble(world: World, force: str = '') -> None:
    """The pool's definition is lost, and made anew from the disks at hand.

    Where that is refused the old one turns up again.  Without the pool nobody can tell an old copy of a disk.
    """
    if world.tainted | world.foreign | world.unreadable | world.apart | world.rotten:
        return
    lost = world.pool_seen
    at_hand = sorted(world.disks.keys() - world.away)
    found = [(name, newest_on(world.disks[name].visible)) for name in at_hand]
    sups = {name: sup for name, sup in found if sup and sup.record.uuid == lost.uuid}
    claims = [Claim(f'/sim/{name}', sup.slot, sup.leg, sup.record) for name, sup in sups.items()]
    world.checkers.made['operator'] += 1
    try:
        rebuilt = rebuild(claims, force=bool(force)) if claims else None
    except Refused as refusal:
        world.say(f'refused: {refusal}')
        if force and not apart(lost, list(sups.values())):
            raise Violation('operator', f'not assembled by force: {refusal}') from refusal
        if _all_agree(world, lost, sups):
            raise Violation('operator', f'not assembled, though all legs are at hand: {refusal}') from refusal
        return
    if rebuilt is None:
        return
    arrive, world.files.arrive = world.files.arrive, lambda kind, length: None
    PoolDirectory('/pool', world.files).save_now(rebuilt.record)
    world.files.arrive = arrive
    world.rebuilt = rebuilt if rebuilt.given_up else None


def _all_agree(world: World, lost: VolumeRecord, sups: Mapping[str, wibm.LegSuper]) -> bool:
    """Whether every leg that the definition knew is at hand, and those in sync are equally new."""
    here = {sup.leg: sup.record for sup in sups.values()}
    members = list(lost.where(LegState.IN_SYNC, LegState.SPARE))
    if apart(lost, list(sups.values())) or any(lost.slots[n].leg not in here for n in members):
        return False
    newest = max((record.events for record in here.values()), default=0)
    return all(here[lost.slots[n].leg].events == newest for n in members)


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
    """Return what is on all disks and in the pool, but for how far a scrub is: it goes on at each start."""
    files = world.files.digest(but='.scrub')
    return files, [(name, disk.digest()) for name, disk in sorted(world.disks.items())]


RESTING: dict[str, Callable[..., None]] = {
    'away': _away,
    'swap': _swap,
    'save': _save,
    'old': _old,
    'foreign': _foreign,
    'stranger': _stranger,
    'shrink': _shrink,
    'corrupt': _corrupt,
    'litter': _litter,
    'lengthen': _lengthen,
    'force': _force,
    'assemble': _assemble,
    'resolve': _resolve,
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
