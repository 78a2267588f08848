"""Peak memory of a training step against inner steps and against context points, with the plain and the checkpointed inner loop.

    python benchmarks/memory.py --json memory.json

Second-order training keeps O(n m) for n points and m inner steps (supplement 2.2.6); a checkpointed inner loop keeps the parameters after
each step and the inside of one, O(n + m). Each measurement has a process of its own; beside it stands what autograd says it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
from common import MIB, SIZE, discs, fresh, numbers, peak_bytes, say, set_up, shared_options, table, write
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.fields import FieldSpec
from metasdf.heads import Distance
from metasdf.memory import return_freed_memory, saved_bytes
from metasdf.train import PRODUCTS, meta_loss

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "memory.png"
KINDS = {"plain": False, "checkpointed": True}
SWEEPS = {"steps": "inner steps", "context": "context points"}
REFERENCE = {"steps": 5, "context": 1024}  # the paper's, from which growth is told
DEFINITION = {
    "peak_mib": "MiB by which two training steps without optimiser raise the resident memory of a fresh process above what model, tasks and "
                "libraries take",
    "saved_mib": "MiB in tensors that autograd keeps for the backward pass, each storage once",
    "growth": "the value at the end of a sweep divided by that at `from`",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    batch: int = 32
    context: int = 1024
    query: int = 1024
    width: int = 256
    hidden_layers: int = 2
    steps: int = 5
    gradient: Literal["fused", "explicit", "autograd"] = "fused"
    products: Literal["float32", "bfloat16"] = "float32"
    keep: bool = False
    seed: int = 0


def used(setting: Setting, change: dict[str, Any], checkpoint: bool) -> tuple[int, int]:
    """Bytes at the peak of a training step with the changed setting, and bytes that autograd keeps for its backward pass."""

    def training_step(setting: Setting) -> Any:
        spec = FieldSpec(width=setting.width, hidden_layers=setting.hidden_layers, init="spread")
        config = InnerLoopConfig(
            steps=setting.steps, rates="parameter_step", init_rate=0.01, gradient=setting.gradient, checkpoint=checkpoint
        )
        model, head, products = MetaSDF(spec, config), Distance(), PRODUCTS[setting.products]
        model.products = products
        batch = discs(setting.batch, context=setting.context, query=setting.query, seed=setting.seed)
        return lambda: meta_loss(model, head, batch, products=products)

    if not setting.keep:
        return_freed_memory()
    setting = replace(setting, **change)
    loss, small = training_step(setting), training_step(replace(setting, batch=1, context=8, query=8))
    peak = peak_bytes(lambda: loss().backward(), warm_up=lambda: small().backward())
    return peak, saved_bytes(loss)


def measure(setting: Setting, values: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    sweeps: dict[str, Any] = {}
    for sweep, points in values.items():
        sweeps[sweep] = {"values": list(points)}
        for kind, checkpoint in KINDS.items():
            rows = []
            for value in points:
                say(f"{value:,} {SWEEPS[sweep]}, {kind}")
                rows.append(fresh(used, setting, {sweep: value}, checkpoint, keep=setting.keep))
            sweeps[sweep][kind] = {"peak_mib": [peak / MIB for peak, _ in rows], "saved_mib": [saved / MIB for _, saved in rows]}
        sweeps[sweep]["growth"] = _growth(sweeps[sweep], REFERENCE[sweep])
    return {"sweeps": sweeps}


def _growth(sweep: dict[str, Any], reference: int) -> dict[str, Any]:
    """From the paper's value (the first, where it is not among them) to the last."""
    first = sweep["values"].index(reference) if reference in sweep["values"] else 0
    ratios = {kind: {key: column[-1] / column[first] for key, column in sweep[kind].items()} for kind in KINDS}
    return {"from": sweep["values"][first], "to": sweep["values"][-1], **ratios}


