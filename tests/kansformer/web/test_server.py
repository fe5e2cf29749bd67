"""The server stops at a signal, even if it comes before uvicorn catches signals."""

import signal
import socket

import pytest

from kansformer.errors import Stopped
from kansformer.signals import StopSignals
from kansformer.web.server import PageServer


async def nothing(scope: object, receive: object, send: object) -> None:
    """An application that never responds."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_start_stops_it(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, StopSignals() as stop:
        signal.raise_signal(number)
        PageServer(nothing, stop, "welcome").run(sockets=[listener])
        with pytest.raises(Stopped) as caught:
            stop.raise_received()
    assert caught.value.status == 128 + number
    assert capsys.readouterr().out == ""
