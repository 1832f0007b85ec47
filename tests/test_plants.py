"""Every planted bug still has its place in the source."""

import pytest
from plants import Plant
from plants_blind import BLIND

from mirrorfs.sim.violation import CHECKERS


@pytest.mark.parametrize('plant', BLIND, ids=lambda plant: plant.name)
def test_a_planted_bug_has_its_place(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {plant.checker, *plant.also} <= CHECKERS.keys()
    plant.sow(monkeypatch)
