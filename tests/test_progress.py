"""Progress of passes: events, mdstat, control files; what `status` and `wait` show, on a terminal or not."""

import errno
import io
import os
import pty
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mounts import CLI, MDSTAT_PROGRESS, MIB, MountedPool, Volume, cli, cli_ok, run, wait_for

from mirrorfs.cli.progress import Meter
from mirrorfs.volume.passes import Progress, announced

pytestmark = pytest.mark.timeout(120)
mount = pytest.mark.mount


# How far a pass is


def test_a_pass_that_goes_on_tells_only_the_steps_ahead() -> None:
    progress = Progress('check', None, 45, 100, 0.0)
    assert progress.steps() == []
    progress.advance(15, 1.0)
    assert progress.steps() == [60] and progress.steps() == []
    progress.advance(40, 2.0)
    assert progress.steps() == [80], 'the end has an event of its own'


def test_a_pass_at_a_step_does_not_tell_it_again() -> None:
    progress = Progress('check', None, 40, 100, 0.0)
    progress.advance(19, 1.0)
    assert progress.steps() == []


def test_a_pass_with_nothing_to_do_is_done() -> None:
    progress = Progress('recover', 1, 0, 0, 0.0)
    assert progress.percent == 100 and progress.steps() == []


def test_what_was_done_before_is_no_speed() -> None:
    progress = Progress('recover', 1, 500, 1000, 10.0)
    assert progress.speed(11.0) == 0
    progress.advance(100, 12.0)
    assert progress.speed(12.0) == 50


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    progress = Progress('recover', 1, 0, 1 << 40, 0.0)
    for second in range(1, 101):
        progress.advance(1000, float(second))
    assert progress.speed(100.0) == pytest.approx(1000)
    for second in range(101, 131):
        progress.advance(10, float(second))
    assert progress.speed(130.0) == pytest.approx(10, rel=0.01), 'the fast start is still counted'


@dataclass
class Told:
    """Takes a volume's events."""

    name: str = 'vm'
    events: list[tuple[str, ...]] = field(default_factory=list)

    def emit(self, *words: str) -> None:
        self.events.append(words)


def test_every_pass_that_began_is_said_to_be_over() -> None:
    told, progress = Told(), Progress('recover', 1, 30, 100, 0.0)
    with announced(told, progress, 'recovery', 'of 7 chunks', '/leg') as ending:  # type: ignore[arg-type]
        ending.done, ending.result = True, '7 bytes copied'
    with announced(told, progress, 'recovery', 'of 7 chunks') as ending:  # type: ignore[arg-type]
        ending.result = '3 bytes copied'
    with pytest.raises(OSError), announced(told, progress, 'check', 'of all'):  # type: ignore[arg-type]
        raise OSError(errno.EIO, 'no leg could be read')
    assert told.events == [
        ('RebuildStarted', 'vm', '/leg', 'recovery of 7 chunks'),
        ('RebuildFinished', 'vm', '/leg', 'recovery, 7 bytes copied'),
        ('RebuildStarted', 'vm', '', 'recovery of 7 chunks'),
        ('RebuildFinished', 'vm', '', 'recovery interrupted at 30%, 3 bytes copied'),
        ('RebuildStarted', 'vm', '', 'check of all'),
        ('RebuildFinished', 'vm', '', 'check failed: no leg could be read'),
    ]


