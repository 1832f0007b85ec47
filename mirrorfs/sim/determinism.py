"""One seed, one schedule: the private corner of trio that makes runs repeatable, touched here only."""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run as trio_run

T = TypeVar('T')


def run(main: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run `main` under trio in virtual time; the same seed gives the same schedule.

    Raises RuntimeError where this trio has no such switch.
    """
    if not hasattr(trio_run, '_ALLOW_DETERMINISTIC_SCHEDULING') or not isinstance(trio_run._r, random.Random):
        raise RuntimeError(f'trio {trio.__version__} cannot be made deterministic in the way known here')
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
