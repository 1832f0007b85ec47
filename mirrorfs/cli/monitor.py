"""monitor: says what happens in mounted pools, as mdadm --monitor does of arrays."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import syslog
import threading
import time
from collections.abc import Callable
from logging import CRITICAL, ERROR, INFO, WARNING

import click

from mirrorfs.cli import complete
from mirrorfs.cli.common import Place, find
from mirrorfs.cli.following import Following, Notice
from mirrorfs.cli.terminal import printable
from mirrorfs.errors import Refused
from mirrorfs.events import LEVELS
from mirrorfs.fs import mounting

PROGRAM_PATIENCE = 60.0
"""Seconds that a program may take for one event."""
_PRIORITIES = {
    CRITICAL: syslog.LOG_CRIT,
    ERROR: syslog.LOG_ERR,
    WARNING: syslog.LOG_WARNING,
    INFO: syslog.LOG_INFO,
}
Report = Callable[[Notice], None]


@click.command()
@click.argument('pools', metavar='[POOL]...', nargs=-1, type=Place(), shell_complete=complete.pools)
@click.option('-1', '--oneshot', is_flag=True, help='say what is wrong now, and end')
@click.option('-t', '--test', is_flag=True, help='say TestMessage for every volume first')
@click.option('-p', '--program', '--alert', metavar='PROGRAM', help='run PROGRAM EVENT POOL/VOLUME [LEG]')
@click.option('-y', '--syslog', 'to_syslog', is_flag=True, help='say it to syslog')
@click.option('--json', 'as_json', is_flag=True, help='print an object a line, for programs')
@click.option(
    '-d',
    '--delay',
    type=click.FloatRange(0.1, 86400),
    metavar='SECONDS',
    default=1.0,
    show_default=True,
    help='seconds between two looks',
)
def monitor(
    pools: tuple[str, ...],
    oneshot: bool,
    test: bool,
    program: str | None,
    to_syslog: bool,
    as_json: bool,
    delay: float,
) -> None:
    """Say what happens in each POOL, or in all that are mounted, until interrupted.

    Each event is printed, unless it goes to a program or to syslog.  Events are those of `mirrorfs events`,
    and DeviceDisappeared, NewArray where a pool is unmounted or mounted.  There is no --mail: have PROGRAM
    send it.

    \b
    mirrorfs monitor --oneshot /srv/pool        from cron: what is wrong now
    mirrorfs monitor --program /usr/local/sbin/tell-me
    """
    interrupted = _interrupts()
    report = _reporter(program, to_syslog=to_syslog, as_json=as_json)
    following = Following(pools)
    if oneshot:
        for pool in pools:
            find(pool).require_mounted()
        if not mounting.mounts():
            raise Refused(errno.ENOTCONN, 'no pool is mounted')
    notices = following.look()
    if test:
        for follower in following.followers:
            notices += [follower.notice('TestMessage', volume) for volume in follower.volumes]
    while True:
        for notice in notices:
            report(notice)
        if oneshot:
            return
        time.sleep(delay)
        if interrupted:
            raise KeyboardInterrupt
        notices = following.look()


def _interrupts() -> list[int]:
    """Have SIGINT noted, in what this returns, as well as raised: what is raised in a finaliser gets lost."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, note)
    return noted


def _reporter(program: str | None, *, to_syslog: bool, as_json: bool) -> Report:
    """Return what is done with each event.  Raises Refused(ENOENT) where there is no such program."""
    reports: list[Report] = []
    if program is not None:
        found = shutil.which(program)
        if found is None:
            raise Refused(errno.ENOENT, f'{program} is not a program that can be run')
        path = os.path.abspath(found)
        reports.append(lambda notice: _run(path, notice))
    if to_syslog:
        syslog.openlog('mirrorfs', 0, syslog.LOG_DAEMON)
        reports.append(lambda notice: syslog.syslog(_priority(notice), line(notice)))
    if as_json or not reports:
        reports.append(
            _print_object if as_json else lambda notice: _print(f'{notice.event.time} {line(notice)}')
        )

    def report(notice: Notice) -> None:
        for each in reports:
            each(notice)

    return report


def line(notice: Notice) -> str:
    """Return an event as a line for people, without the time: ``EVENT on POOL/VOLUME LEG: TEXT``."""
    event = notice.event
    about = f'{event.word} on {notice.what}{f" {event.device}" if event.device else ""}'
    return printable(f'{about}: {event.text}' if event.text else about)


def _print(text: str) -> None:
    print(text, flush=True)


def _print_object(notice: Notice) -> None:
    event = notice.event
    facts = {'time': event.time, 'event': event.word, 'pool': notice.pool, 'volume': event.volume}
    _print(json.dumps(facts | {'device': event.device, 'text': event.text}))


def _priority(notice: Notice) -> int:
    return _PRIORITIES[LEVELS.get(notice.event.word, INFO)]


def _run(program: str, notice: Notice) -> None:
    """Have a program told, with mdadm's arguments; one that takes too long is killed, with what it began."""
    event = notice.event
    words = [program, event.word, notice.what, *([event.device] if event.device else [])]
    environment = os.environ | {'MIRRORFS_TIME': event.time, 'MIRRORFS_TEXT': event.text.replace('\0', '')}
    try:
        running = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
    except OSError as error:
        _complain(program, notice, error.strerror or str(error))
        return
    try:
        if code := running.wait(PROGRAM_PATIENCE):
            _complain(program, notice, f'ended with {code}')
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # of its own session, and not waited for yet: it is ours
        running.wait()
        _complain(program, notice, f'did not end within {PROGRAM_PATIENCE:g} s and was killed')


def _complain(program: str, notice: Notice, what: str) -> None:
    print(f'mirrorfs: {program} {what}; it was told: {line(notice)}', file=sys.stderr, flush=True)