def draw(results: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(7.6, 3.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for position, (sweep, values) in enumerate(results["sweeps"].items(), 1):
        _panel(figure.add_subplot(1, 2, position), sweep, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)  # the same numbers give the same file
    say(f"drawn: {path}")


def _panel(axes: Axes, sweep: str, values: dict[str, Any]) -> None:
    for kind, colour, marker in (("plain", "#b2182b", "o"), ("checkpointed", "#2166ac", "s")):
        peak, saved = ([mib / 1024 for mib in values[kind][key]] for key in ("peak_mib", "saved_mib"))
        axes.plot(values["values"], peak, color=colour, marker=marker, markersize=4, linewidth=1.6, label=f"{kind}: peak")
        axes.plot(values["values"], saved, color=colour, linestyle=(0, (4, 2)), linewidth=1.0, label=f"{kind}: kept by autograd")
    axes.set_xlabel(SWEEPS[sweep], size=8)
    axes.set_ylabel("GiB of a training step", size=8)
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.tick_params(labelsize=7)
    axes.grid(True, color="#dfe3e8", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)


def show(setting: Setting, results: dict[str, Any]) -> None:
    for sweep, values in results["sweeps"].items():
        columns = [(kind, key) for kind in KINDS for key in ("peak_mib", "saved_mib")]
        growth = values["growth"]
        rows = [
            (f"{value:,}", *(f"{values[kind][key][index]:,.1f}" for kind, key in columns)) for index, value in enumerate(values["values"])
        ]
        rows.append((f"{growth['to']:,} / {growth['from']:,}", *(f"x {growth[kind][key]:.2f}" for kind, key in columns)))
        table(
            f"MiB of a training step: {setting.batch} tasks, {setting.context:,} + {setting.query:,} points, {setting.hidden_layers + 2} layers x "
            f"{setting.width}, {setting.steps} steps, {setting.gradient}, {setting.products}",
            (SWEEPS[sweep], *(f"{kind}: {'peak' if key == 'peak_mib' else 'kept'}" for kind, key in columns)), rows,
        )  # fmt: skip


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--batch", default=Setting.batch, type=SIZE, show_default=True, help="Tasks.")
@click.option("--context", default=Setting.context, type=SIZE, show_default=True, help="Context points of a task, where the steps vary.")
@click.option("--query", default=Setting.query, type=SIZE, show_default=True, help="Query points of a task.")
@click.option("--width", default=Setting.width, type=SIZE, show_default=True, help="Units of a hidden layer.")
@click.option("--hidden-layers", default=Setting.hidden_layers, type=click.IntRange(0), show_default=True, help="Layers from hidden to hidden.")
@click.option("--steps", default=Setting.steps, type=SIZE, show_default=True, help="Inner steps, where the points vary.")
@click.option("--gradient", default=Setting.gradient, show_default=True, type=click.Choice(("fused", "explicit", "autograd")))
@click.option("--products", default=Setting.products, show_default=True, type=click.Choice(tuple(PRODUCTS)))
@click.option("--keep/--return", default=Setting.keep, show_default=True,
              help="Keep freed memory, as `metasdf train` does, or return it at once: what a step needs, without gaps between blocks.")  # fmt: skip
@click.option("--all-steps", default="1,2,3,5,8,12,16,20", show_default=True, callback=numbers, help="Numbers of inner steps to measure.")
@click.option("--all-context", default="128,256,512,1024,2048,3072,4096", show_default=True, callback=numbers,
              help="Numbers of context points to measure.")  # fmt: skip
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="PNG or SVG to draw.  [default: docs/images/memory.png]")
@shared_options
def main(
    out: Path | None, quick: bool, threads: int, figure: Path | None, all_steps: tuple[int, ...], all_context: tuple[int, ...], **sizes: Any
) -> None:
    setting, values = Setting(**sizes), {"steps": all_steps, "context": all_context}
    if quick:
        setting = replace(setting, batch=8, context=256, query=64, width=64, steps=2)
        values = {"steps": (1, 4), "context": (64, 512)}
    set_up(keep=False, threads=threads)
    results = measure(setting, values)
    show(setting, results)
    write(out, "memory", asdict(setting), results, DEFINITION)
    if figure is not None or not quick:  # the smoke run leaves the documented figure alone
        draw(results, figure or FIGURE)


if __name__ == "__main__":
    main()
