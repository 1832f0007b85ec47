"""Which rates of which contenders are measured: workloads put together with images.

A job is one line of work for several takers, whose rates are compared.  Names of takers are those of
contenders, or of special ones that only one job has.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import workloads
from contenders import ASIDE, CACHED, EIGHT, NO_LOG, NOTHING, ONE, ONE_JOB, OPTIONS, PEERS, RAW, TWO_RAW, US
from pools import Pool
from workloads import Cell, cell_rate, touch, warm

FIRST = 'first sequential write'
OFTEN = 3
"""Times a round that mirrorfs is compared with itself without a log: the two are close to each other."""
Images = Mapping[str, Path]


@dataclass(frozen=True)
class Take:
    """How one taker's rate is found; what comes before is not part of it."""

    rate: Callable[[], float]
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Job:
    """`times` a round."""

    name: str
    takers: Mapping[str, Take]
    times: int = 1


def hot(cell: Cell) -> str:
    """Return the name of the job that has only mirrorfs with and without a log, chunks dirty."""
    return f'{cell.name}, log or none'


def eight(cell: Cell) -> str:
    return f'{cell.name}, eight volumes or one'


def on_images(images: Images, folder: Path, size: int, seconds: float) -> Iterator[Job]:
    """Yield the jobs that fio does on images of `size` bytes, each run of so many seconds."""

    def take(cell: Cell, name: str) -> Take:
        image = images[name]
        rate = partial(cell_rate, image, cell, size, seconds)
        return Take(rate, partial(touch if cell.writes else warm, [image], size))

    def job(cell: Cell, names: Sequence[str], name: str = '', times: int = 1) -> Job:
        return Job(name or cell.name, {who: take(cell, who) for who in names if who in images}, times)

    everybody = [name for name in images if name not in ASIDE]
    for cell in workloads.CELLS:
        yield job(cell, [*everybody, NOTHING] if cell in workloads.DEEP else everybody)
    yield _synced(job(workloads.SYNCED, everybody), images, size, seconds)
    yield job(workloads.BUFFERED, [RAW, US, CACHED, *PEERS])
    for cell in workloads.HOT:
        yield job(cell, [US, NO_LOG], hot(cell), OFTEN)
    fresh = {name: Take(partial(first_write, folder, size, OPTIONS[name])) for name in (US, NO_LOG)}
    yield Job(FIRST, fresh, OFTEN)
    if US in images and EIGHT in images:
        yield from (_eight(cell, images, size, seconds) for cell in workloads.DEEP)


def _synced(job: Job, images: Images, size: int, seconds: float) -> Job:
    """Have two raw files take part, too, that are written and synced at the same time."""
    if TWO_RAW not in images:
        return job
    both = partial(workloads.side_by_side, images[TWO_RAW], size, seconds)
    return Job(job.name, {**job.takers, TWO_RAW: Take(both)})


def _eight(cell: Cell, images: Images, size: int, seconds: float) -> Job:
    """Eight volumes at once, beside one volume that has as much in flight: from eight jobs, and from one."""
    volumes, one, share = sorted(images[EIGHT].glob('v?')), images[US], size // 8

    def take(targets: Sequence[Path], each: int) -> Take:
        rate = partial(workloads.together, targets, cell, each, seconds)
        return Take(rate, partial(touch if cell.writes else warm, sorted(set(targets)), each))

    takers = {EIGHT: take(volumes, share), ONE: take([one] * 8, size), ONE_JOB: take([one], size)}
    return Job(eight(cell), takers)


def first_write(folder: Path, size: int, options: Sequence[str]) -> float:
    """Make a volume, and write it for the first time: MiB a second."""
    with tempfile.TemporaryDirectory(dir=folder) as where, Pool(Path(where), size, create=options) as pool:
        return workloads.first_write(pool.images[0], size)


def on_ext4(places: Images, seconds: float) -> Iterator[Job]:
    """Yield the jobs on filesystems that are mounted at `places`."""
    for name, work in workloads.JOBS.items():
        yield Job(f'ext4: {name}', {who: Take(partial(work, at, seconds)) for who, at in places.items()})
