"""The checkers find every bug that was planted by somebody who has not read them, and nothing without it."""

import logging
from collections.abc import Iterator

import pytest
from plants import Plant
from plants_blind import BLIND
from plants_found import FOUND
from plants_legs import LEGS, LEGS_FOUND
from plants_log import LOG_FOUND, LOG_PLANTS
from plants_pool import FOUND_POOL, POOL
from plants_reads import FOUND_READS, READS
from plants_scrub import HUNTS as SCRUB_HUNTS
from plants_scrub import SCRUB
from plants_sharing import SHARING, SHARING_FOUND
from plants_space import SPACE, SPACE_FOUND
from plants_split import SPLIT, SPLIT_FOUND
from plants_zeroes import FOUND_ZEROES, ZEROES

from mirrorfs.sim.explore import Explorer, Failed, replay
from mirrorfs.sim.violation import CHECKERS


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What goes wrong by plan is not worth a line."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


ALL = [*BLIND, *READS, *POOL, *LEGS, *LOG_PLANTS, *SCRUB, *SPLIT, *SHARING, *SPACE, *ZEROES]
HUNTS = {**FOUND, **FOUND_READS, **FOUND_POOL, **LEGS_FOUND, **LOG_FOUND, **SCRUB_HUNTS}
HUNTS |= {**SPLIT_FOUND, **SHARING_FOUND, **SPACE_FOUND, **FOUND_ZEROES}


@pytest.mark.parametrize('plant', ALL, ids=lambda plant: plant.name)
def test_a_planted_bug_is_found_by_a_checker_that_was_named(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {plant.checker, *plant.also}
    assert expected <= CHECKERS.keys()
    plant.sow(monkeypatch)
    with pytest.raises(Failed) as caught:
        HUNTS[plant.name].explore()
    assert caught.value.violation.checker in expected, caught.value


@pytest.mark.parametrize('name', HUNTS)
def test_without_the_bug_its_history_is_harmless(name: str) -> None:
    assert HUNTS[name].explore(schedules=1)


JUDGED = {
    'zeros_not_flushed_before_they_count': 'promise',
    'fsync_answered_before_the_expulsion': 'promise',
    'pool_before_superblocks': 'operator',
}
"""Bugs that no step of a run shows, only what a crash leaves."""


def explore(name: str, *, judged: float) -> None:
    """Go through a bug's histories without a single recovery."""
    for run in FOUND[name].runs():
        Explorer(judged, cut=0.0, nested=0.0, twice=0.0).explore(run)


@pytest.mark.parametrize('name', JUDGED)
def test_a_planted_bug_is_found_by_judging_what_crashes_leave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore(name, judged=1.0)
    next(plant for plant in BLIND if plant.name == name).sow(monkeypatch)
    explore(name, judged=0.0)
    with pytest.raises(Failed) as caught:
        explore(name, judged=1.0)
    assert caught.value.violation.checker == JUDGED[name]
    with pytest.raises(Failed, match=JUDGED[name]):
        replay(caught.value.run)
