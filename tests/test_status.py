"""mirrorfs status on real mounts: what legs occupy, advice that works, and --watch."""

import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mounts import CLI, MIB, MountedPool, cli, cli_ok, wait_for
from test_advice import leg, volume

from mirrorfs.cli.patience import Patient

mount = pytest.mark.mount
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made


def occupied(path: Path) -> int:
    return path.stat().st_blocks * 512


@mount
def test_the_facts_that_advice_goes_by_are_those_of_the_daemon(pool: MountedPool) -> None:
    pool.volume_at_rest('disk', 8 * MIB)
    pool.start()
    facts: dict[str, Any] = pool.volume_status('disk')
    assert set(volume()) <= set(facts)
    assert set(leg(0)) <= set(facts['legs'][0])
    pool.stop()


@mount
def test_status_says_what_legs_really_occupy(pool: MountedPool) -> None:
    disk = pool.volume_at_rest('disk', 64 * MIB)
    pool.start()
    disk.put(0, os.urandom(8 * MIB))

    def seen() -> bool:
        legs = disk.status()['legs']
        return all(leg['occupied'] == occupied(path) for leg, path in zip(legs, disk.legs, strict=True))

    wait_for(seen, 'what legs occupy')
    facts = disk.status()['legs'][0]
    assert 8 * MIB <= facts['occupied'] < 16 * MIB <= facts['occupied_max'] and facts['free'] > 0
    text = cli_ok('status', pool.directory)
    assert re.search(r'^ +0  in_sync +0 +0 +0  [\d.]+ MiB of 65 MiB  ', text, re.MULTILINE), text
    disk.write('fail', '1')
    assert disk.status()['legs'][1]['occupied'] is None
    pool.stop()
    text = cli_ok('status', pool.directory)
    assert 'mount the pool first: mirrorfs mount' in text
    assert len(re.findall(r' - +[\d.]+ MiB  /', text)) == 2, text


@mount
def test_what_is_advised_for_a_leg_that_was_given_up_brings_it_back(pool: MountedPool) -> None:
    """After a forced start re-adding is refused; to remove it and add it by force is not."""
    disk = pool.volume_at_rest('disk', 8 * MIB)
    pool.start()
    disk.put(0, b'both')
    pool.stop()
    for number in (0, 1):  # each goes on without the other
        kept = disk.legs[1 - number].rename(pool.legs / 'away')
        pool.start('force=disk')
        disk.put(0, b'leg %d' % number)
        pool.stop()
        kept.rename(disk.legs[1 - number])
    pool.start('force=disk')
    text = cli_ok('status', pool.directory)
    assert 'was left behind' in text, text
    commands = re.findall(r': mirrorfs ((?:remove|add .* --force).*)$', text, re.MULTILINE)
    assert len(commands) == 2, text
    for command in commands:
        cli_ok(*command.split())
    disk.settled()
    assert 'all is well' in cli_ok('status', pool.directory)
    pool.stop()
    disk.assert_legs_equal()


# --watch


@contextmanager
def watching(*words: object, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command line; Ctrl-C reaches it though tests may run in the background."""
    command = [*CLI, *map(str, words)]
    unignored = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        command, stdin=stdout if stdout >= 0 else None, stdout=stdout, stderr=stdout, preexec_fn=unignored
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def follow(fd: int) -> Callable[[str], str]:
    """Return what waits for a pattern in the output, and returns all that came since the last one."""
    seen = ''

    def until(pattern: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < deadline, f'{pattern} is not in {seen}'
            if select.select([fd], [], [], 1)[0]:
                seen += os.read(fd, 1 << 16).decode()
        said, seen = seen[: found.end()], seen[found.end() :]
        return said

    return until


@mount
def test_watch_goes_on_over_unmount_and_mount_and_a_mount_that_hangs_and_ends_well(
    pool: MountedPool,
) -> None:
    disk = pool.volume_at_rest('disk', 8 * MIB)
    pool.start()
    with watching('status', '--watch', '0.2', pool.directory, 'disk') as process:
        assert process.stdout
        until = follow(process.stdout.fileno())
        until('1 volume; all is well\n')
        disk.write('fail', '1')
        assert '\x1b' not in until('status: leg 1 failed')
        pool.stop()
        until('not mounted\n')
        pool.start()
        until(', mounted on ')
        pool.signal(signal.SIGSTOP)
        until(r'no answer for \d+ s')
        pool.signal(signal.SIGCONT)
        until('\npool .*\n.*\n\nvolume: disk\n')
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    pool.stop()


@mount
def test_watch_stays_in_place_on_a_terminal(pool: MountedPool) -> None:
    pool.volume_at_rest('disk', 8 * MIB)
    ours, theirs = pty.openpty()
    with watching('status', '--watch', '0.2', pool.directory, stdout=theirs) as process:
        os.close(theirs)
        until = follow(ours)
        until('volume: disk')
        frame = until('volume: disk')
        assert '\x1b[H' in frame and '\x1b[J' in frame
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    os.close(ours)


NO_INTERVALS = (['--watch', '0'], ['--watch', '-1'], ['--watch=soon'], ['--watch', '--json'])


@pytest.mark.parametrize('words', NO_INTERVALS)
def test_an_interval_that_is_none_is_refused(words: list[str], tmp_path: Path) -> None:
    done = cli('status', tmp_path, *words)
    assert done.returncode == 1 and '--watch' in done.stderr + done.stdout


def test_a_call_that_hangs_is_waited_for_and_not_made_again() -> None:
    go, calls = threading.Event(), []

    def hangs() -> int:
        calls.append(None)
        go.wait(30)
        return len(calls)

    patient = Patient(hangs)
    assert patient(0.01) is None and patient(0.01) is None and len(calls) == 1
    go.set()
    assert patient(30) == 1 and patient(30) == 2

    def fails() -> int:
        raise OSError(5, 'gone')

    with pytest.raises(OSError):
        Patient(fails)(30)
