"""The words that may stand after -o: one table, for the command line, mount(8), help texts and man pages.

What mount(8) and fstab pass is of four kinds: what means something to us (`OPTIONS`), what the kernel does
for us (`FLAGS`), what is for others and left alone (`IGNORED`), and what would promise something that is not
kept (`REFUSED`).  All else is a slip.
"""

import argparse
import difflib
import errno
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mirrorfs import limits
from mirrorfs.errors import Refused

CACHE_MODES = ('none', 'auto')
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 1, 2, 4, 8, 1024


@dataclass(slots=True)
class Options:
    """What the -o words of a mount mean."""

    allow_other: bool = False
    direct_legs: bool = False
    """Whether legs are read and written past the page cache."""
    leg_timeout: float = limits.LEG_TIMEOUT
    """Seconds after which a leg that does not answer while others do is failed."""
    lane_poll: float = limits.LANE_POLL
    """Seconds that the data lane goes on polling after a request before it sleeps."""
    force: list[str] = field(default_factory=list)
    """Volumes to start from the best leg at hand although it may be stale."""
    cached: bool = False
    """Whether the kernel keeps what is read of images in its page cache."""
    debug: bool = False
    flags: int = _MS_NOSUID | _MS_NODEV
    """For mount(2).  There is nothing in a pool that could be a device, or be run as somebody else."""

    @property
    def flag_words(self) -> list[str]:
        """The flags as fusermount3 wants them, which has nosuid and nodev anyway."""
        return [name for name, flag in FLAGS.items() if flag.sets and self.flags & flag.sets]


@dataclass(frozen=True, slots=True)
class Option:
    """A word of ours.  `value` is what stands after the ``=``, if anything does; `take` has it done."""

    help: str
    take: Callable[[Options, str], None]
    """Raises ValueError, whose text is what would be right."""
    value: str = ''
    default: str = ''


@dataclass(frozen=True, slots=True)
class Flag:
    """A word for the kernel: bits of mount(2) that it sets and clears."""

    help: str
    sets: int = 0
    clears: int = 0


def _switch(name: str) -> Callable[[Options, str], None]:
    return lambda options, _: setattr(options, name, True)


def _seconds(name: str, least: float, most: float) -> Callable[[Options, str], None]:
    def take(options: Options, value: str) -> None:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not least <= seconds <= most:
            raise ValueError(f'a number of seconds from {least:g} to {most:g}')
        setattr(options, name, seconds)

    return take


def _cache(options: Options, value: str) -> None:
    if value not in CACHE_MODES:
        raise ValueError(' or '.join(CACHE_MODES))
    options.cached = value == 'auto'


def _force(options: Options, value: str) -> None:
    if not value:
        raise ValueError('the name of a volume')
    options.force.append(value)


OPTIONS = {
    'allow_other': Option(
        'let other users in, as far as modes of images allow (users need user_allow_other in /etc/fuse.conf)',
        _switch('allow_other'),
    ),
    'cache': Option(
        'auto: opens of images for reading alone go through the page cache of the kernel',
        _cache, '|'.join(CACHE_MODES), CACHE_MODES[0],
    ),
    'debug': Option('log more', _switch('debug')),
    'direct_legs': Option('read and write legs past the page cache', _switch('direct_legs')),
    'force': Option('start volume NAME from the best leg at hand although it may be stale', _force, 'NAME'),
    'lane_poll': Option(
        'go on polling so long after a request: latency against processor time',
        _seconds('lane_poll', 0, 0.01), 'SECONDS', f'{limits.LANE_POLL:.5f}',
    ),
    'leg_timeout': Option(
        'fail a leg that does not answer for so long while others do',
        _seconds('leg_timeout', limits.LEG_TIMEOUT_MIN, 3600), 'SECONDS', f'{limits.LEG_TIMEOUT:g}',
    ),
}  # fmt: skip

