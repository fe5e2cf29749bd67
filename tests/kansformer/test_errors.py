"""What a worker process raises arrives as it was."""

import pickle
import signal

import pytest

from kansformer.errors import Stopped


@pytest.mark.parametrize("text", ["", "stopped at epoch 3; go on with --resume"])
def test_a_stop_can_be_handed_from_process_to_process(text: str) -> None:
    stop = Stopped(signal.SIGTERM, text)
    arrived = pickle.loads(pickle.dumps(stop))
    assert (arrived.status, str(arrived)) == (143, text or "stopped by SIGTERM")
