"""Reports to the service manager while the daemon runs: signs of life, and how the volumes are in one line.

A sign of life comes from trio's thread, once a round of the loop below.  It proves that trio's loop turns
(which answers for names, attributes, control files and every slow request), that it gets through all volumes,
and that the thread of the data lane has not ended.  A lane that hangs in a leg is no matter for the service
manager: the gateway, on the same loop, replaces it within a second.  Nor is it whether legs answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from mirrorfs import limits
from mirrorfs.fs.notify import ServiceManager
from mirrorfs.pool import Entry
from mirrorfs.units import format_duration

_EVERY = 1.0
_NAMED = 3
"""So many volumes are named; of others there is the number."""
_AT_ONCE = 32
"""Volumes looked at before others have their turn."""


@dataclass(frozen=True, slots=True)
class Glance:
    """How one volume is.  `missing`: legs; `pass_`: what is under way, as ``recover 45%, 2m03s left``."""

    name: str
    runs: bool = True
    missing: int = 0
    pass_: str = ''


def glance(entry: Entry, now: float) -> Glance:
    """Look at a volume; `now` on trio's clock."""
    if not entry.started or entry.started.volume.broken:
        return Glance(entry.name, runs=False)
    volume, progress = entry.started.volume, entry.started.rebuilder.progress
    missing = volume.record.raid_disks - len(volume.keeper.counting)
    under_way = ''
    if progress:
        under_way = f'{progress.action} {progress.percent}%'
        if (speed := progress.speed(now)) >= 1:
            under_way += f', {format_duration((progress.total - progress.done) / speed)} left'
    return Glance(entry.name, missing=missing, pass_=under_way)


def summary(glances: Sequence[Glance]) -> str:
    """Return the line: how many volumes there are, and which of them are not as they should be."""
    parts = [f'{len(glances)} volume{"" if len(glances) == 1 else "s"}']
    stopped = [each.name for each in glances if not each.runs]
    degraded = [each.name for each in glances if each.runs and each.missing > 0]
    parts += [f'{len(names)} {word} ({_some(names)})'
              for word, names in (('not running', stopped), ('degraded', degraded)) if names]  # fmt: skip
    if glances and len(parts) == 1:
        parts = [f'{parts[0]}, all legs in sync']
    under_way = [f'{each.name}: {each.pass_}' for each in glances if each.pass_]
    return '; '.join([*parts, *under_way[:_NAMED]])[: limits.STATUS_LINE_MAX]


def _some(names: Sequence[str]) -> str:
    more = [f'{len(names) - _NAMED} more'] if len(names) > _NAMED else []
    return ', '.join([*names[:_NAMED], *more])


async def report(
    manager: ServiceManager, volumes: Callable[[], Iterable[Entry]], serving: Callable[[], bool]
) -> None:
    """Report for ever: the line when it has changed, a sign of life while `serving`."""
    said = ''
    every = min(_EVERY, manager.watchdog or _EVERY)
    while True:
        line = await _look(volumes())
        if line != said and manager.tell(f'STATUS={line}'):
            said = line
        if manager.watchdog and serving():
            manager.tell('WATCHDOG=1')
        await trio.sleep(every)


async def _look(entries: Iterable[Entry]) -> str:
    glances = []
    for number, entry in enumerate(list(entries)):
        if number % _AT_ONCE == _AT_ONCE - 1:
            await trio.sleep(0)
        glances.append(glance(entry, trio.current_time()))
    return summary(glances)
