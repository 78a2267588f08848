"""Which device to compute on."""

from __future__ import annotations

import time

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


def bfloat16_pays(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are clearly faster here than in float32: tried out, in a fraction of a second. A processor without
    instructions for them imitates them, and was seen to take fifty times as long. On other devices than CPUs and CUDA they are not known to work."""
    if device.type not in ("cpu", "cuda"):
        return False

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(4, 256, 256, device=device, dtype=dtype)
        taken = []
        for _ in range(4):
            start = time.perf_counter()
            float((a @ a)[0, 0, 0])  # waits for the device
            taken.append(time.perf_counter() - start)
        return min(taken[1:])

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
