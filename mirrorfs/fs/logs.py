"""Where the daemon's log goes, and that nobody waits for it.

| started in the | stderr is the journal's | else |
|---|---|---|
| foreground | stderr, a level before each line | stderr, for people |
| background | stderr, a level before each line | /dev/log; where nothing listens there, a file in the pool |

The journal, or who reads our stderr, may be slow, or stand still because its own disk is one of our images.
So a line is written at once only where that cannot wait.  Otherwise a thread writes it, and if too many lines
wait for that, the next ones are counted and given up.
"""

import errno
import logging
import logging.handlers
import os
import select
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from mirrorfs import limits
from mirrorfs.errors import Refused

STDERR = 2
SYSLOG = '/dev/log'
_IDENT = 'mirrorfs'
_DAEMON = 3 << 3
"""The facility of syslog(3)."""
_PIECE = select.PIPE_BUF
"""A stream that can be written to takes so many bytes without waiting."""
_PATIENCE = 0.5
"""Seconds until the next try; and what the end of the daemon waits for its log."""


def priority(level: int) -> int:
    """Return syslog's number for a level of Python's: 7 for debug to 2 for critical."""
    return next((number for least, number in ((50, 2), (40, 3), (30, 4), (20, 6)) if level >= least), 7)


class Outlet(Protocol):
    """Where lines go."""

    eager: bool
    """Whether `offer` never waits, so that any thread may call it."""

    def encode(self, text: str, level: int) -> list[bytes]:
        """Return what is to be offered for one message, piece by piece."""
        ...

    def offer(self, piece: bytes) -> bool:
        """Write a piece, or return False if it is to be tried again later."""
        ...

    def wait(self) -> None:
        """Return when another try makes sense."""
        ...


class Stream:
    """A descriptor of somebody else's, which must not be made non-blocking: it may be shared."""

    eager = True

    def __init__(self, fd: int, *, levels: bool) -> None:
        """`levels`: whether each line begins with its level, as sd-daemon(3) has it."""
        self._fd = fd
        self._levels = levels
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def encode(self, text: str, level: int) -> list[bytes]:
        if self._levels:
            lines = ''.join(f'<{priority(level)}>{line}\n' for line in text.splitlines())
        else:
            lines = f'{_IDENT}[{os.getpid()}]: {logging.getLevelName(level)}: {text}\n'
        data = lines.encode(errors='backslashreplace')
        return [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]

    def offer(self, piece: bytes) -> bool:
        if not self._poll.poll(0):
            return False
        try:
            os.write(self._fd, piece)
        except BlockingIOError:
            return False
        except OSError:
            pass  # who read it has gone
        return True

    def wait(self) -> None:
        self._poll.poll(_PATIENCE * 1000)


class Syslog:
    """The socket of syslog or the journal, connected anew when that is started anew."""

    eager = True

    def __init__(self, path: str) -> None:
        """Connect.  Raises OSError if nobody listens."""
        self._path = path
        self._socket = self._connect()
        self._heard = True
        """Whether somebody listens, as far as we know."""

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        return made

    def encode(self, text: str, level: int) -> list[bytes]:
        line = f'<{_DAEMON | priority(level)}>{_IDENT}[{os.getpid()}]: {text}'
        return [line.encode(errors='backslashreplace')[: limits.LOG_LINE_MAX]]

    def offer(self, piece: bytes) -> bool:
        try:
            self._socket.send(piece, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return self._offer_anew(piece)
        return True

    def _offer_anew(self, piece: bytes) -> bool:
        try:
            fresh = self._connect()
            self._socket.close()
            self._socket = fresh
            fresh.send(piece, socket.MSG_DONTWAIT)
            self._heard = True
        except OSError:
            self._heard = False
        return self._heard

    def wait(self) -> None:
        if not self._heard:
            time.sleep(_PATIENCE)
            return
        room = select.poll()
        room.register(self._socket, select.POLLOUT)
        room.poll(_PATIENCE * 1000)


class LogFile:
    """A file of bounded size, with one older one beside it.  Its disk may be slow, so a thread writes it."""

    eager = False

    def __init__(self, path: Path) -> None:
        """Begin or go on with a file.  Raises OSError."""
        self._file = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=1)

    def encode(self, text: str, level: int) -> list[bytes]:
        now = time.strftime('%Y-%m-%dT%H:%M:%S%z')
        line = f'{now} {_IDENT}[{os.getpid()}]: {logging.getLevelName(level)}: {text}'
        return [line.encode(errors='backslashreplace')]

    def offer(self, piece: bytes) -> bool:
        self._file.handle(logging.makeLogRecord({'msg': piece.decode()}))
        return True

    def wait(self) -> None:
        pass


class Patient(logging.Handler):
    """Hands messages to an outlet; whoever logs never waits for it."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self._outlet = outlet
        self._guard = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._thread: threading.Thread | None = None

    def createLock(self) -> None:
        """Have none: `_guard` is held for moments only; a thread may be at the outlet while others log."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except (TypeError, ValueError, KeyError):
            text = f'{record.msg!r} does not go with {record.args!r}'  # whoever logs is not to suffer for it
        pieces = self._outlet.encode(text, record.levelno)
        with self._guard:
            for piece in pieces:
                if self._thread or not self._outlet.eager or not self._outlet.offer(piece):
                    self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        if len(self._waiting) >= limits.LOG_WAITING_MAX:
            self._lost += 1
            return
        self._waiting.append(piece)
        if not self._thread:
            self._thread = threading.Thread(target=self._write, name='log', daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                self._thread = None  # no thread is to be had now; the next line tries again

    def _write(self) -> None:
        """Write what waits, as fast as it is taken; on a thread that is there only for so long."""
        while piece := self._first():
            if self._outlet.offer(piece):
                with self._guard:
                    self._waiting.popleft()
            else:
                self._outlet.wait()

    def _first(self) -> bytes | None:
        """Return the next piece, which stays first; or None, and the thread ends."""
        with self._guard:
            if self._lost and len(self._waiting) < limits.LOG_WAITING_MAX // 2:
                lost, self._lost = self._lost, 0
                text = f'{lost} lines of the log are lost: nobody took them'
                self._waiting.extend(self._outlet.encode(text, logging.WARNING))
            if not self._waiting:
                self._thread = None
                return None
            return self._waiting[0]

    def flush(self) -> None:
        """Wait, within bounds, until all is written."""
        deadline = time.monotonic() + _PATIENCE
        while self._waiting and time.monotonic() < deadline:
            time.sleep(0.005)


def stderr_is_the_journal() -> bool:
    """Whether our stderr leads to the journal, by what systemd says in the environment."""
    info = os.fstat(STDERR)
    return os.environ.get('JOURNAL_STREAM') == f'{info.st_dev}:{info.st_ino}'


def in_foreground() -> Outlet:
    """Return where a daemon in the foreground logs."""
    return Stream(STDERR, levels=stderr_is_the_journal())


def in_background(pool: str) -> Outlet:
    """Return where a daemon in the background logs.  Raises Refused if nowhere."""
    if stderr_is_the_journal():
        return Stream(STDERR, levels=True)
    try:
        return Syslog(SYSLOG)
    except OSError:
        pass
    file = Path(pool) / 'log'
    try:
        return LogFile(file)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f'cannot log to {file}: {error.strerror}') from None


def log_to(outlet: Outlet, *, debug: bool) -> None:
    """Have all that is logged go there, and nowhere else."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(Patient(outlet))
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    if isinstance(outlet, LogFile):
        logging.getLogger(__name__).warning('nobody listens on /dev/log, so the log goes to this file')
