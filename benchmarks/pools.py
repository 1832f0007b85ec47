"""A mounted pool whose volumes are alike, and writes to an image that are timed one by one."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from host import MIB, TOOL, run, stopper


@dataclass
class Pool:
    """A pool with volumes v0, v1, … of `size` bytes in a folder; mounted as long as its context lasts.

    `create` are options of `mirrorfs create` for the first volume, `mount` words for `mirrorfs mount -o`.
    """

    folder: Path
    size: int
    volumes: int = 1
    legs: int = 2
    create: Sequence[str] = ()
    mount: str = ''
    mount_seconds: float = field(default=0.0, init=False)

    def __enter__(self) -> Self:
        self.mountpoint.mkdir()
        try:
            self._make()
            options = ['-o', self.mount] if self.mount else []
            began = time.monotonic()
            self._tool('mount', self.pool, self.mountpoint, *options)
            self.mount_seconds = time.monotonic() - began
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with stopper.later():
            if self.mountpoint.is_mount():
                self._tool('umount', self.pool)

    def _tool(self, *words: str | Path) -> str:
        return run(*TOOL, *words)

    def _make(self) -> None:
        """Make the volumes: the first one makes the pool, the others are made while it is mounted."""
        first, *others = self.names
        legs = [f'--leg={path}' for path in self.leg_paths(first)]
        self._tool('create', self.pool, first, f'--size={self.size}', *legs, *self.create)
        if not others:
            return
        self._tool('mount', self.pool, self.mountpoint)
        for name in others:
            self.control('create', ' '.join([name, str(self.size), *map(str, self.leg_paths(name))]))
        self._tool('umount', self.pool)

    @property
    def pool(self) -> Path:
        return self.folder / 'pool'

    @property
    def mountpoint(self) -> Path:
        return self.folder / 'mnt'

    @property
    def names(self) -> list[str]:
        return [f'v{number}' for number in range(self.volumes)]

    @property
    def images(self) -> list[Path]:
        return [self.mountpoint / name for name in self.names]

    def leg_paths(self, name: str) -> list[Path]:
        return [self.folder / f'{name}.{leg}.leg' for leg in range(self.legs)]

    def read(self, file: str) -> str:
        return (self.mountpoint / '.mirrorfs' / file).read_text()

    def control(self, file: str, text: str) -> None:
        (self.mountpoint / '.mirrorfs' / file).write_text(f'{text}\n')

    def status(self) -> dict[str, Any]:
        """Return what status.json says of the first volume."""
        return dict(json.loads(self.read('status.json'))['volumes'][0])

    @functools.cached_property
    def pid(self) -> int:
        return int(json.loads(self.read('status.json'))['pid'])

    @property
    def memory(self) -> float:
        """MiB that the daemon has resident."""
        lines = Path(f'/proc/{self.pid}/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024

    def processor_seconds(self) -> float:
        """Return the seconds that the daemon's threads have run so far."""
        tasks, took = Path(f'/proc/{self.pid}/task'), 0
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                took += int((task / 'schedstat').read_text().split()[0])
        return took / 1e9


def fill(path: Path, size: int) -> Path:
    """Write `size` bytes to a file, 1 MiB at a time, random and each MiB another, and sync it."""
    block = os.urandom(MIB)
    with open(path, 'r+b' if path.exists() else 'wb', buffering=0) as file:
        for at in range(0, size, MIB):
            file.write((at.to_bytes(8, 'little') + block[8:])[: size - at])
        os.fsync(file.fileno())
    return path


def timed_writes(image: Path, place: Callable[[], int], wanted: Callable[[], bool]) -> list[float]:
    """Write 4 KiB at `place()`, again and again, while `wanted()`; return the seconds that each took."""
    data, took = os.urandom(4096), list[float]()
    file = os.open(image, os.O_RDWR)
    try:
        while wanted():
            at = place()
            began = time.perf_counter()
            os.pwrite(file, data, at)
            took.append(time.perf_counter() - began)
    finally:
        os.close(file)
    return took


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Return what says, from now on, whether so many seconds are not over yet."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end
