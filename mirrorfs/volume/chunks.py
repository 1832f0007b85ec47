"""Sets of chunks as arrays of their numbers, ascending."""

import numpy as np
import numpy.typing as npt


def runs(chunks: npt.NDArray[np.intp]) -> list[tuple[int, int]]:
    """Return (first, last) of each run of consecutive numbers in an ascending array (intp [n])."""
    if not len(chunks):
        return []
    breaks = np.flatnonzero(np.diff(chunks) != 1)
    firsts = chunks[np.concatenate(([0], breaks + 1))]
    lasts = chunks[np.concatenate((breaks, [len(chunks) - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
