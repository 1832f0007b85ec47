"""What trio's thread had a leg do: how much, how long each call took, what failed."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from mirrorfs.histogram import Histogram

T = TypeVar('T')
READ, WRITE, ZERO, FLUSH, METADATA = 'read', 'write', 'zero', 'flush', 'metadata'
"""Kinds of calls; the last: writes of log pages, superblocks and lists, each durable by itself."""


@dataclass(slots=True)
class Calls:
    """Of one kind.  `bytes` are those of calls that succeeded."""

    bytes: int = 0
    errors: int = 0
    seconds: Histogram = field(default_factory=Histogram)
    """How long they took, those that failed included; one that was given up, until then."""


class LegCalls:
    """Of one leg, by kind."""

    def __init__(self) -> None:
        self.by_kind = {kind: Calls() for kind in (READ, WRITE, ZERO, FLUSH, METADATA)}

    async def timed(self, kind: str, length: int, call: Awaitable[T]) -> T:
        """Await a call that moves so many bytes, and return its result.  Raises what it raises."""
        calls, began = self.by_kind[kind], trio.current_time()
        try:
            result = await call
            calls.bytes += length
            return result
        except OSError:
            calls.errors += 1
            raise
        finally:
            calls.seconds.add(trio.current_time() - began)
