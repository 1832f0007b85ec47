"""What we tell the service manager that started us, if one did: sd_notify(3), by hand."""

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """Takes notes from us.  Where there is none, all notes are for nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get('NOTIFY_SOCKET', ''))
        self.watchdog = _watchdog(environment)
        """Seconds between two signs of life that are wanted of this process, or None."""

    def __bool__(self) -> bool:
        return bool(self._address)

    def tell(self, *notes: str) -> bool:
        """Send notes like ``READY=1``, without waiting; return whether they are under way."""
        if not self._address:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as note:
            try:
                note.sendto('\n'.join(notes).encode(), socket.MSG_DONTWAIT, self._address)
            except OSError:
                return False
        return True


def _address(text: str) -> bytes:
    """Return a socket's address; those that begin with @ have no file, and a NUL in its place."""
    if text.startswith('@'):
        return b'\0' + os.fsencode(text[1:])
    return os.fsencode(text) if text.startswith('/') else b''


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return half of what the watchdog waits, as sd_watchdog_enabled(3) advises."""
    try:
        microseconds = int(environment.get('WATCHDOG_USEC', ''))
        meant = int(environment.get('WATCHDOG_PID', os.getpid()))
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 and meant == os.getpid() else None
