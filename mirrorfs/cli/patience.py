"""Calls that may hang, as on a mount or a disk that does not answer: nobody need wait for them."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar('T')


class Patient(Generic[T]):
    """Calls a function in a thread, one call at a time; a call that hangs keeps no one but itself."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._ended = threading.Event()
        self._ended.set()
        self._answer: list[T] = []
        self._error: list[BaseException] = []

    def __call__(self, seconds: float) -> T | None:
        """Return what the function returns, None if it does not within so many seconds.

        Where the last call has not come back yet it is waited for, instead of a new one.  Raises what the
        function raises.
        """
        if self._ended.is_set():
            self._ended = threading.Event()
            threading.Thread(target=self._run, args=(self._ended,), daemon=True).start()
        if not self._ended.wait(seconds):
            return None
        if self._error:
            raise self._error.pop()
        return self._answer.pop()

    def _run(self, ended: threading.Event) -> None:
        try:
            self._answer.append(self._function())
        except BaseException as error:  # handed to whoever waits
            self._error.append(error)
        ended.set()
