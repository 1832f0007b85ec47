"""What the intent log costs: how many rounds writers wait for, and when chunks become clean again."""

from collections.abc import Awaitable, Callable

import trio
from crashtools import World, simulate

from mirrorfs.intent.states import DIRTY, UNWRITTEN
from mirrorfs.sim.crashleg import Call
from mirrorfs.sim.world import CHUNK_BLOCKS
from mirrorfs.volume.volume import Volume

CHUNKS = 40


def simulated(test: Callable[[World, Volume], Awaitable[None]], chunks: int = CHUNKS) -> None:
    """Run a test on a fresh volume of two legs, in virtual time."""

    async def main() -> None:
        world = World(chunks=chunks)
        await world.make()
        async with world.running() as volume:
            await test(world, volume)

    simulate(main, 0, 'the cost of the log')


async def quiet_until_clean(world: World, volume: Volume) -> None:
    await world.do(('sweep',))
    assert not volume.log.count(DIRTY)


def test_one_round_serves_all_writers_that_wait_by_then() -> None:
    async def test(world: World, volume: Volume) -> None:
        before = volume.keeper.rounds
        async with trio.open_nursery() as nursery:
            for chunk in range(0, CHUNKS, 2):
                nursery.start_soon(world.do, ('write', chunk * CHUNK_BLOCKS))
        # The session, at most one round that began before all had come, and the one for the rest.
        assert volume.keeper.rounds - before <= 4

    simulated(test)


def test_a_write_to_a_chunk_that_is_dirty_commits_nothing() -> None:
    async def test(world: World, volume: Volume) -> None:
        await world.do(('write', 0))
        before = volume.keeper.rounds
        for block in range(8):
            await world.do(('write', block))
        assert volume.keeper.rounds == before

    simulated(test)


def test_a_sequential_writer_finds_the_next_chunks_marked_and_a_random_one_does_not() -> None:
    async def test(world: World, volume: Volume) -> None:
        for chunk in range(CHUNKS):
            await world.do(('write', chunk * CHUNK_BLOCKS))
        await quiet_until_clean(world, volume)
        before = volume.keeper.rounds
        for chunk in range(CHUNKS):
            await world.do(('write', chunk * CHUNK_BLOCKS))
        assert volume.keeper.rounds - before <= 8, 'look-ahead of 1, 2, 4, 8, … chunks'
        await quiet_until_clean(world, volume)
        before = volume.keeper.rounds
        for chunk in (30, 3, 17, 25, 9):
            await world.do(('write', chunk * CHUNK_BLOCKS))
        assert volume.keeper.rounds - before == 5
        assert volume.log.count(DIRTY) == 5

    simulated(test)


def test_fresh_chunks_that_look_ahead_made_ready_are_never_written_again_if_no_write_comes() -> None:
    async def test(world: World, volume: Volume) -> None:
        before = volume.keeper.rounds
        for chunk in range(7):
            await world.do(('write', chunk * CHUNK_BLOCKS))
        assert volume.keeper.rounds - before <= 5, 'the session, the first, look-ahead of 1, 2, 4 chunks'
        assert volume.seek(0, data=False) > 7 * CHUNK_BLOCKS * 4096
        await quiet_until_clean(world, volume)
        assert volume.seek(0, data=False) == 7 * CHUNK_BLOCKS * 4096
        assert volume.log.count(UNWRITTEN) == CHUNKS - 7

    simulated(test)


def test_chunks_become_clean_after_time_base_in_one_batch_and_after_a_flush_of_every_leg() -> None:
    calls: list[Call] = []

    async def test(world: World, volume: Volume) -> None:
        for chunk in range(10):
            await world.do(('write', chunk * CHUNK_BLOCKS))
        await trio.sleep(volume.record.time_base_ms / 1000 * 0.5)
        assert volume.log.count(DIRTY) >= 10, 'cleared before it was quiet for time_base'
        real = world.hook

        async def hook(call: Call) -> None:
            calls.append(call)
            await real(call)

        for member in volume.members:
            member.leg._hook = hook  # type: ignore[attr-defined]
        before = volume.keeper.rounds
        await trio.sleep(volume.record.time_base_ms / 1000 * 2.5)
        assert not volume.log.count(DIRTY)
        assert volume.keeper.rounds - before <= 2
        first_clear = next(at for at, call in enumerate(calls) if call.kind == 'write')
        flushed = {call.disk for call in calls[:first_clear] if call.kind == 'flush'}
        assert flushed == {'d0', 'd1'}

    simulated(test)
