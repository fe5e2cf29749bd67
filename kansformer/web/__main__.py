"""Serves a web page to try a trained model with your own pictures.

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
from kansformer.words import command

MOST_EXAMPLES = 12


def main() -> None:
    """Loads the model, and serves the page until a signal stops it."""
    args = parse_flags()
    from kansformer.infer import Predictor
    from kansformer.signals import StopSignals

    examples = example_pictures(args.examples) if args.examples else []
    predictor = Predictor.load(args.weights, args.device)
    with (
        StopSignals() as stop,
        tempfile.TemporaryDirectory(prefix="kansformer-web-") as uploads,
        listen(args.host, args.port) as listener,
    ):
        # gradio reads these when it is imported
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
            Service(predictor, Path(args.weights).name), examples, is_local=is_loopback(listener)
        )
        PageServer(app, stop, welcome(listener)).run(sockets=[listener])
        stop.raise_received("stopped")


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("web"), description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="weights file, such as best.safetensors"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port of the page (default 7860; 0 for any free one)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (default 127.0.0.1, which only this computer can reach)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument(
        "--examples", metavar="DIR", help="offer pictures from this folder as examples"
    )
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port must be between 0 and 65535, not {args.port}")
    return args


def example_pictures(folder: str) -> list[str]:
    """Up to MOST_EXAMPLES pictures of a folder, spread over it.

    Raises:
        UserError: there are none.
    """
    from kansformer.data.listing import walk_pictures

    pictures = walk_pictures(folder) if os.path.isdir(folder) else []
    if not pictures:
        raise UserError(f"{folder}: no folder with pictures in it; check --examples")
    step = max(len(pictures) / MOST_EXAMPLES, 1)
    return [pictures[int(i * step)] for i in range(min(MOST_EXAMPLES, len(pictures)))]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address of this computer.

    Raises:
        UserError: the port is in use, or this computer has no such address.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((host, port), family=addresses[0][0])
    except OSError as error:
        cause = error.strerror or str(error)
        raise UserError(
            f"cannot listen on {host}, port {port} ({cause}); choose another --port or --host"
        ) from None


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this computer can reach a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].split("%")[0]).is_loopback


def welcome(listener: socket.socket) -> str:
    """The address of the page, and who can use it."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if is_loopback(listener):
        return f"{address}  (Ctrl-C to stop)"
    return f"{address}  (Ctrl-C to stop; anyone who can reach it can use it, unencrypted)"


if __name__ == "__main__":
    sys.exit(run_command(main))
