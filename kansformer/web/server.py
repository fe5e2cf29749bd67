"""A server that prints its address once it is reachable, and stops at a signal at any time."""

import socket

import uvicorn

from kansformer.signals import StopSignals


class PageServer(uvicorn.Server):
    """A uvicorn server that also respects signals received before it has started.

    While it runs, uvicorn catches signals itself and re-raises them at the end.

    Args:
        app: the ASGI application.
        stop: the active signal handler, which records earlier signals.
        welcome: text to print once the server is reachable.
    """

    def __init__(self, app: object, stop: StopSignals, welcome: str) -> None:
        # a page that is still open in a browser may delay the end by at most a second
        super().__init__(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)  # type: ignore[arg-type]
        )
        self.stop = stop
        self.welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept requests, or stops at once if a signal has been received."""
        await super().startup(sockets)
        if self.stop.received:
            self.should_exit = True
        else:
            print(self.welcome, flush=True)
