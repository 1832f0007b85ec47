"""How good the random search is: which seed finds a planted bug, by which checker, after how many states.

    python tests/hunt.py [--seconds S] [--jobs N] [NAME…]

Tries seed after seed, up to S seconds for each bug, for those written by someone who has not read the
checkers (`plants_blind`).  Short histories that show every one of them are in `plants_found`.
"""

import argparse
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count

import pytest
from plants import Plant
from plants_blind import BLIND

from mirrorfs.sim.explore import Explorer, Failed, Watch
from mirrorfs.sim.history import Composer


def hunt(plant: Plant, seconds: float) -> tuple[int, str, int, float] | None:
    """Return the first seed that finds a bug, the checker, and the states and seconds that it took."""
    logging.disable(logging.CRITICAL)
    watch, explorer = Watch(), Explorer()
    with pytest.MonkeyPatch.context() as patch:
        plant.sow(patch)
        for seed in count():
            if watch.seconds > seconds:
                return None
            try:
                explorer.explore(Composer(seed).run())
            except Failed as failed:
                return seed, failed.violation.checker, explorer.tally.states, watch.seconds
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=20.0)
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('names', nargs='*')
    options = parser.parse_args()
    plants = [plant for plant in BLIND if not options.names or plant.name in options.names]
    with ProcessPoolExecutor(options.jobs) as executor:
        for plant, found in zip(
            plants, executor.map(partial(hunt, seconds=options.seconds), plants), strict=True
        ):
            if found is None:
                print(f'{plant.name}: not found', flush=True)
                continue
            number, checker, states, seconds = found
            print(f'{plant.name}: seed {number}, {checker}, {states} states, {seconds:.1f} s', flush=True)


if __name__ == '__main__':
    main()
