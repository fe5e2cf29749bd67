"""Exceptions from worker processes arrive unchanged."""

import pickle
import signal

import pytest

from kansformer.errors import Stopped


@pytest.mark.parametrize("text", ["", "stopped at epoch 3; go on with --resume"])
def test_stopped_can_be_pickled(text: str) -> None:
    stop = Stopped(signal.SIGTERM, text)
    copy = pickle.loads(pickle.dumps(stop))
    assert (copy.status, str(copy)) == (143, text or "stopped by SIGTERM")
