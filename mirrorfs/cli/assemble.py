"""assemble and resolve: definitions from legs alone, and the way out of a split brain."""

import errno
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import click
import trio

from mirrorfs import atrest
from mirrorfs.cli import complete
from mirrorfs.cli.common import EXIT_REFUSED, POOL, VOLUME, Target, find, no_volume
from mirrorfs.cli.manner import manner, say
from mirrorfs.cli.progress import Pulse
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.leg.opening import FileOpener
from mirrorfs.leg.scanning import scan
from mirrorfs.mirror.rebuilding import UNCHANGED, Claim, Rebuilt, rebuild
from mirrorfs.mirror.splitbrain import SplitBrain
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.units import format_size
from mirrorfs.volume.creation import check_name
from mirrorfs.volume.lifecycle import Settings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided of one volume."""

    name: str
    uuid: UUID
    rebuilt: Rebuilt | None
    refusal: str = ''


@click.command()
@POOL
@click.argument('legs', nargs=-1, required=True, metavar='LEG…', type=click.Path())
@click.option('-r', '--recursive', is_flag=True, help='search folders below folders, too')
@click.option(
    '--force', is_flag=True, help='go on without legs that are gone for ever; what only they have is lost'
)
@click.option('-n', '--dry-run', is_flag=True, help='show what would be done')
@click.option('--json', 'as_json', is_flag=True, help='for programs')
def assemble(
    pool: str, legs: tuple[str, ...], recursive: bool, force: bool, dry_run: bool, as_json: bool
) -> int:
    """Rebuild definitions of POOL from its legs, or bring their paths up to date.

    LEG is a file, a block device, or a folder to search.  The pool must not be mounted; a new directory
    becomes one.  Legs are told by UUID; a definition that is there keeps all but its paths.

    \b
    mirrorfs assemble /srv/pool /mnt/a /mnt/b/disk.leg
    """
    target = find(pool, new=True)
    directory = _at_rest(target)
    known: dict[str, VolumeRecord] = {}
    if directory.exists():
        target.hold()
        known, _ = directory.load()
    with Pulse('looking for legs'):
        outcomes = plan(legs, known, recursive=recursive, force=force)
    if not dry_run and any(outcome.rebuilt for outcome in outcomes):
        if not directory.exists():
            directory.make()
            target.hold()
        outcomes = [_save(directory, outcome) for outcome in outcomes]
    if as_json:
        click.echo(json.dumps([_facts(outcome) for outcome in outcomes], indent=1))
    for outcome in outcomes:
        if outcome.refusal:
            click.echo(f'mirrorfs: {outcome.refusal}', err=True)
        elif not as_json:
            click.echo('\n'.join(_lines(outcome)))
    return EXIT_REFUSED if any(outcome.refusal for outcome in outcomes) else 0


def _at_rest(target: Target) -> PoolDirectory:
    """Return the directory of a pool that is not mounted.  Raises Refused(EBUSY)."""
    if target.mountpoint:
        path = target.directory.path
        raise Refused(errno.EBUSY, f'{path} is mounted on {target.mountpoint}; unmount it first')
    return target.directory


def plan(
    paths: Sequence[str], known: Mapping[str, VolumeRecord], *, recursive: bool, force: bool
) -> list[Outcome]:
    """Decide what becomes of every volume whose legs are found.  Raises Refused where there is none."""
    claims: dict[UUID, list[Claim]] = defaultdict(list)
    legs, spares = scan(paths, recursive=recursive)
    for spare in spares:
        what = f'a shared spare of pool {spare.mark.pool}, no leg of a volume'
        click.echo(f'mirrorfs: {spare.path} is {what}', err=True)
    for seen in legs:
        sup = seen.sup
        claims[sup.record.uuid].append(Claim(seen.path, sup.slot, sup.leg, sup.record))
    if not claims:
        raise Refused(errno.ENOENT, f'no leg was found at {", ".join(paths)}')
    by_uuid = {record.uuid: record for record in known.values()}
    outcomes = []
    for uuid, theirs in claims.items():
        name = theirs[0].record.name
        try:
            rebuilt = rebuild(theirs, by_uuid.get(uuid), force=force)
            name = rebuilt.record.name
            check_name(name)
            outcomes.append(Outcome(name, uuid, rebuilt))
        except Refused as refusal:
            outcomes.append(Outcome(name, uuid, None, str(refusal)))
    return [_refuse_clash(outcome, outcomes, known) for outcome in outcomes]


def _refuse_clash(outcome: Outcome, all_: Sequence[Outcome], known: Mapping[str, VolumeRecord]) -> Outcome:
    others = {other.uuid for other in all_ if other.name == outcome.name and other.rebuilt}
    if outcome.name in known:
        others.add(known[outcome.name].uuid)
    if outcome.name in known and known[outcome.name].uuid == outcome.uuid:
        return outcome  # it has the name already
    others.discard(outcome.uuid)
    if not others or not outcome.rebuilt:
        return outcome
    other = ', '.join(map(str, others))
    clash = (
        f'{outcome.name}: two volumes have this name: {outcome.uuid} and {other}; name the legs of one only'
    )
    return Outcome(outcome.name, outcome.uuid, None, clash)


def _save(directory: PoolDirectory, outcome: Outcome) -> Outcome:
    """Have a definition durable; start the volume once where who was given up must be recorded."""
    rebuilt = outcome.rebuilt
    if not rebuilt or rebuilt.change == UNCHANGED:
        return outcome
    try:
        directory.save_now(rebuilt.record)
        if rebuilt.given_up:
            trio.run(_settle, directory, rebuilt.record, rebuilt.forced, '')
    except (Refused, OSError) as error:
        return Outcome(outcome.name, outcome.uuid, None, f'{outcome.name}: {error}')
    return outcome


async def _settle(directory: PoolDirectory, record: VolumeRecord, force: bool, keep: str) -> VolumeRecord:
    return await atrest.settle(directory, record, FileOpener(), Settings(), force=force, keep=keep)


def _facts(outcome: Outcome) -> dict[str, Any]:
    facts: dict[str, Any] = {'name': outcome.name, 'uuid': str(outcome.uuid), 'refusal': outcome.refusal}
    if outcome.rebuilt:
        record, rebuilt = outcome.rebuilt.record, outcome.rebuilt
        facts |= {
            'change': rebuilt.change,
            'size': record.size,
            'events': record.events,
            'given_up': rebuilt.given_up,
            'strangers': list(rebuilt.strangers),
            'legs': [
                {'slot': n, 'state': slot.state.word, 'path': slot.path, 'found': n in rebuilt.legs}
                for n, slot in enumerate(record.slots)
                if slot.state is not LegState.VACANT
            ],
        }
    return facts


def _lines(outcome: Outcome) -> list[str]:
    facts = _facts(outcome)
    lines = [f'{facts["name"]}: {facts["change"]}, {format_size(facts["size"])}, events {facts["events"]}']
    for leg in facts['legs']:
        where = leg['path'] if leg['found'] else f'not at hand ({leg["path"] or "its path is not known"})'
        lines.append(f'  leg {leg["slot"]}: {leg["state"]:<8} {where}')
    lines += [f'  {path}: none of its legs any more' for path in facts['strangers']]
    if facts['given_up']:
        lines.append(f'  given up: {facts["given_up"]}')
    return lines


@click.command(epilog='LEG is a slot number, a path, or the start of a UUID.')
@POOL
@VOLUME
@click.option(
    '--keep', metavar='LEG', shell_complete=complete.legs,
    help='go on from this leg; without it, the sides are shown',
)  # fmt: skip
def resolve(pool: str, name: str, keep: str | None) -> None:
    """End the split brain of a volume: choose the leg that it goes on from.

    What the other side has is kept as it is until its legs are overwritten: remove, then add --force.

    \b
    mirrorfs resolve /srv/pool vm1            shows the sides
    mirrorfs resolve /srv/pool vm1 --keep 0
    """
    target = find(pool)
    word = os.path.abspath(keep) if keep and '/' in keep else keep or ''
    resolve_there = _resolve_mounted if target.mountpoint else _resolve_at_rest
    sides = resolve_there(target, name, word)
    if word:
        say(f'{name}: goes on from leg {keep}')
    elif manner().json:
        manner().facts['sides'] = sides
    else:
        click.echo('\n'.join(sides or ['none']))


def _resolve_mounted(target: Target, name: str, word: str) -> list[str]:
    """Choose a leg; or return the sides to choose from, a line each."""
    mounted = target.require_mounted()
    if word:
        mounted.volume_command(name, 'resolve', 'keep', word)
        return []
    mounted.volume(name)
    said = (mounted.control / 'volumes' / name / 'resolve').read_text().splitlines()
    return [] if said == ['none'] else said


def _resolve_at_rest(target: Target, name: str, word: str) -> list[str]:
    """As `_resolve_mounted`."""
    directory = target.directory
    target.hold()
    records, damaged = directory.load()
    if name in damaged:
        raise Refused(errno.EIO, damaged[name])
    if name not in records:
        raise no_volume(name, records, directory.path)
    if word:
        trio.run(_settle, directory, records[name], False, word)
        return []
    split = trio.run(atrest.split_of, directory, records[name], FileOpener(), Settings())
    return list(split.lines()) if isinstance(split, SplitBrain) else []
