"""Graceful stopping: the first signal is a request, the second Ctrl-C interrupts at once."""

import signal
import threading
from types import FrameType

from kansformer.errors import Stopped


class StopSignals:
    """A context in which SIGTERM and the first Ctrl-C only set `received`, for the work to check.

    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, where Python allows no signal
    handlers, the context has no effect.
    """

    def __init__(self) -> None:
        self.received = 0  # signal number; 0 for none
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def raise_received(self, text: str = "") -> None:
        """Raises `Stopped` if a signal was received."""
        if self.received:
            raise Stopped(self.received, text)
