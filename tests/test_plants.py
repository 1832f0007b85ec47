"""The checkers find every bug that was planted by somebody who has not read them, and nothing without it."""

import logging
from collections.abc import Iterator

import pytest
from plants import Plant
from plants_blind import BLIND
from plants_found import FOUND

from mirrorfs.sim.explore import Failed
from mirrorfs.sim.violation import CHECKERS


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What goes wrong by plan is not worth a line."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize('plant', BLIND, ids=lambda plant: plant.name)
def test_a_planted_bug_is_found_by_a_checker_that_was_named(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {plant.checker, *plant.also}
    assert expected <= CHECKERS.keys()
    plant.sow(monkeypatch)
    with pytest.raises(Failed) as caught:
        FOUND[plant.name].explore()
    assert caught.value.violation.checker in expected, caught.value


@pytest.mark.parametrize('name', FOUND)
def test_without_the_bug_its_history_is_harmless(name: str) -> None:
    assert FOUND[name].explore(schedules=1)