# The lines for people


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_meter_draws_a_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr('time.monotonic', lambda: now)
    terminal, plain = Terminal(), io.StringIO()
    meters = [Meter('vm: recover', 4 * MIB, stream) for stream in (terminal, plain)]
    for at, done, speed in ((100.5, 0, 1), (102.0, MIB, MIB), (102.05, 2 * MIB, MIB), (110.0, 3 * MIB, 0)):
        now = at
        for meter in meters:
            meter.update(done, speed)
    for meter in meters:
        meter.finish()
        meter.leave()
    assert terminal.getvalue().split('\r\x1b[K') == [
        '',
        'vm: recover [=====>...............] 25% (1 MiB of 4 MiB, 1 MiB/s, 3s left)',
        'vm: recover [===============>.....] 75% (3 MiB of 4 MiB)',
        'vm: recover [====================>] 100% (4 MiB of 4 MiB)\n',
    ]
    assert plain.getvalue().splitlines() == [
        'vm: recover 25% (1 MiB of 4 MiB, 1 MiB/s, 3s left)',
        'vm: recover 75% (3 MiB of 4 MiB)',
        'vm: recover 100% (4 MiB of 4 MiB)',
    ]


def test_a_meter_of_nothing_is_done() -> None:
    assert Meter('vm: recover', 0, io.StringIO()).line(0) == 'vm: recover 100% (0 B of 0 B)'


@pytest.mark.parametrize('columns', [20, 60, 70, 200])
def test_a_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv('COLUMNS', str(columns))
    meter = Meter('vm: recover', 1 << 40, Terminal())
    line = meter.line(1 << 39, 1 << 29)
    assert line.startswith('vm: recover') and len(line) < columns
    assert ('>' in line) == (columns >= 70) and ('17m04s left' in line) == (columns > 20)


def test_a_meter_left_half_way_ends_its_line_and_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr('time.monotonic', lambda: now)
    terminal = Terminal()
    with pytest.raises(KeyboardInterrupt), Meter('copying', 4 * MIB, terminal) as meter:
        now = 104.0
        meter.update(2 * MIB)
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith('] 50% (2 MiB of 4 MiB, 512 KiB/s, 4s left)\n')


# On real mounts


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


def fill(volume: Volume) -> None:
    with volume.open() as fd:
        for at in range(0, volume.size, MIB):
            os.pwrite(fd, random.Random(at).randbytes(MIB), at)
        os.fsync(fd)


def told(pool: MountedPool, since: int = 0) -> list[str]:
    """Return the events of passes, as word and what the text begins with: ``RebuildStarted check``."""
    words = [event.split() for event in pool.events()[since:]]
    return [
        ' '.join([w[1], *(v for v in w[3:] if v.strip(',') in ('resync', 'recovery', 'check', 'repair'))])
        for w in words
        if w[1].startswith(('Rebuild', 'Spare', 'FailSpare', 'Fail'))
    ]


def whole(what: str) -> list[str]:
    steps = [f'Rebuild{step}' for step in (20, 40, 60, 80)]
    return [f'RebuildStarted {what}', *steps, f'RebuildFinished {what},']


@mount
def test_each_kind_of_pass_tells_its_start_every_fifth_and_its_end(pool: MountedPool) -> None:
    volume = pool.volume('disk', 32 * MIB, legs=3)
    fill(volume)
    for words, what in (('check', 'check'), ('repair', 'repair')):
        since = len(pool.events())
        volume.write('sync_action', words)
        wait_for(lambda: volume.read('sync_action') == 'idle\n', f'end of {what}')
        assert told(pool, since) == whole(what)
    leg = pool.legs / 'disk.new'
    since = len(pool.events())
    volume.write('add', str(leg))
    volume.settled()
    wait_for(lambda: 'SpareActive' in told(pool, since), 'the new leg counts')
    assert told(pool, since) == [*whole('recovery'), 'SpareActive']
    of_the_leg = [
        event.split()[1] for event in pool.events()[since:] if event.split()[2:4] == ['disk', str(leg)]
    ]
    assert of_the_leg == ['RebuildStarted', 'RebuildFinished', 'SpareActive']
    pool.kill()
    run('umount', '-l', pool.mountpoint)
    pool.start()
    volume.settled()
    wait_for(lambda: told(pool)[-1] == 'RebuildFinished resync,', 'the end of the resync')
    assert told(pool) == whole('resync')


