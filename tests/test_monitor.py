"""`mirrorfs monitor`: events read back from their lines, pools that are followed, programs that are told."""

import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mounts import CLI, MIB, MountedPool, cli, cli_ok, wait_for

from mirrorfs import events
from mirrorfs.cli import following, monitor
from mirrorfs.cli.following import Following, Notice
from mirrorfs.events import Event, EventLog, parse, unseen

pytestmark = pytest.mark.timeout(120)
mount = pytest.mark.mount
ANY = st.sampled_from('/\\\n"é\udcff') | st.characters(exclude_characters='\0 ')
PATH = st.text(ANY).map(lambda text: f'/{text}')
TEXT = st.text().filter(lambda text: not text.startswith('/'))


# Events


@given(
    st.from_regex(r'\A[A-Z][A-Za-z]{1,9}\Z').filter(lambda word: word != 'Refused'),
    st.sampled_from(['', 'disk']),
    st.just('') | PATH,
    TEXT,
)
def test_an_event_is_read_back_from_its_line(word: str, volume: str, device: str, text: str) -> None:
    log = EventLog()
    log.emit(word, volume, device, text)
    (line,) = log.read(0, 1 << 20).splitlines()
    found = parse(line)
    assert (found.word, found.volume, found.device, found.text) == (word, volume, device, text)
    assert log.emitted == {word: 1}


def test_a_refusal_is_about_no_device() -> None:
    found = parse(b'2026-01-01T00:00:00.000Z Refused disk /legs/a is too small')
    assert (found.device, found.text) == ('', '/legs/a is too small')


@given(st.lists(st.integers(0, 12)), st.integers(0, 3))
def test_every_event_is_seen_once_and_lost_ones_are_said(steps: list[int], words: int) -> None:
    kept: deque[bytes] = deque(maxlen=8)
    before: list[bytes] = []
    number = 0
    for step in steps:
        came = [b'%d' % n for n in range(number, number + step)]
        number += step
        kept.extend(came)
        found, lost = unseen(before, list(kept))
        assert found == came[-8:]
        assert lost >= (step > 8 and bool(before)), 'not said'
        assert not lost or step >= 8
        before = list(kept)


# Programs


def notice(word: str = 'Fail', text: str = 'slot 0: gone') -> Notice:
    return Notice('/pool', Event('2026-01-01T00:00:00.000Z', word, 'disk', '/legs/a b', text))


def script(folder: Path, text: str) -> Path:
    path = folder / 'tell'
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


def test_a_program_is_told_with_mdadms_arguments(tmp_path: Path) -> None:
    program = script(tmp_path, f'printf "%s|" "$@" "$MIRRORFS_TEXT" > {tmp_path}/told')
    monitor._run(str(program), notice())
    assert (tmp_path / 'told').read_text() == 'Fail|/pool/disk|/legs/a b|slot 0: gone|'


def test_a_program_that_hangs_is_killed_with_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monitor, 'PROGRAM_PATIENCE', 0.5)
    program = script(tmp_path, f'sleep 1000 & echo $! > {tmp_path}/child; wait')
    monitor._run(str(program), notice())
    assert 'did not end within 0.5 s' in capsys.readouterr().err
    child = int((tmp_path / 'child').read_text())

    def gone() -> bool:
        try:
            return Path(f'/proc/{child}/stat').read_text().rpartition(') ')[2][0] == 'Z'
        except OSError:
            return True

    wait_for(gone, 'its child is killed, too')


