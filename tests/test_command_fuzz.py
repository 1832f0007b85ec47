"""Random commands and system calls change nothing when they are refused, in memory and through a mount."""

import errno
import logging
from collections.abc import Iterator
from typing import Any

import commandfuzz
import mountfuzz
import pytest
from commandfuzz import Unexpected, fuzz

from mirrorfs.errors import Refused
from mirrorfs.fs import commands
from mirrorfs.fs.control import VOLUME_FILES, ControlFile
from mirrorfs.fs.place import Place


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Refusals are not worth a line."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_20000_commands_in_memory_raise_nothing_unexpected_and_change_nothing_when_refused() -> None:
    tally = fuzz(20_000, seed=1)
    assert tally['refused'] > 15_000 and tally['accepted'] > 200, tally
    accepted = {word for word in tally if word.startswith('accepted ')}
    assert len(accepted) > 20, 'too few kinds of commands were ever accepted'


async def opens_a_session_first(place: Place, words: list[str]) -> None:
    """A refusal that has changed what is durable."""
    await place.volume.require()[0].volume.keeper.open_session()
    raise Refused(errno.EINVAL, 'no')


async def changes_a_fact_first(place: Place, words: list[str]) -> None:
    """One that has changed nothing but a fact of status.json."""
    place.volume.require()[0].volume.counters.resynced += 1
    raise Refused(errno.EINVAL, 'no')


async def trips(place: Place, words: list[str]) -> None:
    """One that is no refusal."""
    raise KeyError(words[0])


@pytest.mark.parametrize(
    ('plant', 'says'),
    [
        (opens_a_session_first, 'refused, but changed'),
        (changes_a_fact_first, 'refused, but changed'),
        (trips, 'KeyError'),
    ],
)
def test_the_fuzzer_finds_what_is_planted(plant: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VOLUME_FILES, 'fail', ControlFile(act=plant))
    with pytest.raises(BaseExceptionGroup) as caught:
        fuzz(2000, seed=2)
    found = caught.value
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]  # type: ignore[assignment]
    assert isinstance(found, Unexpected) and says in str(found)
    assert '/fail ' in str(found)


def test_a_word_is_never_taken_for_code_or_a_format() -> None:
    """What was written comes back in refusals: as it was, bounded."""
    with pytest.raises(Refused) as caught:
        commands._number(['{0.__class__}%s' + '9' * 1000], 'a number', 0, 9)
    assert '{0.__class__}%s' in str(caught.value) and len(str(caught.value)) < 200


def test_every_batch_can_be_seen_again() -> None:
    first, again = (commandfuzz.fuzz(500, seed=3) for _ in range(2))
    assert first == again


@pytest.mark.mount
@pytest.mark.timeout(120)
def test_random_calls_on_a_mount_change_nothing_when_they_fail() -> None:
    tally = mountfuzz.fuzz(2500, seed=1)
    kinds = {word.split()[0] for word in tally}
    assert len(kinds) > 20 and tally['write refused'] > 50, tally


@pytest.mark.mount
def test_the_fuzzer_of_the_mount_finds_a_handler_that_breaks() -> None:
    with pytest.raises(mountfuzz.Unexpected, match='planted in statfs'):
        mountfuzz.fuzz(1000, seed=1, MIRRORFS_TEST_FAULT='statfs')


@pytest.mark.mount
def test_the_fuzzer_of_the_mount_finds_what_a_failed_call_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail_and_change(self: mountfuzz.MountFuzz, path: bytes, number: int) -> None:
        self._volume.image.chmod(0o611)
        raise PermissionError(errno.EPERM, 'no')

    monkeypatch.setattr(mountfuzz.MountFuzz, '_stat', fail_and_change)
    with pytest.raises(mountfuzz.Unexpected, match='changed by a refused call'):
        mountfuzz.fuzz(1000, seed=1)
