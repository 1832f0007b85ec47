"""What a leg, or a path, may keep others waiting for."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from mirrorfs.errors import Refused
from mirrorfs.leg.base import Leg, Opener


@contextmanager
def deadline(leg: Leg, seconds: float) -> Iterator[None]:
    """Bound the calls on a leg that are made in the body.  Raises Refused(ETIMEDOUT)."""
    with fail_in_time(leg.path, seconds):
        yield


@contextmanager
def fail_in_time(path: str, seconds: float) -> Iterator[None]:
    """Bound what a path may keep the body waiting for.  Raises Refused(ETIMEDOUT)."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise Refused(errno.ETIMEDOUT, f'{path} did not answer within {seconds:g} s')


async def open_in_time(
    opener: Opener, path: str, seconds: float, *, create_size: int = 0
) -> tuple[Leg, bool]:
    """As `Opener.open`, in bounded time.  Raises Refused as that does, and ETIMEDOUT."""
    with trio.move_on_after(seconds):
        return await opener.open(path, create_size=create_size)
    raise Refused(errno.ETIMEDOUT, f'{path} did not answer within {seconds:g} s')
