"""What all tests share: those with real mounts are skipped, with the reason, where they cannot run."""

import os
from collections.abc import Callable

import pytest
from mounts import why_not


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print whatever pytest captures."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f'\n{text}', flush=True)

    return say


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get('CI'):
        return  # there they must run: what cannot is a failure
    for item in items:
        loop = item.get_closest_marker('loop') is not None
        if (loop or item.get_closest_marker('mount')) and (reason := why_not(loop)):
            item.add_marker(pytest.mark.skip(reason=reason))
