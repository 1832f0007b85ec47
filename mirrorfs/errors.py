"""The two families of errors, and how they become errno.

`Refused`: the caller asked for something that cannot or must not be done.  It carries an errno for the
``write(2)`` that asked and one readable line: what was asked, what was found, what to do.

`LegError` (an `OSError`): the medium failed.  Leg policy deals with it; a caller sees it only when no leg
is left to serve.

`BadMetadata`: bytes that claim to be ours but are not whole.  Decoders raise nothing else.
"""

import errno as _errno


class Refused(Exception):
    """A request that was refused and changed nothing.  `errno` says why to programs, the text to people."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class LegError(OSError):
    """I/O on one leg failed."""


class LegTimeout(LegError):
    """A leg did not answer within its deadline while others did."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ETIMEDOUT, message)


class BadMetadata(Exception):
    """Bytes that are no valid metadata; the text says where and why."""
