"""Zeros: many of them, and whether something is nothing else."""

from mirrorfs import limits

ZEROS = bytes(limits.REQUEST_MAX)


def all_zero(data: bytes | bytearray | memoryview) -> bool:
    """Return whether there is nothing but zeros in `data`.

    That is one memcmp in place for each MiB, which ends at the first other byte (measured: 0.2 us for noise,
    23 us for a MiB of zeros; numpy takes 1.3 us for as little as 512 bytes).
    """
    if len(data) <= len(ZEROS):
        return ZEROS.startswith(data)
    view = memoryview(data)
    return all(ZEROS.startswith(view[at : at + len(ZEROS)]) for at in range(0, len(view), len(ZEROS)))
