"""What is wrong with a volume, and what to type next: a table from facts to sentences.  Pure.

The facts are a volume's part of status.json.  `RULES` is in the order of urgency; each rule finds its cases
among the facts, and all that hold are told.
"""

import enum
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mirrorfs.units import format_size

Facts = Mapping[str, Any]
NEARLY_FULL = 64 << 20
"""Bytes below which a filesystem that a leg still grows on is told to be full."""


class Level(enum.IntEnum):
    """How bad a case is."""

    FINE = 0
    BUSY = 1
    """It gets well by itself."""
    WARNING = 2
    DEGRADED = 3
    UNUSABLE = 4
    """It cannot be read, or not be written."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command to type, and when or why; capitals in it are to be filled in."""

    why: str
    command: str


@dataclass(frozen=True, slots=True)
class Advice:
    """A case: how bad it is, what is the matter, and what can be done, the best first."""

    rule: str
    level: Level
    status: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table.  `find` yields what is filled in for ``{…}``, once for each case that there is."""

    name: str
    level: Level
    find: Callable[[Facts], Iterator[Facts]]
    status: str
    steps: tuple[Step, ...] = ()
    at_rest: bool = False
    """Whether the steps are taken while the pool is not mounted."""


def advise(volume: Facts, pool: str, mountpoint: str | None) -> list[Advice]:
    """Return all that is to be said of a volume, the most urgent first.

    `pool`: its directory; `mountpoint`: where it is mounted, None if it is not.
    """
    found = []
    for rule in RULES:
        for case in rule.find(volume):
            values = {**volume, **case, 'pool': pool, 'mountpoint': mountpoint or 'DIR'}
            quoted = {key: shlex.quote(str(value)) for key, value in values.items()}
            steps = tuple(Step(step.why, step.command.format_map(quoted)) for step in rule.steps)
            if mountpoint is None:
                steps = _at_rest(rule, steps, quoted['pool'])
            found.append(Advice(rule.name, rule.level, rule.status.format_map(values), steps))
    return found


def _at_rest(rule: Rule, steps: tuple[Step, ...], pool: str) -> tuple[Step, ...]:
    """Return the steps of a rule for a pool that is not mounted."""
    if rule.at_rest:
        return tuple(step for step in steps if not step.command.startswith('mirrorfs umount '))
    return (Step('mount the pool first', f'mirrorfs mount {pool} DIR'), *steps) if steps else ()


def level(volume: Facts) -> Level:
    """Return how bad the worst case of a volume is."""
    found = [rule.level for rule in RULES if next(rule.find(volume), None) is not None]
    return max(*found, Level.DEGRADED if volume.get('degraded') else Level.FINE, Level.FINE)


# Finding cases

_AWAY = ('faulty', 'missing', 'removed')


def _legs(volume: Facts) -> list[Facts]:
    legs: list[Facts] = volume.get('legs', [])
    return legs


def _recovering(volume: Facts) -> list[Facts]:
    """Return the legs that are being brought up to date; a spare that waits has no mark."""
    return [leg for leg in _legs(volume) if leg['state'] == 'spare' and leg['recovery_start'] is not None]


def _gap(volume: Facts) -> int:
    """Return how many legs are missing that none is on its way for."""
    coming = sum(1 for leg in _recovering(volume) if leg['replaces'] is None)
    return int(volume.get('degraded', 0)) - coming


def _damaged(volume: Facts) -> Iterator[Facts]:
    if volume.get('refusal') and 'uuid' not in volume:
        yield {}


def _split_brain(volume: Facts) -> Iterator[Facts]:
    if volume.get('split'):
        yield {}


def _refused(volume: Facts) -> Iterator[Facts]:
    if volume.get('refusal') and 'uuid' in volume and not volume.get('split'):
        yield {}


def _broken(volume: Facts) -> Iterator[Facts]:
    if volume.get('broken'):
        yield {}


def _without_quorum(policy: str) -> Callable[[Facts], Iterator[Facts]]:
    def find(volume: Facts) -> Iterator[Facts]:
        if volume.get('quorum_lost') and volume['quorum_policy'] == policy:
            yield {'there': max(1, volume['raid_disks'] - volume['degraded'])}

    return find


def _full(volume: Facts) -> Iterator[Facts]:
    for leg in _legs(volume):
        if leg.get('free') is None or leg.get('occupied_max') is None:
            continue
        if leg['free'] < min(NEARLY_FULL, leg['occupied_max'] - leg['occupied']):
            yield {**leg, 'left': format_size(leg['free'])}


def _away(state: str, *, given_up: bool = False) -> Callable[[Facts], Iterator[Facts]]:
    """Find legs that left, and that are missed."""

    def find(volume: Facts) -> Iterator[Facts]:
        for leg in _legs(volume):
            if leg['state'] == state and leg.get('given_up', False) is given_up and _gap(volume) > 0:
                yield {**leg, 'because': f': {leg["why"]}' if leg.get('why') else ''}

    return find


def _succeeded(volume: Facts) -> Iterator[Facts]:
    """Find legs that failed, in whose place another one is, or will be."""
    for leg in _legs(volume):
        if leg['state'] == 'faulty' and _gap(volume) <= 0:
            yield {**leg, 'because': f': {leg["why"]}' if leg.get('why') else ''}


def _too_few(volume: Facts) -> Iterator[Facts]:
    gone = [leg for leg in _legs(volume) if leg['state'] in (*_AWAY, 'split')]
    if not gone and _gap(volume) > 0 and 'uuid' in volume:
        yield {'missing': _gap(volume)}


def _being_recovered(*, degraded: bool) -> Callable[[Facts], Iterator[Facts]]:
    def find(volume: Facts) -> Iterator[Facts]:
        if volume.get('sync_action') != 'frozen' and bool(volume.get('degraded')) is degraded:
            yield from _recovering(volume)

    return find


def _split_off(volume: Facts) -> Iterator[Facts]:
    return (leg for leg in _legs(volume) if leg['state'] == 'split')


def _flagged(flag: str) -> Callable[[Facts], Iterator[Facts]]:
    return lambda volume: (leg for leg in _legs(volume) if flag in leg.get('flags', ()))


def _unreplaced(volume: Facts) -> Iterator[Facts]:
    replaced = {leg['replaces'] for leg in _recovering(volume)}
    return (leg for leg in _flagged('want_replacement')(volume) if leg['slot'] not in replaced)


def _bad(volume: Facts) -> Iterator[Facts]:
    return (leg for leg in _legs(volume) if leg.get('bad_blocks'))


def _erring(volume: Facts) -> Iterator[Facts]:
    for leg in _legs(volume):
        if leg.get('read_errors', 0) + leg.get('write_errors', 0):
            yield leg


def _differing(*, majority: bool) -> Callable[[Facts], Iterator[Facts]]:
    def find(volume: Facts) -> Iterator[Facts]:
        voters = sum(1 for leg in _legs(volume) if leg['state'] == 'in_sync')
        if volume.get('mismatches') and not volume.get('sync') and (voters > 2) is majority:
            places = len(volume['mismatches']) + volume['mismatches_not_listed']
            yield {'places': places, 'right': _right(volume)}

    return find


def _right(volume: Facts) -> str:
    """Return the leg that was of the majority wherever legs differ; a word for one where there is none."""
    for leg in _legs(volume):
        if leg['state'] == 'in_sync' and all(_is_right(leg['slot'], place) for place in volume['mismatches']):
            return str(leg['slot'])
    return 'LEG'


def _is_right(slot: int, place: Facts) -> bool:
    voters = sum(len(group['slots']) for group in place['legs'])
    return any(slot in group['slots'] and 2 * len(group['slots']) > voters for group in place['legs'])


def _log_lost(volume: Facts) -> Iterator[Facts]:
    if volume.get('log_trouble'):
        yield {}


def _doubtful(volume: Facts) -> int:
    return int(volume.get('chunks', {}).get('needs_resync', 0))


def _resync(volume: Facts) -> Iterator[Facts]:
    if _doubtful(volume) and volume.get('sync_action') != 'frozen':
        yield {'doubtful': _doubtful(volume)}


def _frozen(volume: Facts) -> Iterator[Facts]:
    held = [f'{_doubtful(volume)} chunks are to be made equal'] if _doubtful(volume) else []
    held += [f'leg {leg["slot"]} is to be brought up to date' for leg in _recovering(volume)]
    if volume.get('sync_action') == 'frozen' and held:
        yield {'held': ' and '.join(held)}


# The table

_VOLUME = '{pool} {name}'
_LEG = f'{_VOLUME} {{slot}}'
_NEW_LEG = Step('or put a new leg in its place', f'mirrorfs add {_VOLUME} PATH')
_RE_ADD = f'mirrorfs re-add {_LEG}'
_UNMOUNT = Step('stop the pool', 'mirrorfs umount {pool}')
_MOUNT = Step('and start it anew', 'mirrorfs mount {pool} {mountpoint}')
_WAIT = Step('to wait for it', f'mirrorfs wait {_VOLUME}')
_REMOVE = Step('remove it', f'mirrorfs remove {_LEG}')
_OVERWRITE = Step('and have it overwritten', f'mirrorfs add {_VOLUME} {{path}} --force')
_REPLACE = Step('put another leg in its place', f'mirrorfs replace {_LEG} PATH')
_QUORUM = Step('bring a leg back, or let writes go to fewer', f'mirrorfs set {_VOLUME} quorum {{there}}')

RULES = (
    Rule(
        'damaged', Level.UNUSABLE, _damaged,
        'its definition cannot be read',
        (_UNMOUNT, Step('rebuild it from its legs', 'mirrorfs assemble {pool} LEG'), _MOUNT),
        at_rest=True,
    ),
    Rule(
        'split brain', Level.UNUSABLE, _split_brain,
        'its legs were changed apart, and only you can say which side is right',
        (
            Step('see what each side has', f'mirrorfs resolve {_VOLUME}'),
            Step('go on from one, the other is given up', f'mirrorfs resolve {_VOLUME} --keep LEG'),
        ),
    ),
    Rule(
        'refused', Level.UNUSABLE, _refused,
        'it could not be started',
        (
            Step('bring back what is not at hand; stop the pool', 'mirrorfs umount {pool}'),
            _MOUNT,
            Step(
                'or go on from what is here, and lose what was written since',
                'mirrorfs mount {pool} {mountpoint} --force {name}',
            ),
        ),
    ),
    Rule(
        'broken', Level.UNUSABLE, _broken,
        'writes and flushes fail until the pool is mounted anew',
        (_UNMOUNT, _MOUNT),
    ),
    Rule(
        'no quorum, error', Level.UNUSABLE, _without_quorum('error'),
        'writes fail: they need {quorum} legs in sync',
        (_QUORUM,),
    ),
    Rule(
        'no quorum, readonly', Level.UNUSABLE, _without_quorum('readonly'),
        'it is read-only: writes need {quorum} legs in sync',
        (_QUORUM,),
    ),
    Rule(
        'no quorum, wait', Level.UNUSABLE, _without_quorum('wait'),
        'writes wait: they need {quorum} legs in sync',
        (_QUORUM,),
    ),
    Rule(
        'blocked', Level.UNUSABLE, _flagged('blocked'),
        'writes wait, since leg {slot} is blocked',
        (Step('let them go on', f'mirrorfs mark {_LEG} no-blocked'),),
    ),
    Rule(
        'faulty', Level.DEGRADED, _away('faulty'),
        'leg {slot} failed{because}',
        (Step('take it back, which copies what changed', _RE_ADD), _NEW_LEG),
    ),
    Rule(
        'given up', Level.DEGRADED, _away('faulty', given_up=True),
        'leg {slot} was left behind, and keeps what it has of its own until it is overwritten{because}',
        (_REMOVE, _OVERWRITE, _NEW_LEG),
    ),
    Rule(
        'missing', Level.DEGRADED, _away('missing'),
        'leg {slot} is not there{because}',
        (Step('bring it back; if it then stays away', _RE_ADD), _NEW_LEG),
    ),
    Rule(
        'missing, given up', Level.DEGRADED, _away('missing', given_up=True),
        'leg {slot} is not there, and needs everything{because}',
        (Step('bring it back, then', _RE_ADD), _NEW_LEG),
    ),
    Rule(
        'removed', Level.DEGRADED, _away('removed'),
        'leg {slot} was removed, and no other is in its place',
        (Step('take it back, which copies what changed', _RE_ADD), _NEW_LEG),
    ),
    Rule(
        'removed, given up', Level.DEGRADED, _away('removed', given_up=True),
        'leg {slot} was removed, and keeps what it has of its own until it is overwritten',
        (Step('have it overwritten', _OVERWRITE.command), _NEW_LEG),
    ),
    Rule(
        'too few', Level.DEGRADED, _too_few,
        '{missing} of {raid_disks} legs are missing',
        (
            Step('add one', f'mirrorfs add {_VOLUME} PATH'),
            Step('or do with fewer', f'mirrorfs set {_VOLUME} raid_disks COUNT'),
        ),
    ),
    Rule(
        'recovering', Level.DEGRADED, _being_recovered(degraded=True),
        'leg {slot} is being brought up to date',
        (_WAIT,),
    ),
    Rule(
        'full', Level.WARNING, _full,
        'the filesystem of leg {slot} has {left} left: writes that need more will fail',
        (Step('make room there, or put the leg elsewhere', _REPLACE.command),),
    ),
    Rule(
        'frozen', Level.WARNING, _frozen,
        '{held}, which is held up',
        (Step('let it go on', f'mirrorfs set {_VOLUME} sync_action idle'),),
    ),
    Rule(
        'differ', Level.WARNING, _differing(majority=False),
        'legs differ in {places} places, and there are too few to vote on which is right',
        (Step('make all equal to the right one', f'mirrorfs repair {_VOLUME} --source {{right}}'),),
    ),
    Rule(
        'differ, voted', Level.WARNING, _differing(majority=True),
        'legs differ in {places} places',
        (
            Step('rewrite them from what most legs hold', f'mirrorfs repair {_VOLUME}'),
            Step('or from one leg', f'mirrorfs repair {_VOLUME} --source LEG'),
        ),
    ),
    Rule(
        'log lost', Level.WARNING, _log_lost,
        'the intent log is lost ({log_trouble}): an unclean stop now makes equal all that was written',
        (Step('have one on the legs', f'mirrorfs log {_VOLUME} internal'),),
    ),
    Rule(
        'bad blocks', Level.WARNING, _bad,
        'leg {slot} lacks {bad_blocks} blocks of 4096 bytes that its disk cannot keep; others have them',
        (_REPLACE,),
    ),
    Rule(
        'errors', Level.WARNING, _erring,
        'leg {slot} had {read_errors} read and {write_errors} write errors since the start',
        (Step('if there come more', _REPLACE.command),),
    ),
    Rule(
        'replacement wanted', Level.WARNING, _unreplaced,
        'leg {slot} is to be replaced, and no spare is there',
        (Step('name a new leg', _REPLACE.command),),
    ),
    Rule(
        'in another\'s place', Level.WARNING, _succeeded,
        'leg {slot} failed, and another has its place{because}',
        (_REMOVE, Step('and have a spare again', f'mirrorfs add {_VOLUME} PATH --spare')),
    ),
    Rule(
        'split off', Level.BUSY, _split_off,
        'leg {slot} is split off as a point in time',
        (Step('when it is no longer needed', f'mirrorfs merge {_VOLUME}'),),
    ),
    Rule(
        'replacing', Level.BUSY, _being_recovered(degraded=False),
        'leg {slot} is being brought up to date, to replace another',
        (_WAIT,),
    ),
    Rule(
        'resync', Level.BUSY, _resync,
        '{doubtful} chunks are being made equal after an unclean stop or a failed write',
        (_WAIT,),
    ),
    Rule(
        'behind', Level.BUSY, _flagged('behind'),
        'leg {slot} may be some writes behind, as its backlog allows; it catches up by itself',
    ),
)  # fmt: skip
