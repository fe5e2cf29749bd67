"""The server: says when it can be reached, and ends at a signal whenever that comes."""

import socket

import uvicorn

from kansformer.signals import StopSignals


class PageServer(uvicorn.Server):
    """A server whose signals end up in `stop`, within which it runs.

    uvicorn catches signals from its start on, and passes them on at the end. Those that came before
    are seen here.

    Args:
        app: the application, for ASGI.
        welcome: printed once the server can be reached.
    """

    def __init__(self, app: object, stop: StopSignals, welcome: str) -> None:
        # a page that stays open in a browser must not hold up the end for longer than a second
        super().__init__(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)  # type: ignore[arg-type]
        )
        self.stop = stop
        self.welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens for requests."""
        await super().startup(sockets)
        if self.stop.received:
            self.should_exit = True
        else:
            print(self.welcome, flush=True)
