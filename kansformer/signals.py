"""Stopping in good order: the first signal asks, the second Ctrl-C insists."""

import signal
import threading
from types import FrameType

from kansformer.errors import Stopped


class StopSignals:
    """Within `with`, SIGTERM and the first Ctrl-C only set `received`; the work looks at it.

    A second Ctrl-C leaves at once. Outside the main thread, where Python allows no handlers,
    nothing is caught.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal
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
        """Raises `Stopped` if there was a signal."""
        if self.received:
            raise Stopped(self.received, text)
