"""How much is copied: after a crash, for a returning leg, and when copying itself is interrupted.

Counted by status.json, from the logs of the legs at rest, by /proc, and by damage planted where nothing may
be copied, which must still be there afterwards.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from looptools import (
    BLOCK,
    MIB,
    Direct,
    Field,
    Pool,
    Tagger,
    assert_legs_equal,
    differing,
    examine,
    field,
    states_of,
    wait_for,
)

from mirrorfs.intent.states import DIRTY

pytestmark = [pytest.mark.mount, pytest.mark.loop, pytest.mark.timeout(240)]

CHUNK = 64 << 10
ANSWERS = MIB
"""Most that the daemon says to us meanwhile, and to its log."""


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Field]:
    with field(tmp_path) as made:
        yield made


def fill(image: Path, size: int, seed: int = 1) -> None:
    """Write all of a volume; fsync."""
    block = random.Random(seed).randbytes(MIB)
    file = os.open(image, os.O_RDWR)
    try:
        for at in range(0, size, MIB):
            os.pwrite(file, at.to_bytes(8, 'little') + block[8:], at)
        os.fsync(file)
    finally:
        os.close(file)


def make_clean(pool: Pool, name: str = 'x', time_base: float = 0.1) -> None:
    """Return when no chunk is dirty."""
    pool.command(name, 'bitmap/time_base', time_base)
    wait_for(lambda: pool.status(name)['chunks']['dirty'] == 0, 60, 'no chunk dirty')


def io_of(pool: Pool) -> dict[str, int]:
    """Return /proc/PID/io of the daemon.

    Of use are rchar and wchar, what it read and wrote; write_bytes counts whole large folios of the page
    cache, up to 2 MiB for a block.
    """
    assert pool.daemon
    lines = Path(f'/proc/{pool.daemon.pid}/io').read_text().splitlines()
    return {word: int(value) for word, value in (line.split(': ') for line in lines)}


def log_bytes(status: dict[str, Any], legs: int) -> int:
    """Return how many bytes its commits may have taken at most: pages, superblocks, the pool's record."""
    pages = -(-status['chunks']['total'] // 4000) + 1
    return (status['log']['commits'] + 4) * ((pages + 1) * 4096 * legs + 16384)


def damage(leg: Path, offset: int, data: bytes = b'\xde\xad' * (BLOCK // 2)) -> int:
    """Change a block of a leg behind everybody's back; return where."""
    start = examine(leg)[0]['data_offset']
    with open(leg, 'r+b', buffering=0) as file:
        file.seek(start + offset)
        file.write(data)
        os.fsync(file.fileno())
    return offset


def differences(first: Path, other: Path) -> list[int]:
    """Return the offsets of blocks that differ."""
    a, b = examine(first, other)
    return list(differing(a, b, a['size']))


def dirty_of(*legs: Path) -> set[int]:
    """Return the chunks that are dirty on any of the legs at rest."""
    found: set[int] = set()
    for leg in legs:
        found |= set(np.flatnonzero(states_of(leg) & DIRTY).tolist())
    facts = examine(*legs)
    assert max(leg['chunks']['dirty'] for leg in facts) <= len(found)
    assert sum(leg['chunks']['dirty'] for leg in facts) >= len(found)
    return found


@pytest.mark.parametrize('seed', [1, 2])
def test_resync_after_a_kill_copies_dirty_chunks_only(ground: Field, seed: int) -> None:
    size = 128 * MIB
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', size, *legs)
    pool.mount()
    fill(image, size)
    make_clean(pool)
    pool.command('x', 'bitmap/time_base', 60)
    blocks = sorted(random.Random(seed).sample(range(size // BLOCK), 40))
    tagger = Tagger(image, blocks)
    wait_for(lambda: tagger.count > 150, 30, 'writes')
    assert pool.daemon
    pool.daemon.kill()
    wait_for(lambda: tagger.failure, 20, 'the writer notices')
    tagger.stop()
    pool.kill()

    dirty = dirty_of(*legs)
    assert {number * BLOCK // CHUNK for number in tagger.acked} <= dirty
    assert len(dirty) <= 2 * len(blocks)
    clean = next(c for c in range(size // CHUNK) if c not in dirty)
    planted = damage(legs[1], clean * CHUNK + 5 * BLOCK)
    for number in blocks[:3]:  # as a power cut would have left it: one leg has it, the other not
        damage(legs[1], number * BLOCK, bytes(BLOCK))

    pool.mount()
    status = pool.settled('x', 2)
    wrote = io_of(pool)
    assert 0 < status['resynced_bytes'] <= len(dirty) * CHUNK
    assert status['recovered_bytes'] == 0
    # Both legs are written: the one that is copied from may have lost what its cache shows.
    most = 2 * status['resynced_bytes'] + log_bytes(status, 2)
    assert most < size / 4
    assert wrote['wchar'] <= most + ANSWERS
    assert wrote['rchar'] < size / 2, 'nothing but dirty chunks is read either'
    tagger.check(image)
    pool.umount()
    assert differences(*legs) == [planted]
    assert not dirty_of(*legs)


def test_idle_means_clean(ground: Field) -> None:
    size = 32 * MIB
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', size, *legs)
    pool.mount()
    pool.command('x', 'bitmap/time_base', 0.2)
    assert pool.read('volumes/x/bitmap/time_base') == '0.200\n'
    tagger = Tagger(image, range(0, 4000, 50), pause=0.001)
    wait_for(lambda: pool.status('x')['chunks']['dirty'] > 20, 20, 'dirty chunks')
    tagger.stop()
    wait_for(lambda: pool.status('x')['chunks']['dirty'] == 0, 20, 'no chunk dirty')
    pool.kill()
    assert not dirty_of(*legs)
    assert all(leg['active'] for leg in examine(*legs))
    pool.mount()
    status = pool.settled('x', 2)
    assert status['resynced_bytes'] == status['recovered_bytes'] == 0
    tagger.check(image)
    # A setting of the volume outlives the daemon.
    assert pool.read('volumes/x/bitmap/time_base') == '0.200\n'
    pool.umount()
    assert_legs_equal(*legs)


def test_readd_copies_what_changed(ground: Field) -> None:
    size = 128 * MIB
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', size, *legs)
    pool.mount()
    fill(image, size)
    make_clean(pool)
    pool.command('x', 'fail', 1)
    pool.command('x', 're-add', 1)
    assert pool.settled('x', 2)['recovered_bytes'] == 0, 'nothing was written'
    pool.command('x', 'fail', 1)
    file = Direct(image)
    changed = random.Random(3).sample(range(size // CHUNK), 7)
    for chunk in changed:
        file.write(chunk * CHUNK + 3 * BLOCK, b'm' * BLOCK)
    file.close()
    planted = damage(legs[1], next(c for c in range(size // CHUNK) if c not in changed) * CHUNK)
    make_clean(pool)  # what the leg lacks is not forgotten with the dirty flag
    assert pool.status('x')['chunks']['modified'] == len(changed)
    before, commits = io_of(pool), pool.status('x')['log']['commits']
    pool.command('x', 're-add', 'missing')
    status = pool.settled('x', 2)
    after = io_of(pool)
    assert status['recovered_bytes'] == len(changed) * CHUNK
    status['log']['commits'] -= commits
    wrote = after['wchar'] - before['wchar']
    assert wrote <= status['recovered_bytes'] + log_bytes(status, 2) + ANSWERS
    assert after['rchar'] - before['rchar'] <= status['recovered_bytes'] + log_bytes(status, 2) + ANSWERS
    assert pool.status('x')['chunks']['modified'] == 0
    pool.umount()
    assert differences(*legs) == [planted]


def test_interrupted_recovery_goes_on_from_its_mark(ground: Field) -> None:
    size = 768 * MIB
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', size, legs[0], 'missing', chunk='1M')
    pool.mount()
    fill(image, size)
    make_clean(pool)
    pool.command('x', 'sync_speed_max', 250_000)
    pool.command('x', 'add', legs[1])

    def marked() -> bool:
        assert pool.status('x')['legs'][1]['state'] == 'spare', 'it ended before it could be interrupted'
        return all(facts['slots']['1']['recovered_chunks'] for facts in examine(*legs))

    wait_for(marked, 60, 'a durable mark on both legs', 0.01)
    pool.kill()
    facts = examine(*legs)
    durable = facts[0]['slots']['1']['recovered_chunks'] * MIB
    assert facts[1]['slots']['1']['recovered_chunks'] * MIB >= durable >= 128 * MIB
    assert facts[0]['slots']['1']['state'] == 'spare'
    planted = damage(legs[1], durable // 2)

    pool.mount()
    status = pool.settled('x', 2, 90)
    assert status['recovered_bytes'] <= size - durable
    assert status['recovered_bytes'] < size * 0.85
    assert status['resynced_bytes'] == 0
    pool.umount()
    assert differences(*legs) == [planted]


def test_interrupted_resync_goes_on(ground: Field) -> None:
    size = 512 * MIB
    pool, legs = ground.pool(), [ground.path('a'), ground.path('b')]
    image = pool.create('x', size, *legs, chunk='1M')
    pool.mount()
    pool.command('x', 'bitmap/time_base', 600)
    fill(image, size)
    pool.kill()
    dirty = dirty_of(*legs)
    assert len(dirty) == size // MIB
    pool.mount()
    copied = wait_for(lambda: pool.status('x')['resynced_bytes'], 30, 'some resync', 0.005)
    pool.umount()  # a clean stop in the middle
    left = dirty_of(*legs)
    assert 0 < len(left) < len(dirty), 'it ended before it could be interrupted'
    assert (len(dirty) - len(left)) * MIB >= copied
    planted = damage(legs[1], (min(dirty - left)) * MIB + BLOCK)
    damage(legs[1], min(left) * MIB + BLOCK)

    pool.mount()
    wait_for(lambda: pool.status('x')['resynced_bytes'], 30, 'some resync', 0.005)
    pool.kill()  # and an unclean one
    still = dirty_of(*legs)
    assert still <= left
    pool.mount()
    status = pool.settled('x', 2)
    assert status['resynced_bytes'] <= len(still) * MIB
    pool.umount()
    assert differences(*legs) == [planted]
