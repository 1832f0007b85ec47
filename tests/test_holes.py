"""When a discarded chunk counts as zeros: not before all legs have flushed the hole that it is now."""

import uuid
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import trio
from crashtools import B, World, simulate

from mirrorfs import limits
from mirrorfs.intent.log import IntentLog
from mirrorfs.intent.states import UNWRITTEN, UNZEROED
from mirrorfs.limits import HOLES_DELAY
from mirrorfs.sim.crashleg import Call
from mirrorfs.sim.resting import RESTING
from mirrorfs.volume.holes import Holes
from mirrorfs.volume.volume import Volume

Test = Callable[[World, Volume], Awaitable[None]]


def simulated(test: Test, *, litter: bool = False) -> None:
    """Run a test on a volume whose first chunk is written; `litter`: disk 2 has garbage that stays."""

    async def main() -> None:
        world = World(3, 2, 0)
        await world.make()
        if litter:
            RESTING['litter'](world, 2)
        async with world.running() as volume:
            await world.do(('write', 0, B))
            await world.do(('flush',))
            await test(world, volume)

    simulate(main, 0, 'holes')


async def during_the_flush_of_holes(world: World, act: Callable[[], Awaitable[None]]) -> None:
    """Discard the first chunk; have something done when one leg has flushed its hole, the other not yet.

    Returns just after that flush: the next one of holes is far off.
    """
    real, first, acting, over = world.hook, list[str](), trio.Event(), trio.Event()

    async def hook(call: Call) -> None:
        if call.kind != 'flush' or acting.is_set() or call.disk in first:
            return await real(call)
        if not first:
            first.append(call.disk)
            return await real(call)
        acting.set()
        await act()
        await real(call)
        over.set()
        return None

    await world.do(('discard', 0, B))
    for member in world.volume.members:
        member.leg._hook = hook  # type: ignore[attr-defined]
    await over.wait()
    await trio.sleep(HOLES_DELAY / 10)


def test_a_hole_counts_once_it_was_flushed() -> None:
    async def test(world: World, volume: Volume) -> None:
        await world.do(('discard', 0, B))
        assert volume.log.states[0] == UNWRITTEN | UNZEROED
        await trio.sleep(0.2)
        assert volume.log.states[0] == UNWRITTEN

    simulated(test)


def test_what_was_punched_before_the_last_discard_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that begins in between would say nothing of the last hole."""
    monkeypatch.setattr(limits, 'HOLES_DELAY', 1e6)

    async def test(world: World, volume: Volume) -> None:
        await world.do(('discard', 0, B))
        await world.do(('write', 0, B))
        await world.do(('discard', 0, B))
        assert volume.holes._punched == [(0, 0)]

    simulated(test)


async def test_what_is_discarded_during_the_flush_does_not_count_after_it() -> None:
    log = IntentLog(uuid.uuid4(), np.full(4, UNWRITTEN | UNZEROED, np.uint8), 0)

    async def flush() -> None:
        holes.forget(1, 1)

    holes = Holes(cast(Volume, SimpleNamespace(log=log, members=[], flush=flush)))
    for chunk in (0, 1):
        holes.punched(chunk, chunk, [])
    await holes.flush()
    assert log.states.tolist() == [UNWRITTEN, *[UNWRITTEN | UNZEROED] * 3]


def test_a_leg_with_garbage_that_joins_during_the_flush_makes_holes_count_no_more() -> None:
    async def test(world: World, volume: Volume) -> None:
        await during_the_flush_of_holes(world, lambda: world.do(('add', 2)))
        assert len(volume.members) == 3
        assert all(state == UNWRITTEN | UNZEROED for state in volume.log.states.tolist())

    simulated(test, litter=True)
