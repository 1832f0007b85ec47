"""One operation on several legs at once: how long each has, in virtual time; and what goes to one at once."""

import errno
import uuid
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from mirrorfs import limits
from mirrorfs.errors import LegTimeout
from mirrorfs.leg.base import Buffer
from mirrorfs.metadata import wibm
from mirrorfs.mirror.behind import Backlog
from mirrorfs.mirror.fanout import GRACE, Failures, fan_out
from mirrorfs.mirror.member import Member
from mirrorfs.sim.crashleg import CrashDisk, CrashLeg

PATIENCE = 30.0
LAYOUT = wibm.new_layout(1 << 20, 1 << 16)
Operate = Callable[[Member], Awaitable[None]]


def members(*failfast: bool) -> list[Member]:
    made = []
    for slot, flag in enumerate(failfast):
        leg = CrashLeg(CrashDisk(f'd{slot}', 1 << 22))
        made.append(Member(slot, leg, uuid.UUID(int=slot), LAYOUT, 1))
        made[-1].failfast = flag
    return made


def taking(*seconds: float) -> Operate:
    """An operation that takes so long on each leg."""

    async def operate(member: Member) -> None:
        await trio.sleep(seconds[member.slot])

    return operate


def timed(made: list[Member], in_sync: list[int] | None, operate: Operate) -> tuple[float, Failures]:
    """Return the virtual seconds that it takes, and what failed."""

    async def main() -> tuple[float, Failures]:
        began = trio.current_time()
        failures = await fan_out(made, in_sync, operate, PATIENCE)
        return trio.current_time() - began, failures

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ('failfast', 'seconds', 'takes', 'late'),
    [
        ((False, False), (0.1, 0.2), 0.2, []),
        ((False, False), (0.1, 99), PATIENCE, [1]),
        ((False, True), (0.1, 99), limits.FAILFAST_TIMEOUT + 0.1, [1]),
        ((False, True), (0.1, 0.9), 0.9, []),
        ((False, True, False), (0.1, 99, 5), 5, [1]),
        ((False, True, False), (0.1, 99, 99), PATIENCE, [1, 2]),
        ((False, False), (40, 99), 40 + GRACE, [1]),
        ((True, True), (5, 7), 5 + limits.FAILFAST_TIMEOUT, [1]),
    ],
)
def test_a_leg_has_its_time_once_another_in_sync_is_done(
    failfast: tuple[bool, ...], seconds: tuple[float, ...], takes: float, late: list[int]
) -> None:
    made = members(*failfast)
    took, failures = timed(made, [0, 1, 2], taking(*seconds))
    assert took == pytest.approx(takes)
    assert sorted(failures) == late
    assert all(isinstance(failure, LegTimeout) for failure in failures.values())


def test_failfast_is_ignored_on_the_last_leg_in_sync() -> None:
    took, failures = timed(members(True), [0], taking(99))
    assert (took, failures) == (99, {})


def test_where_the_data_come_from_elsewhere_nobody_is_waited_for() -> None:
    took, failures = timed(members(True, False), None, taking(99, 99))
    assert took == PATIENCE
    assert sorted(failures) == [0, 1]


def test_an_error_is_no_witness() -> None:
    async def operate(member: Member) -> None:
        if not member.slot:
            raise OSError(errno.EIO, 'no')
        await trio.sleep(50)

    took, failures = timed(members(False, True), [0, 1], operate)
    assert took == 50
    assert sorted(failures) == [0]


async def test_writes_behind_that_share_a_page_are_never_under_way_at_once() -> None:
    page, under_way, most = limits.PAGE, set[int](), [0]

    async def write(offset: int, data: Buffer) -> None:
        pages = set(range(offset // page, -(-(offset + len(data)) // page)))
        assert not under_way & pages
        under_way.update(pages)
        most[0] = max(most[0], len(under_way))
        await trio.sleep(0.001)
        under_way.difference_update(pages)

    backlog = Backlog(write, 100)
    async with trio.open_nursery() as nursery:
        for offset, length in (
            (0, 512),
            (512, 512),
            (page, 1),
            (page - 1, 2),
            (9 * page, page),
            (20 * page, 7),
        ):
            await backlog.put(offset, bytes(length))
        nursery.start_soon(backlog.run)
        await backlog.drained()
        nursery.cancel_scope.cancel()
    assert most[0] > 2, 'those that share none are'
