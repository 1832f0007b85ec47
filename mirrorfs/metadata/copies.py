"""What all metadata pages share: two copies, of which the newer whole one is right; names.  Pure."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from mirrorfs import limits
from mirrorfs.errors import BadMetadata


class Dated(Protocol):
    """Something with a serial that grows with every write."""

    @property
    def serial(self) -> int: ...


D = TypeVar('D', bound=Dated)


def newest(decode: Callable[[bytes], D], copies: Sequence[bytes]) -> tuple[D, int]:
    """Return what the newer whole one of some copies says, and which it is.  Raises BadMetadata."""
    found: list[tuple[D, int]] = []
    complaints = []
    for copy, page in enumerate(copies):
        try:
            found.append((decode(page), copy))
        except BadMetadata as bad:
            complaints.append(str(bad))
    if not found:
        raise BadMetadata('; '.join(dict.fromkeys(complaints)))
    return max(found, key=lambda pair: pair[0].serial)


def need(condition: object, complaint: str) -> None:
    """Raise BadMetadata with a complaint unless a condition holds."""
    if not condition:
        raise BadMetadata(complaint)


def decode_name(raw: bytes, length: int) -> str:
    """Return a volume's name, `length` bytes from the start of a field.  Raises BadMetadata."""
    need(0 < length <= limits.NAME_MAX, 'bad name length')
    try:
        return raw[:length].decode()
    except UnicodeDecodeError:
        raise BadMetadata('the name is not UTF-8') from None
