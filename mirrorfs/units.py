"""Sizes, durations and times as people write and read them."""

import datetime
import errno
import re

from mirrorfs.errors import Refused

_SUFFIXES = {'': 1, 'B': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40, 'P': 1 << 50}
_SIZE = re.compile(r'(\d+(?:\.\d+)?)\s*([BKMGTP]?)(?:i?B)?', re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: ``10G``, ``512KiB``, ``1.5T`` or a plain number of bytes.

    Suffixes are powers of 1024, as with mdadm, lvm and qemu-img.  Raises Refused(EINVAL).
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or len(text) > 32:
        raise Refused(errno.EINVAL, f'{text[:40]!r} is not a size; write a number, with K, M, G or T')
    size = float(found[1]) * _SUFFIXES[found[2].upper()]
    if size != int(size):
        raise Refused(errno.EINVAL, f'{text!r} is not a whole number of bytes')
    whole, dot, _ = found[1].partition('.')
    return int(size) if dot else int(whole) * _SUFFIXES[found[2].upper()]


def format_size(size: float) -> str:
    """Return bytes for people, with a binary suffix: ``1.5 GiB``."""
    for suffix in ('B', 'KiB', 'MiB', 'GiB', 'TiB'):
        if size < 1024:
            return f'{size:.0f} {suffix}' if size == int(size) else f'{size:.1f} {suffix}'
        size /= 1024
    return f'{size:.0f} PiB' if size == int(size) else f'{size:.1f} PiB'


def format_duration(seconds: float) -> str:
    """Return a duration for people: ``4s``, ``3m20s``, ``2h05m``."""
    whole = int(seconds)
    if whole < 60:
        return f'{whole}s'
    if whole < 3600:
        return f'{whole // 60}m{whole % 60:02d}s'
    return f'{whole // 3600}h{whole % 3600 // 60:02d}m'


def format_time(microseconds: int) -> str:
    """Return a time in microseconds since 1970 UTC for people, in ISO 8601."""
    try:
        moment = datetime.datetime.fromtimestamp(microseconds / 1e6, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f'{microseconds} us'
    return moment.isoformat(timespec='seconds').replace('+00:00', 'Z')