@pytest.mark.parametrize('text', ['exit 3', 'exec /nowhere/at/all'])
def test_a_program_that_fails_is_complained_about(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor._run(str(script(tmp_path, text)), notice())
    assert 'ended with' in capsys.readouterr().err


def test_a_line_is_one_line() -> None:
    assert monitor.line(notice(text='a\nb \udcff')) == r'Fail on /pool/disk /legs/a b: a\nb \udcff'
    assert monitor.line(Notice('/pool', Event('now', 'TestMessage'))) == 'TestMessage on /pool'


# Pools


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


def words(notices: list[Notice]) -> list[str]:
    return [notice.event.word for notice in notices]


@mount
def test_a_pool_is_followed_through_unmounts_and_deaths(pool: MountedPool) -> None:
    volume = pool.volume('disk', 8 * MIB)
    volume.put(0, b'x' * MIB)
    following = Following([str(pool.directory)])
    assert words(following.look()) == [], 'nothing is wrong, and what was is not told'
    volume.write('fail', '1')
    found = following.look()
    assert words(found) == ['Fail', 'DegradedArray']
    assert (found[0].what, found[0].event.device) == (f'{pool.directory}/disk', str(volume.legs[1]))
    assert following.look() == []
    volume.write('re-add', '1')
    volume.settled()
    found = following.look()
    assert words(found)[0] == 'RebuildStarted' and words(found)[-2:] == ['RebuildFinished', 'SpareActive']
    volume.write('fail', '1')
    pool.stop()  # which nothing that is open may keep
    found = following.look()
    assert words(found) == ['DeviceDisappeared'], 'what happened just before nobody could see'
    assert following.look() == []
    pool.start()
    found = following.look()
    assert words(found)[0] == 'NewArray' and 'DegradedArray' in words(found)
    pool.kill()
    found = following.look()
    assert words(found) == ['DeviceDisappeared'] and 'daemon is gone' in found[0].event.text
    pool.start()
    assert words(following.look())[0] == 'NewArray'


@mount
def test_a_mount_that_hangs_is_told_once_and_followed_on(
    pool: MountedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.volume('disk', 4 * MIB)
    monkeypatch.setattr(following, 'PATIENCE', 0.3)
    followed = Following([str(pool.mountpoint)])
    assert followed.look() == []
    pool.signal(signal.SIGSTOP)
    try:
        assert words(followed.look()) == ['Critical']
        assert followed.look() == []
    finally:
        pool.signal(signal.SIGCONT)
    pool.volume('other', 4 * MIB)
    found: list[str] = []
    wait_for(lambda: found.extend(words(followed.look())) or 'NewArray' in found, 'followed on')


@mount
def test_without_names_all_mounted_pools_are_followed(pool: MountedPool) -> None:
    followed = Following()
    followed.look()
    with MountedPool() as second:
        second.start()
        second.volume('late', 4 * MIB)
        found = [notice for notice in followed.look() if notice.pool == str(second.directory)]
        assert words(found)[0] == 'NewArray'
    assert str(pool.directory) in [follower.pool for follower in followed.followers]


@mount
def test_oneshot_says_what_is_wrong_now(pool: MountedPool) -> None:
    for name in ('good', 'bad'):
        pool.volume(name, 4 * MIB)
    assert cli_ok('monitor', '--oneshot', pool.directory) == ''
    pool.write('volumes/bad/fail', '0')
    (line,) = cli_ok('monitor', '--oneshot', pool.mountpoint).splitlines()
    assert line.endswith(f'DegradedArray on {pool.directory}/bad: 1 of 2 legs are missing')
    lines = cli_ok('monitor', '-1', '--test', '--json', pool.directory).splitlines()
    found = [json.loads(line) for line in lines]
    assert [(each['event'], each['volume']) for each in found] == [
        ('DegradedArray', 'bad'),
        ('TestMessage', 'bad'),
        ('TestMessage', 'good'),
    ]
    assert all(each['pool'] == str(pool.directory) for each in found)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    done = cli('monitor', '--oneshot', tmp_path)
    assert done.returncode == 1 and 'is no pool' in done.stderr
    done = cli('monitor', '--program', tmp_path / 'nothing')
    assert done.returncode == 1 and 'is not a program' in done.stderr


@mount
def test_the_command_runs_a_program_for_each_event(pool: MountedPool, tmp_path: Path) -> None:
    volume = pool.volume('disk', 4 * MIB)
    told = tmp_path / 'told'
    program = script(tmp_path, f'echo "$@" >> {told}')
    command = [*CLI, 'monitor', '--delay', '0.1', '--test', '--program', str(program), str(pool.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            wait_for(told.exists, 'TestMessage')
            volume.write('fail', '1')
            wait_for(lambda: 'DegradedArray' in told.read_text(), 'told')
        finally:
            os.kill(running.pid, signal.SIGINT)
        assert running.wait(30) == 130
        assert running.stdout and running.stdout.read() == ''
    where = f'{pool.directory}/disk'
    assert told.read_text().splitlines() == [
        f'TestMessage {where}',
        f'Fail {where} {volume.legs[1]}',
        f'DegradedArray {where}',
    ]


def test_every_level_has_a_priority() -> None:
    assert {monitor._priority(notice(word)) for word in [*events.LEVELS, 'Whatever']}