FLAGS = {
    'ro': Flag(
        'nobody can write to images or control files; legs are made equal all the same',
        sets=_MS_RDONLY,
    ),
    'rw': Flag('the contrary, which is the default', clears=_MS_RDONLY),
    'noexec': Flag('no image can be run as a program', sets=_MS_NOEXEC),
    'exec': Flag('the contrary, which is the default', clears=_MS_NOEXEC),
    'noatime': Flag('as ever: images have no times of access', sets=_MS_NOATIME),
    'atime': Flag('likewise', clears=_MS_NOATIME),
}

IGNORED = frozenset(
    # of mount(8), fstab and systemd
    'auto noauto defaults nofail _netdev user nouser users nousers owner noowner group nogroup '
    'comment loud silent '
    # what is so here anyway
    'suid nosuid dev nodev async default_permissions nonempty '
    # images have no times of access
    'diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime'.split()
)

REFUSED = {
    'remount': 'a mount cannot be changed; unmount it, then mount it with the new options',
    'sync': 'open images with O_SYNC or O_DSYNC, or call fsync(2), for writes that last',
    'dirsync': 'names are durable at once anyway',
    'allow_root': 'say allow_other; the modes of images keep others than root out',
    'auto_unmount': 'a mount whose daemon died is cleared by the next mount, or by mirrorfs umount',
    'kernel_cache': 'say cache=auto',
    'auto_cache': 'say cache=auto',
    'direct_io': 'say cache=none, which is the default',
    'uid': 'images have owners of their own: chown them',
    'gid': 'images have groups of their own: chgrp them',
    'umask': 'images have modes of their own: chmod them',
    'fsname': 'the mount is known by the path of its pool',
    'subtype': 'the mount is known as fuse.mirrorfs',
    'max_read': 'the size of requests is fixed',
    'blkdev': 'the pool is a directory',
    'blksize': 'the pool is a directory',
}


def parse_options(text: str, *, sloppy: bool = False) -> Options:
    """Return what comma-separated words mean; a value stands after the first ``=``.

    Raises Refused(EINVAL) with what would be right; if `sloppy`, unknown words are passed over.
    """
    options = Options()
    for word in filter(None, text.split(',')):
        name, equals, value = word.partition('=')
        if name in OPTIONS:
            _take(options, word, OPTIONS[name], value if equals else None)
        elif name in FLAGS and not equals:
            options.flags = options.flags & ~FLAGS[name].clears | FLAGS[name].sets
        elif name in REFUSED and word != 'subtype=mirrorfs':
            raise Refused(errno.EINVAL, f'mount option {word!r} is not offered: {REFUSED[name]}')
        elif not sloppy and name not in (*IGNORED, *REFUSED) and not name.lower().startswith('x-'):
            raise Refused(errno.EINVAL, f'unknown mount option {word!r}{_advice(name)}')
    return options


def _take(options: Options, word: str, option: Option, value: str | None) -> None:
    if not option.value and value is not None:
        raise Refused(errno.EINVAL, f'{word!r}: this mount option takes no value')
    try:
        option.take(options, value or '')
    except ValueError as wanted:
        raise Refused(errno.EINVAL, f'{word!r}: wanted is {wanted}') from None


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name, [*OPTIONS, *FLAGS, *IGNORED], 1, 0.75)
    return f'; did you mean {near[0]}?' if near else '; -o help lists those there are'


def rows() -> list[tuple[str, str]]:
    """Return for help texts: each word, as it is written, and what it is for.  Those of ours come first."""
    found = []
    for name, option in OPTIONS.items():
        text = f'{option.help} (default: {option.default})' if option.default else option.help
        found.append((f'{name}={option.value}' if option.value else name, text))
    return found + [(name, flag.help) for name, flag in FLAGS.items()]


def describe() -> str:
    """Return what ``-o help`` prints."""
    rest = textwrap.wrap(f'Left alone, as they are for others: x-…, {", ".join(sorted(IGNORED))}.', 100)
    return '\n'.join(['Mount options:', *(f'  {word:22} {text}' for word, text in rows()), '', *rest])


class OptionWords(argparse.Action):
    """The -o of programs that are no verbs: collects words, and prints the table for ``-o help``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        words = str(values).split(',')
        if 'help' in words:
            print(describe())
            parser.exit()
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *words])
