"""One operation on several legs at once, with deadlines; and what its failures mean.

A leg that is late is given up only when another in-sync leg has done the operation: when all stall alike (a
frozen or full shared filesystem) the caller waits with them.
"""

import errno
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from mirrorfs import limits
from mirrorfs.errors import LegTimeout
from mirrorfs.mirror.member import Member

Failures = dict[int, OSError]
"""Slot number to what went wrong there."""
GRACE = 1.0
"""Seconds that a late leg has at least, once another in-sync leg has done the operation."""
_PENDING = OSError()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done: legs to expel, and an error for the caller.

    With an error only legs are expelled that are late: what they were told may land at any time.
    """

    expel: Mapping[int, OSError]
    error: OSError | None = None


def judge(
    members: Sequence[Member], in_sync: Sequence[int], failures: Failures, *, shared_full: bool = True
) -> Verdict:
    """Decide what failures mean.  Pure.

    If no in-sync leg succeeded, or a filesystem that several legs share is full for some of them, it is not
    the legs that are at fault: the caller gets the error.  Without `shared_full` the latter is no excuse:
    a failed flush has lost data on that leg, whatever the reason.
    """
    if not failures:
        return Verdict({})
    good = [member for member in members if member.slot not in failures]
    if not any(member.slot in in_sync for member in good):
        mine = [failures[slot] for slot in in_sync if slot in failures] or list(failures.values())
        return Verdict({}, mine[0])
    if not shared_full:
        return Verdict(failures)
    full = {m.leg.sharing for m in members if m.slot in failures and _is_full(failures[m.slot])} - {None}
    if any(member.leg.sharing in full for member in good):
        late = {slot: error for slot, error in failures.items() if isinstance(error, LegTimeout)}
        return Verdict(late, next(error for error in failures.values() if _is_full(error)))
    return Verdict(failures)


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


async def fan_out(
    members: Sequence[Member],
    in_sync: Sequence[int] | None,
    operate: Callable[[Member], Awaitable[None]],
    patience: float,
) -> Failures:
    """Run `operate` on all members at once; return what failed, late legs among them.

    `patience` in seconds, for legs that are late when one of `in_sync` is done; with None for all legs,
    as when the data come from another leg, which is witness enough.  A failfast leg has FAILFAST_TIMEOUT at
    most.  A late call is abandoned: it stays counted in the leg's `calls`.
    """
    results: dict[int, OSError | None] = {}
    news = trio.Event()

    async def one(member: Member) -> None:
        try:
            await operate(member)
        except OSError as error:
            results[member.slot] = error
        else:
            results[member.slot] = None
        news.set()

    start = trio.current_time()
    witnessed = None if in_sync is not None else start
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(one, member)
        while len(results) < len(members):
            deadline = math.inf
            if witnessed is None and any(results.get(slot, _PENDING) is None for slot in in_sync or ()):
                witnessed = trio.current_time()
            if witnessed is not None:
                late = [_patience(member, patience) for member in members if member.slot not in results]
                deadline = max(max(start + most, witnessed + min(GRACE, most)) for most in late)
            if deadline <= trio.current_time():
                break
            news = trio.Event()
            with trio.move_on_at(deadline):
                await news.wait()
        nursery.cancel_scope.cancel()
    failures = {slot: error for slot, error in results.items() if error is not None}
    for member in members:
        if member.slot not in results:
            most = _patience(member, patience)
            failures[member.slot] = LegTimeout(f'{member.leg.path} did not answer within {most:g} s')
    return failures


def _patience(member: Member, patience: float) -> float:
    return min(patience, limits.FAILFAST_TIMEOUT) if member.failfast else patience
