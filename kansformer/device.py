"""The one place that knows kinds of devices."""

import torch

from kansformer.errors import UserError


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes the accelerator if there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: not to be had here ({str(error).splitlines()[0]}); try --device auto"
        ) from None
    return device
