"""What several commands take."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.")
HEADINGS = 24  # that --align search tries
path_type = click.Path(path_type=Path)
refine_option = click.option("--refine", type=click.IntRange(0), default=0, metavar="N", show_default=True,
                             help="Then N steps of Adam on the whole network, closer to what was observed; not from bare points.")  # fmt: skip


def scan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a 3D scan is read and turned: up, turns, columns, outliers."""
    for option in (
        click.option("--outliers", type=click.Choice(["keep", "drop"]), default="keep", show_default=True, help="3D: points far from all others."),
        click.option("--columns", metavar="NAMES", help='3D: what the columns of a text or .npy file are, as in "x,y,z,_,s".'),
        click.option("--align", "turns", default="1", metavar="N|search", callback=parse_headings,
                     help=f"3D: try N headings about the up axis, 360/N degrees apart ({HEADINGS} for 'search'), and keep the one that fits best."),
        click.option("--up", type=click.Choice(["x", "y", "z", "-x", "-y", "-z"]), default="y", show_default=True,
                     help="3D: the scan's axis that goes up."),
    ):  # fmt: skip
        command = option(command)
    return command


class FiniteRange(click.FloatRange):
    """Numbers in a range; infinity and what is no number are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


def parse_budget(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Seconds from 90s, 5m, 1.5h, or minutes from a bare number."""
    if text is None:
        return None
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:].lower())
    try:
        seconds = float(text[:-1]) * unit if unit else float(text) * 60.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{text!r} is no duration; write 90s, 5m or 1.5h")
    return seconds


def parse_headings(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """How many headings are tried."""
    number = HEADINGS if text == "search" else int(text) if text.isdecimal() and text.isascii() else 0
    if not 1 <= number <= 360:
        raise click.BadParameter(f"{text!r} is no number of headings; write 24 (1 to 360), or search")
    return number


def parse_faces(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """A number of faces, or the share below 1 that 10% says."""
    if text is None:
        return None
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(int(text))
    except ValueError:
        number = 0.0
    if not (0 < number < 1 if text.endswith("%") else number >= 4):
        raise click.BadParameter(f"{text!r} is no number of faces; write 5000 (4 or more), or 10%")
    return number


def start(threads: int | None = None) -> None:
    """What every command that computes does first."""
    import torch

    from metasdf.memory import keep_freed_memory

    torch.set_flush_denormal(True)  # moments of units that stay off decay to denormal numbers, which processors compute many times slower
    click.get_current_context().call_on_close(lambda: torch.set_flush_denormal(False))  # the process may not be ours alone
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
