"""Planned faults: what goes wrong at which call.

A plan maps (disk, kind of call, nth such call) to a `Fault`; kind ``any`` counts all calls on the disk, nth 0
is every such call.  Counting begins when the volume has been made.  `pool` is a disk here, too.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass

Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    `error`: the call fails with `code`.  `short`: a write leaves its first half and fails.  `slow`: it takes
    `seconds` of virtual time.  `hang`: no call on the disk returns for `seconds`; what was abandoned
    meanwhile lands then.  `gone`: this and every later call fails until the disk is brought back.
    """

    what: str = 'error'
    code: int = errno.EIO
    seconds: float = 0.0


Plan = dict[Key, Fault]


def planned(plan: Mapping[Key, int | Fault]) -> Plan:
    """Return a plan in which plain errnos are errors."""
    return {key: Fault(code=fault) if isinstance(fault, int) else fault for key, fault in plan.items()}
