"""The server ends at a signal, also at one that comes before it catches any itself."""

import signal
import socket

import pytest

from kansformer.errors import Stopped
from kansformer.signals import StopSignals
from kansformer.web.server import PageServer


async def nothing(scope: object, receive: object, send: object) -> None:
    """An application that has nothing to say."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_start_ends_it(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, StopSignals() as stop:
        signal.raise_signal(number)
        PageServer(nothing, stop, "welcome").run(sockets=[door])
        with pytest.raises(Stopped) as ended:
            stop.raise_received()
    assert ended.value.status == 128 + number
    assert capsys.readouterr().out == ""