def recovering(pool: MountedPool, speed: int = 8) -> Volume:
    """Return a volume with a third leg on its way, at so many MiB/s; half a minute of it at 8."""
    volume = pool.volume('disk', 256 * MIB)
    fill(volume)
    volume.write('sync_speed_max', str(speed * 1024))
    volume.write('add', str(pool.legs / 'disk.new'))
    wait_for(lambda: (volume.status()['sync'] or {}).get('done_bytes', 0) > 8 * MIB, 'a recovery under way')
    return volume


@mount
def test_a_spare_that_fails_is_said_and_its_recovery_is_over(pool: MountedPool) -> None:
    volume = recovering(pool)
    since = len(pool.events())
    volume.write('fail', '2')
    wait_for(lambda: volume.status()['sync'] is None, 'the recovery is over')
    wait_for(lambda: 'RebuildFinished recovery' in told(pool, since), 'the end of the recovery')
    assert told(pool, since) == ['FailSpare', 'RebuildFinished recovery']
    failed, finished = pool.events()[since:]
    assert failed.split(' ', 3)[3] == f'{pool.legs}/disk.new slot 2: failed by the admin'
    assert re.search(r' recovery interrupted at \d+%, \d+ bytes copied$', finished)
    done = cli('wait', pool.directory, 'disk')
    assert done.returncode == 1 and 'disk is still degraded' in done.stderr
    assert '100%' not in done.stderr, 'it says that the recovery was completed'


@mount
def test_an_interrupted_recovery_goes_on_where_it_was_also_in_what_it_tells(pool: MountedPool) -> None:
    volume = recovering(pool, speed=32)
    wait_for(lambda: 'Rebuild40' in told(pool), 'two fifths')
    volume.write('sync_action', 'frozen')
    assert 'RebuildFinished recovery' in told(pool) and 'SpareActive' not in told(pool)
    since = len(pool.events())
    volume.write('sync_speed_max', 'system')
    volume.write('sync_action', 'idle')
    volume.settled()
    wait_for(lambda: 'SpareActive' in told(pool, since), 'the new leg counts')
    now = told(pool, since)
    assert 'Rebuild40' not in now and now[-3:] == ['Rebuild80', 'RebuildFinished recovery,', 'SpareActive']


@mount
def test_a_recovery_under_way_is_shown_in_all_forms_of_md(pool: MountedPool) -> None:
    volume = recovering(pool, speed=16)
    wait_for(lambda: volume.status()['sync']['done_bytes'] > 48 * MIB, 'a speed that has settled')
    lines = (pool.control / 'mdstat').read_text().splitlines()
    found = MDSTAT_PROGRESS.match(next(line for line in lines if '>' in line))
    assert found and found[3] == 'recovery' and int(found[7]) == 256 * 1024
    permille = int(found[6]) * 1000 // int(found[7])
    assert (int(found[4]), int(found[5])) == divmod(permille, 10) and len(found[1]) == permille // 50
    figures = re.search(r'finish=(\d+)\.(\d)min speed=(\d+)K/sec', found[0])
    assert figures
    speed, left = int(figures[3]), int(found[7]) - int(found[6])
    assert 8 * 1024 < speed < 20 * 1024, 'the ceiling is 16 MiB/s'
    assert int(figures[1]) * 10 + int(figures[2]) == left * 10 // speed // 60
    assert volume.read('sync_action') == 'recover\n'
    assert re.fullmatch(rf'\d+ / {256 * 2048}\n', volume.read('sync_completed'))
    assert 8 * 1024 < int(volume.read('sync_speed')) < 20 * 1024
    volume.write('sync_speed_max', 'system')
    volume.settled()
    assert (volume.read('sync_completed'), volume.read('sync_speed')) == ('none\n', 'none\n')


def crash_dirty(pool: MountedPool, size: int) -> Volume:
    """Return a volume that has all to be made equal, at 16 MiB/s."""
    volume = pool.volume('disk', size)
    volume.write('bitmap/time_base', '60')
    volume.write('sync_speed_max', str(16 * 1024))
    fill(volume)
    pool.kill()
    run('umount', '-l', pool.mountpoint)
    pool.start()
    return volume


