"""Hunts planted bugs with the random search: which seed finds each, by which checker, after how many states.

    python tests/hunt.py [--seconds S] [NAME…]

Prints the entries of `plants_found.FOUND` for the bugs written by someone who has not read the checkers
(`plants_blind`), and names those that no seed found within S seconds each.
"""

import argparse
import logging
from itertools import count

import pytest
from plants import Plant
from plants_blind import BLIND

from mirrorfs.sim.explore import Explorer, Failed, Watch
from mirrorfs.sim.history import Composer


def hunt(plant: Plant, seconds: float) -> tuple[int, str, int] | None:
    """Return the first seed that finds a bug, the checker and the states it took; None if time is over."""
    watch, explorer = Watch(), Explorer()
    with pytest.MonkeyPatch.context() as patch:
        plant.sow(patch)
        for seed in count():
            if watch.seconds > seconds:
                return None
            try:
                explorer.explore(Composer(seed).run())
            except Failed as failed:
                return seed, failed.violation.checker, explorer.tally.states
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=20.0)
    parser.add_argument('names', nargs='*')
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for plant in BLIND:
        if options.names and plant.name not in options.names:
            continue
        found = hunt(plant, options.seconds)
        if found is None:
            print(f'# {plant.name}: not found', flush=True)
            continue
        seed, checker, states = found
        other = '' if checker in (plant.checker, *plant.also) else f', not {plant.checker}'
        print(f'    {plant.name!r}: {seed},  # {checker}{other}, {states} states', flush=True)


if __name__ == '__main__':
    main()
