"""How much of a field has to be looked at for its surface: the coarse-to-fine search against the dense grid.

    python benchmarks/extract.py --threads 1 --json extract.json

Two fields: a torus in closed form, where the function costs next to nothing and only the search itself is seen, and a network whose geometric
initialisation makes it about a sphere, where it is the other way round. Both methods run in turn, in the same process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import torch
from common import MIB, SIZE, Side, fresh, in_turn, peak_bytes, ratio, set_up, shared_options, summary, table, write

from metasdf.fields import FieldSpec, initialise
from metasdf.geometry.frame import identity
from metasdf.geometry.isosurface import Extraction, extract
from metasdf.geometry.nearest import kd_tree
from metasdf.geometry.shapes import torus
from metasdf.heads import Distance
from metasdf.prior import SDF

Method = Literal["sparse", "dense"]
METHODS: tuple[Method, ...] = ("sparse", "dense")
FIELDS = ("torus", "network")
DEFINITION = {
    "evaluations": "points at which the field was asked; the dense grid has resolution^3",
    "ms": "processor time of this process, median over rounds: other work on the machine does not count, waiting does not either",
    "peak_mib": "how far the resident memory of a fresh process rises, the mesh included",
    "fewer_evaluations": "those of the dense grid over those of the search",
    "speedup": "time of the dense grid over that of the search: median over rounds of each round's own ratio",
    "difference": "the farthest that a vertex of either mesh is from the nearest of the other, in sides of a cell",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    resolution: int = 256
    width: int = 128
    layers: int = 5
    rounds: int = 1
    seed: int = 0


def surface(field: str, setting: Setting, method: Method) -> Extraction:
    if field == "torus":
        return extract(torus(0.6, 0.25), resolution=setting.resolution, method=method)
    spec = FieldSpec(in_dim=3, width=setting.width, hidden_layers=setting.layers - 1, init="geometric")
    params = initialise(spec, generator=torch.Generator().manual_seed(setting.seed))
    return SDF([params], spec, Distance(), identity(3)).extract(resolution=setting.resolution, method=method)


def processor_time(work: Callable[[], object]) -> Side:
    def side() -> float:
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1e3

    return side


def peak(field: str, setting: Setting, method: Method) -> int:
    """For a fresh process."""
    return peak_bytes(partial(surface, field, setting, method), warm_up=partial(surface, field, replace(setting, resolution=48), method), times=1)


def measure(field: str, setting: Setting) -> dict[str, Any]:
    found: dict[Method, Extraction] = {}

    def run(method: Method) -> None:
        found[method] = surface(field, setting, method)

    times = in_turn({method: processor_time(partial(run, method)) for method in METHODS}, rounds=setting.rounds)
    sides = {}
    for method in METHODS:
        sides[method] = {**summary(times[method]), "evaluations": found[method].evaluations, "faces": len(found[method].mesh.faces),
                         "watertight": found[method].watertight, "peak_mib": fresh(peak, field, setting, method) / MIB}  # fmt: skip
    one, other = (found[method].mesh.vertices for method in METHODS)
    apart = max(kd_tree(a).query(b)[0].max() for a, b in ((one, other), (other, one)))
    return {
        "sides": sides, "fewer_evaluations": found["dense"].evaluations / found["sparse"].evaluations,
        "speedup": ratio(times["dense"], times["sparse"]), "difference": float(apart) * (setting.resolution - 1) / 2,
    }  # fmt: skip


def show(setting: Setting, results: dict[str, Any]) -> None:
    rows = []
    for field, row in results.items():
        for method, side in row["sides"].items():
            fewer, faster = (f"{row[key]:.1f}" if method == "sparse" else "" for key in ("fewer_evaluations", "speedup"))
            rows.append((f"{field}, {method}", f"{side['evaluations']:,}", fewer, f"{side['ms'] / 1e3:.1f}", faster, f"{side['peak_mib']:,.0f}",
                         f"{side['faces']:,}", f"{row['difference']:.1e}"))  # fmt: skip
    columns = ("field", "evaluations", "fewer", "s", "faster", "peak MiB", "faces", "differs by")
    table(f"the surface on a grid of {setting.resolution}^3", columns, rows)


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--resolution", default=Setting.resolution, type=SIZE, show_default=True, help="Grid points along each side.")
@click.option("--width", default=Setting.width, type=SIZE, show_default=True, help="Units of a hidden layer of the network.")
@click.option("--layers", default=Setting.layers, type=SIZE, show_default=True, help="Its hidden layers.")
@click.option("--rounds", default=Setting.rounds, type=SIZE, show_default=True, help="How often every side runs.")
@click.option("--seed", default=Setting.seed, show_default=True, help="Of the network.")
@shared_options
def main(out: Path | None, quick: bool, threads: int, **sizes: Any) -> None:
    setting = Setting(**sizes)
    if quick:
        setting = replace(setting, resolution=64, width=32, layers=2, rounds=1)
    set_up(keep=True, threads=threads)
    results = {field: measure(field, setting) for field in FIELDS}
    show(setting, results)
    write(out, "extract", asdict(setting), {"fields": results}, DEFINITION)


if __name__ == "__main__":
    main()
