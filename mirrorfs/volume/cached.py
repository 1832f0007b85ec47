"""What others keep of a volume's bytes: they are told when these change."""

from typing import Protocol


class Cache(Protocol):
    """Keeps what was read of one volume.  Offsets and lengths in bytes."""

    @property
    def kept(self) -> bool:
        """Whether anything may be kept; then the lane must not write, since it tells nobody."""
        ...

    def changed(self, offset: int, length: int) -> None:
        """Begin to forget a range: reads may give something else there from now on.

        Waits for nothing, so it may be called by who holds chunks that a reader waits for.
        """
        ...

    async def settled(self) -> None:
        """Return when all that was to be forgotten by now is.

        Not to be called while chunks are held: forgetting waits for reads under way.
        """
        ...


class NoCache:
    """Nobody keeps anything."""

    kept = False

    def changed(self, offset: int, length: int) -> None:
        pass

    async def settled(self) -> None:
        pass
