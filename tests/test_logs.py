"""The log: where it goes, with which level, and that nobody waits for it."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import wait_for

from mirrorfs import limits
from mirrorfs.events import EventLog
from mirrorfs.fs import logs

LEVELS = {'debug': 7, 'info': 6, 'warning': 4, 'error': 3, 'critical': 2}
MANY = 3 * limits.LOG_WAITING_MAX


@pytest.fixture
def log_to() -> Iterator[Callable[[logs.Outlet], logging.Logger]]:
    """Make a logger of its own for an outlet; afterwards its thread has ended."""
    made = []

    def make(outlet: logs.Outlet) -> logging.Logger:
        logger = logging.Logger('test')
        handler = logs.Patient(outlet)
        logger.addHandler(handler)
        made.append(handler)
        return logger

    yield make
    for handler in made:
        handler.flush()
        assert not handler._waiting


class FakeSyslog:
    """A socket like /dev/log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listen()

    def listen(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(10)

    def end(self) -> None:
        self.socket.close()
        self.path.unlink()

    def take(self) -> str:
        return self.socket.recv(1 << 17).decode()


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[FakeSyslog]:
    made = FakeSyslog(tmp_path / 'log')
    yield made
    made.end()


Log = Callable[[logs.Outlet], logging.Logger]


def test_syslog_gets_levels_and_who_says_it(syslog: FakeSyslog, log_to: Log) -> None:
    logger = log_to(logs.Syslog(str(syslog.path)))
    for word, number in LEVELS.items():
        getattr(logger, word)('said %d', number)
        assert syslog.take() == f'<{3 * 8 + number}>mirrorfs[{os.getpid()}]: said {number}'


def test_every_line_for_the_journal_begins_with_its_level(log_to: Log) -> None:
    ours, theirs = os.pipe()
    logger = log_to(logs.Stream(theirs, levels=True))
    with open(ours) as stream:
        for word, number in LEVELS.items():
            getattr(logger, word)('one\ntwo')
            assert [stream.readline(), stream.readline()] == [f'<{number}>one\n', f'<{number}>two\n']
        try:
            raise ZeroDivisionError('planted')
        except ZeroDivisionError:
            logger.critical('what', exc_info=True)
        os.close(theirs)
        lines = stream.read().splitlines()
    assert len(lines) > 3 and all(line.startswith('<2>') for line in lines)


def test_people_get_plain_lines(log_to: Log) -> None:
    ours, theirs = os.pipe()
    logger = log_to(logs.Stream(theirs, levels=False))
    logger.warning('odd: %s', 'a\udcff')
    os.close(theirs)
    with open(ours) as stream:
        assert stream.read() == f'mirrorfs[{os.getpid()}]: WARNING: odd: a\\udcff\n'


def test_a_message_that_cannot_be_formatted_is_said_all_the_same(syslog: FakeSyslog, log_to: Log) -> None:
    log_to(logs.Syslog(str(syslog.path))).info('%d legs', 'two')
    assert "'%d legs' does not go with ('two',)" in syslog.take()


def test_a_reader_who_has_gone_is_no_matter(log_to: Log, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.pipe()
    logger = log_to(logs.Stream(theirs, levels=False))
    os.close(ours)
    logger.error('to nobody')
    os.close(theirs)
    assert capsys.readouterr().err == ''  # where logging says what went wrong in a handler


def test_a_journal_that_stands_still_holds_nobody_up_and_loses_only_what_is_too_much(
    syslog: FakeSyslog, log_to: Log
) -> None:
    logger = log_to(logs.Syslog(str(syslog.path)))
    began = time.monotonic()
    for number in range(MANY):
        logger.info('line %d', number)
    assert time.monotonic() - began < 5
    taken = []
    while not taken or 'are lost' not in taken[-1]:
        taken.append(syslog.take().partition(': ')[2])
    numbers = [int(line.split()[1]) for line in taken[:-1]]
    assert numbers == list(range(len(numbers))), 'lines that waited are in order, none is missing between'
    assert limits.LOG_WAITING_MAX <= len(numbers) < MANY
    assert taken[-1] == f'{MANY - len(numbers)} lines of the log are lost: nobody took them'
    logger.info('goes on')
    assert syslog.take().endswith('goes on')


def test_a_pipe_that_nobody_reads_holds_nobody_up(log_to: Log) -> None:
    ours, theirs = os.pipe()
    logger = log_to(logs.Stream(theirs, levels=True))
    began = time.monotonic()
    for number in range(300):
        logger.info('%d %s', number, 'x' * 5000)
    assert time.monotonic() - began < 5
    with open(ours) as stream:
        for number in range(300):
            assert stream.readline() == f'<6>{number} {"x" * 5000}\n'
        wait_for(lambda: threading.active_count() == 1, 'the thread has ended')
        os.close(theirs)


def test_a_journal_that_is_started_anew_gets_what_was_said_meanwhile(syslog: FakeSyslog, log_to: Log) -> None:
    logger = log_to(logs.Syslog(str(syslog.path)))
    logger.info('before')
    assert syslog.take().endswith('before')
    syslog.end()
    logger.info('meanwhile')
    syslog.listen()
    assert syslog.take().endswith('meanwhile')


def test_without_syslog_a_file_in_the_pool_has_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_to: Log
) -> None:
    monkeypatch.setattr(logs, 'SYSLOG', str(tmp_path / 'nothing'))
    monkeypatch.delenv('JOURNAL_STREAM', raising=False)
    outlet = logs.in_background(str(tmp_path))
    assert isinstance(outlet, logs.LogFile)
    logger = log_to(outlet)
    logger.error('kept')
    for handler in logger.handlers:
        handler.flush()
    wait_for(lambda: (tmp_path / 'log').read_text(), 'the line')
    assert (tmp_path / 'log').read_text().endswith(f' mirrorfs[{os.getpid()}]: ERROR: kept\n')


def test_stderr_is_the_journal_only_if_it_is_the_one_that_systemd_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = os.fstat(logs.STDERR)
    monkeypatch.setenv('JOURNAL_STREAM', f'{info.st_dev}:{info.st_ino}')
    assert logs.stderr_is_the_journal()
    for other in ('', f'{info.st_dev}:{info.st_ino + 1}', 'x:y'):
        monkeypatch.setenv('JOURNAL_STREAM', other)
        assert not logs.stderr_is_the_journal()


EVENTS = {
    'Critical': 2,
    'LogLost': 2,
    'Fail': 3,
    'FailSpare': 3,
    'QuorumLost': 3,
    'DegradedArray': 4,
    'BadBlocks': 4,
    'LegAbsent': 4,
    'RebuildStarted': 6,
    'SpareActive': 6,
}


@pytest.mark.parametrize('word', EVENTS)
def test_events_have_fitting_levels(word: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        EventLog().emit(word, 'vm1', '/leg', 'text')
    assert logs.priority(caplog.records[-1].levelno) == EVENTS[word]
    assert caplog.records[-1].getMessage() == f'{word} vm1 /leg text'
