"""One image: reads, writes and flushes, and what keeps its legs equal.

`volume` has the paths of data, `start` how a volume begins, `clearing` and `rebuild` the background work,
`admin` the verbs that change its legs.
"""

from mirrorfs.volume.volume import Volume

__all__ = ['Volume']
