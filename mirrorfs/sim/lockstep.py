"""A thread in lockstep: it runs only while another waits in `advance`, and stops before every line.

So what two threads do to each other is decided by whoever calls `advance`, and is the same every time.  The
thread is a real one, and what it runs is the code as it is: the lines of chosen files are found by tracing.
Its system calls are to be replaced by `call`: a generator that runs on the side of `advance`, a step of it at
a time, while the thread waits for its result as a thread waits in the kernel.

An *interleaving point* is a line of a traced file, or a step of a call.
"""

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

T = TypeVar('T')
_PATIENCE = 60.0
"""Real seconds after which a thread that does not come to its next point counts as hanging."""


class Gate(Protocol):
    """What a call waits for; a trio.Event is one."""

    def is_set(self) -> bool: ...

    async def wait(self) -> None: ...


Work = Generator[Gate | None, None, T]
"""A system call in steps.  What it yields must be set before it goes on; None is just a point."""


class Killed(BaseException):
    """Ends a thread that is not wanted any more, wherever it is."""


class Lockstep:
    """One thread in lockstep.  All methods are for the side that waits."""

    def __init__(self, run: Callable[[], None], files: frozenset[str], *, opcodes: bool = False) -> None:
        self.done = False
        self.points = 0
        """Interleaving points passed."""
        self.place = ''
        """The function and line that comes next."""
        self._run = run
        self._files = files
        self._event = 'opcode' if opcodes else 'line'
        self._begun = False
        self._budget = 0
        self._work: Work[Any] | None = None
        self._gate: Gate | None = None
        self._result: Any = None
        self._error: Exception | None = None
        self._failure: BaseException | None = None
        self._advancing = self._killing = self._killed = False
        self._worker: _Worker | None = None

    @property
    def blocked(self) -> Gate | None:
        """What the thread's call waits for; None if the thread can go on."""
        return self._gate if self._gate is not None and not self._gate.is_set() else None

    @property
    def calling(self) -> bool:
        """Whether the thread is in a system call."""
        return self._work is not None

    def advance(self, points: int = 1) -> int:
        """Let the thread pass up to `points` points, until it ends or is blocked; return how many it passed.

        Raises what ended the thread, and what a call raises that is no Exception or an AssertionError: such
        are complaints of the simulation and not for the thread.
        """
        assert not self._advancing, 'advanced by what runs inside of it'
        self._advancing, self._budget = True, points
        try:
            while self._budget > 0 and not self.done and self.blocked is None:
                if self._work is not None:
                    self._step_call(self._work)
                else:
                    self._let_run()
        finally:
            self._advancing = False
        if self._failure:
            raise self._failure
        passed = points - self._budget
        self.points += passed
        return passed

    def kill(self) -> None:
        """End the thread at the point where it is."""
        if self._work is not None:
            self._work.close()
        self._work = self._gate = None
        self._killing = True
        if not self._begun:
            self.done = True
        while not self.done:
            self._let_run()

    def _step_call(self, work: Work[Any]) -> None:
        self._budget -= 1
        self._gate = None
        try:
            self._gate = next(work)
            return
        except StopIteration as end:
            self._result = end.value
        except AssertionError:
            raise
        except Exception as error:
            self._error = error
        self._work = None

    def _let_run(self) -> None:
        """Hand the baton to the thread, and wait until it hands it back."""
        global _running
        before, _running = _running, self
        if not self._begun:
            self._begun = True
            self._worker = _idle.pop() if _idle else _Worker()
            self._worker.job = self
        assert self._worker
        worker = self._worker
        worker.go.release()
        if not worker.back.acquire(timeout=_PATIENCE):
            raise RuntimeError(f'the thread does not come back from {self.place}')
        _running = before
        if self.done:
            self._worker = None
            _idle.append(worker)

    # On the thread

    def main(self) -> None:
        """Run, traced, to the end."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            self._run()
        except Killed:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            sys.settrace(before)
            self.done = True

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if self._event == 'opcode':
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._trace_lines

    def _trace_lines(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == self._event and not self._killed:
            if self._budget <= 0:
                self.place = f'{frame.f_code.co_name}:{frame.f_lineno}'
                self._hand_back()
            self._budget -= 1
        return self._trace_lines

    def _hand_back(self) -> None:
        assert self._worker
        self._worker.back.release()
        self._worker.go.acquire()
        if self._killing:
            self._killed = True
            raise Killed

    def enter(self, work: Work[T]) -> T:
        """Have `work` done on the other side, and return its result."""
        if self._killed:
            work.close()
            raise Killed
        self._work = work
        self._hand_back()
        error, self._error = self._error, None
        if error is not None:
            raise error
        result, self._result = self._result, None
        return result  # type: ignore[no-any-return]


class _Worker:
    """A thread that runs one job after another, until it is told to end: a simulation needs many."""

    def __init__(self) -> None:
        self.go, self.back = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.back.acquire()
        self.job: Lockstep | None = None
        self._thread = threading.Thread(target=self._serve, name='lockstep', daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            self.go.acquire()
            if self.job is None:
                return
            self.job.main()
            self.job = None
            self.back.release()

    def end(self) -> None:
        """End the thread, which has no job, and wait for it."""
        self.go.release()
        self._thread.join()


_idle: list[_Worker] = []
_running: Lockstep | None = None


def current() -> Lockstep:
    """Return the thread in lockstep that runs."""
    assert _running is not None
    return _running


def call(work: Work[T]) -> T:
    """Do a system call: in steps if a thread in lockstep makes it, else at once."""
    if _running is not None:
        return _running.enter(work)
    while True:
        try:
            gate = next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        assert gate is None, 'a call by the owner would block'


class Intrusion:
    """Counts the lines of some files that *this* thread passes; does something before one of them, once.

    What an owner does in several lines, others may see half of: here is where to look.
    """

    def __init__(self, files: frozenset[str], line: int, intrude: Callable[[], None]) -> None:
        self.lines = 0
        self.place = ''
        """The function and line before which it was done."""
        self._files = files
        self._line = line
        self._intrude = intrude
        self._before: Any = None

    def __enter__(self) -> 'Intrusion':
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._trace_lines if frame.f_code.co_filename in self._files else None

    def _trace_lines(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == 'line':
            self.lines += 1
            if self.lines == self._line:
                self.place = f'{frame.f_code.co_name}:{frame.f_lineno}'
                self._intrude()
        return self._trace_lines


def _cpu() -> int:
    """Return the CPU that runs this thread now."""
    return int(Path('/proc/thread-self/stat').read_text().rpartition(')')[2].split()[36])


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this thread, and those in lockstep that it begins, on one CPU: handing over is much faster so.

    The threads end with it: who forks later must not have any.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_cpu()})
    try:
        yield
    finally:
        while _idle:
            _idle.pop().end()
        os.sched_setaffinity(0, before)