@mount
def test_a_resync_that_is_held_back_is_pending(pool: MountedPool) -> None:
    volume = crash_dirty(pool, 64 * MIB)
    wait_for(lambda: volume.read('sync_action') == 'resync\n', 'the resync')
    volume.write('sync_action', 'frozen')
    lines = (pool.control / 'mdstat').read_text().splitlines()
    assert '      \tresync=PENDING' in lines
    assert volume.read('sync_action') == 'frozen\n' and volume.read('sync_completed') == 'none\n'
    volume.write('sync_speed_max', 'system')
    volume.write('sync_action', 'idle')
    volume.settled()
    assert 'PENDING' not in (pool.control / 'mdstat').read_text()


# What people see


def on_a_terminal(*words: str | Path) -> tuple[int, str]:
    """Run the command line on a terminal; return its exit code and what it wrote there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*CLI, *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b''
        try:
            while piece := os.read(ours, 1 << 16):
                text += piece
        except OSError as end:  # of the last one who had it open
            assert end.errno == errno.EIO
        os.close(ours)
        return process.wait(30), text.decode().replace('\r\n', '\n')


@mount
def test_status_and_wait_draw_a_bar_on_a_terminal_and_say_it_plainly_elsewhere(pool: MountedPool) -> None:
    moving = r'\d+% \(\d+ MiB of 256 MiB, [\d.]+ [KM]iB/s, \d+s left\)'
    recovering(pool, speed=32)
    code, text = on_a_terminal('status', pool.directory, 'disk')
    assert code == 0
    assert re.search(r'  sync: recover \[=*>\.+\] \d+%, [\d.]+ [KM]iB/s, \d+s left\n', text), text
    text = cli_ok('status', pool.directory, 'disk')
    assert re.search(r'  sync: recover \d+%, [\d.]+ [KM]iB/s, \d+s left\n', text), text
    code, text = on_a_terminal('wait', pool.directory, '--timeout', '2')
    assert code == 1 and text.endswith('\nmirrorfs: not done after 2 s\n')
    bars = text.split('\n')[0].split('\r\x1b[K')[1:]
    assert len(bars) > 2
    for bar in bars:
        assert re.fullmatch(rf'disk: recover \[=*>\.*\] {moving}', bar), bar
    done = cli('wait', pool.mountpoint, 'disk', '--timeout', '60')
    assert done.returncode == 0, done.stderr
    *lines, last = done.stderr.splitlines()
    assert lines and last == 'disk: recover 100% (256 MiB of 256 MiB)'
    for line in lines:
        assert re.fullmatch(rf'disk: recover {moving}', line), line


@mount
def test_wait_says_by_its_exit_code_whether_all_went_well(pool: MountedPool) -> None:
    volume = pool.volume('disk', 64 * MIB)
    assert cli('wait', pool.directory, 'disk').returncode == 0, 'there is nothing to wait for'
    fill(volume)
    volume.write('sync_speed_max', str(16 * 1024))
    volume.write('sync_action', 'check')
    wait_for(lambda: (volume.status()['sync'] or {}).get('done_bytes', 0) > 4 * MIB, 'the check')
    with subprocess.Popen([*CLI, 'wait', str(pool.directory)], stderr=subprocess.PIPE, text=True) as waiter:
        assert waiter.stderr
        line = waiter.stderr.readline()
        assert re.match(r'disk: check \d+% \(', line), line
        volume.write('sync_action', 'idle')
        rest = waiter.stderr.read()
        assert waiter.wait(30) == 1 and re.search(r'disk had its check end at \d+%', rest), rest
        assert '100%' not in rest
    assert cli('wait', pool.directory).returncode == 0, 'that check is over and no matter of this wait'
    assert cli('wait', pool.directory, 'none').returncode == 1
