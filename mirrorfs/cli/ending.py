"""How a command line ends: what is said of a failure, and the exit code.  No traceback reaches a user."""

import errno
import json
import os
import sys
from dataclasses import dataclass, replace

import click

from mirrorfs.cli.common import EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_SYSTEM
from mirrorfs.cli.manner import Manner
from mirrorfs.cli.terminal import printable
from mirrorfs.errors import BadMetadata, Refused


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, what to do about it, the exit code, and the errno where there is one."""

    error: str
    code: int
    hint: str = ''
    errno: int | None = None

    @property
    def line(self) -> str:
        """For people."""
        return f'{self.error}; {self.hint}' if self.hint else self.error

    @property
    def facts(self) -> dict[str, object]:
        """For programs."""
        name = errno.errorcode.get(self.errno) if self.errno else None
        return {'ok': False, 'error': self.error, 'hint': self.hint or None, 'errno': name, 'code': self.code}


def judge(error: BaseException) -> Failure | None:
    """Return what to say of an exception; None where nothing is, as when the reader is gone."""
    match error:
        case BaseExceptionGroup():
            return judge(error.exceptions[0])
        case click.exceptions.NoArgsIsHelpError() | BrokenPipeError():
            return None
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else 'mirrorfs'
            said = ' '.join(error.format_message().split())
            return Failure(said.rstrip('.'), EXIT_REFUSED, f'see {path} --help', errno.EINVAL)
        case click.ClickException():
            return Failure(error.format_message(), EXIT_REFUSED)
        case click.exceptions.Abort() | KeyboardInterrupt():
            return Failure('interrupted', EXIT_INTERRUPTED, errno=errno.EINTR)
        case Refused():
            said, _, hint = str(error).partition('; ')
            return Failure(said, EXIT_REFUSED, hint, error.errno)
        case BadMetadata():
            return Failure(str(error), EXIT_SYSTEM)
        case OSError():
            why = error.strerror or str(error) or type(error).__name__
            said = why if error.filename is None else f'{os.fsdecode(error.filename)}: {why}'
            return Failure(said, EXIT_SYSTEM, errno=error.errno)
        case MemoryError():
            return Failure('out of memory', EXIT_SYSTEM, errno=errno.ENOMEM)
    what = f'unexpected error: {type(error).__name__} {error}'.rstrip()
    return Failure(what, EXIT_SYSTEM, 'this is a defect of mirrorfs, and --debug shows where')


def tell(error: BaseException, manner: Manner) -> int:
    """Say what went wrong, in one line or one object; return the exit code.  Raises nothing."""
    failure = judge(error)
    code = EXIT_SYSTEM
    try:
        if failure:
            if failure.code != EXIT_INTERRUPTED and manner.failure is not None:
                failure = replace(failure, code=manner.failure)
            code = failure.code
            _show(failure, manner)
        elif isinstance(error, click.exceptions.NoArgsIsHelpError):
            code = EXIT_REFUSED
            error.show()
    except OSError:  # there is nobody to be told
        code = EXIT_SYSTEM
    try:
        flush()
    except OSError:
        code = EXIT_SYSTEM
    return code


def _show(failure: Failure, manner: Manner) -> None:
    if manner.json:
        click.echo(json.dumps(failure.facts))
    else:
        click.echo(f'mirrorfs: {printable(failure.line)}', err=True)


def open_standard_streams() -> None:
    """Have file descriptors 0 to 2 open: a leg that got one of them would be written messages to."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a path need not be text
            stream.reconfigure(errors='backslashreplace')


def flush() -> None:
    """Have written what was said.  Raises OSError, and then says no more."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # what cannot be written would fail again at the end
        os.close(null)
        raise
