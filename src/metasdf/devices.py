"""Which device to compute on."""

from __future__ import annotations

import torch

from metasdf.errors import UsageError


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes a GPU if there is one. Raises UsageError where it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"the device {name!r} cannot be used", cause=str(error).splitlines()[0], fix="--device cpu") from error
    return device
