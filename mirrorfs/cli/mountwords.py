"""The words after -o, for help texts and man pages."""

from mirrorfs import limits


def rows() -> list[tuple[str, str]]:
    """Return each word, as it is written, and what it is for."""
    return [
        ('allow_other', 'let other users in, as far as the modes of images allow'),
        (
            'cache=none|auto',
            'auto: opens of images for reading alone go through the page cache of the kernel',
        ),
        ('debug', 'log more'),
        ('direct_legs', 'read and write legs past the page cache'),
        ('force=NAME', 'start volume NAME from the best leg at hand although it may be stale'),
        ('lane_poll=SECONDS', f'go on polling so long after a request (default: {limits.LANE_POLL:.5f})'),
        (
            'leg_timeout=SECONDS',
            f'fail a leg that does not answer for so long while others do (default: {limits.LEG_TIMEOUT:g})',
        ),
    ]
