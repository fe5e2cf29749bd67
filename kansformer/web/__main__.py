"""Opens a page in the browser to try a trained model with your own pictures.

python -m kansformer.web --weights weights/digits.safetensors
"""

import argparse
import ipaddress
import os
import socket
import sys
import tempfile
from pathlib import Path

from kansformer.errors import UserError, run_command

MOST_EXAMPLES = 12


def main() -> None:
    """Reads the flags, loads the model, and serves until it is told to stop."""
    args = parse_flags()
    from kansformer.infer import Predictor
    from kansformer.signals import StopSignals

    examples = example_pictures(args.examples) if args.examples else []
    predictor = Predictor.load(args.weights, args.device)
    with (
        StopSignals() as stop,
        tempfile.TemporaryDirectory(prefix="kansformer-web-") as uploads,
        listen(args.host, args.port) as door,
    ):
        # before gradio is imported: it reads these then
        os.environ.update(
            GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1"
        )
        try:
            from kansformer.web.app import make_app
            from kansformer.web.server import PageServer
        except ModuleNotFoundError as error:
            raise UserError(
                f"the page needs {error.name}, which is not installed: pip install -r"
                " requirements-web.txt"
            ) from None
        from kansformer.web.service import Service

        app = make_app(
            Service(predictor, Path(args.weights).name), examples, stays_here=is_loopback(door)
        )
        PageServer(app, stop, welcome(door)).run(sockets=[door])
        stop.raise_received("stopped")


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kansformer.web", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="weights file, such as best.safetensors"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default 7860; 0: any free one)")
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (default 127.0.0.1, which only this computer reaches)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument(
        "--examples", metavar="DIR", help="offer pictures of this folder to those who have none"
    )
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port must be between 0 and 65535, not {args.port}")
    return args


def example_pictures(folder: str) -> list[str]:
    """Some pictures of a folder, spread over it.

    Raises:
        UserError: there are none.
    """
    from kansformer.data.listing import walk_pictures

    found = walk_pictures(folder) if os.path.isdir(folder) else []
    if not found:
        raise UserError(f"{folder}: no folder with pictures in it; check --examples")
    step = max(len(found) / MOST_EXAMPLES, 1)
    return [found[int(i * step)] for i in range(min(MOST_EXAMPLES, len(found)))]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this computer.

    Raises:
        UserError: the port is taken, or this computer has no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((host, port), family=found[0][0])
    except OSError as error:
        cause = error.strerror or str(error)
        raise UserError(
            f"{host}, port {port}: cannot be listened on ({cause}); choose another --port or --host"
        ) from None


def is_loopback(door: socket.socket) -> bool:
    """Whether only this computer can reach a socket."""
    return ipaddress.ip_address(door.getsockname()[0].split("%")[0]).is_loopback


def welcome(door: socket.socket) -> str:
    """Where the page is, and who can see it."""
    host, port = door.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if is_loopback(door):
        return f"{address}  (Ctrl-C ends it)"
    return f"{address}  (Ctrl-C ends it; everyone who reaches this address can use it, unencrypted)"


if __name__ == "__main__":
    sys.exit(run_command(main))
