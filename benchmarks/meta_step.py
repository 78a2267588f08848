"""One meta-training gradient (forward and backward, no optimiser) in every form the engine has, beside the bare matrix products.

    python benchmarks/meta_step.py --json meta_step.json

The defaults are the paper's 2D setting: 32 tasks, 1,024 context and 1,024 query points, a field of 4 layers x 256, 5 inner steps.
Sides run in turn; memory is that of a fresh process each; gradients are compared with those of the straightforward form.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from common import (
    MIB,
    SIZE,
    Side,
    clocked,
    discs,
    fresh,
    fresh_process,
    in_turn,
    peak_bytes,
    ratio,
    say,
    set_up,
    shared_options,
    summary,
    table,
    write,
)
from numpy.typing import NDArray
from products import ProductLimit, counted_gflop
from torch import Tensor

from metasdf.conditioning.inner_loop import InnerLoopConfig
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.fields import FieldSpec
from metasdf.heads import Distance
from metasdf.tasks import Observations, TaskBatch
from metasdf.train import PRODUCTS, meta_loss

Array = NDArray[np.float32]

DEFINITION = {
    "ms": "milliseconds of one meta-training gradient, forward and backward: median over rounds; ms_min the fastest round",
    "peak_mib": "MiB by which two such gradients raise the resident memory of a fresh process above what model, tasks and libraries take",
    "speedup": "how many times faster than the straightforward form: median over rounds of each round's own ratio",
    "speedup_kept": "the same against the straightforward form in a process that keeps freed memory",
    "percent_of_limit": "time of the bare matrix products in the same precision, of the same order, cycled, as a share of the side's time",
    "gflop": "billions of floating point operations in matrix products, counted while they run",
    "difference": "|g - g0| / |g0|, g0 the gradient of the straightforward form (float32); _theta and _rates: of these parameters alone. "
                  "A first-order gradient is another quantity: its difference says what is left out",
    "limit": "ms: torch.bmm for each product a gradient needs, on as many buffers as one inner step touches; ms_hot: each product repeated on "
             "the operands of as many tasks as there are threads",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    batch: int = 32
    context: int = 1024
    query: int = 1024
    width: int = 256
    hidden_layers: int = 2
    steps: int = 5
    group: int = 8
    rounds: int = 7
    seed: int = 0

    @property
    def spec(self) -> FieldSpec:
        return FieldSpec(width=self.width, hidden_layers=self.hidden_layers, init="spread")


@dataclass(frozen=True)
class Form:
    """How a gradient is computed. `keep`: freed memory is kept, as `metasdf train` does. `grouped`: in groups of tasks, one after another."""

    gradient: Literal["autograd", "explicit", "fused"]
    products: Literal["float32", "bfloat16"] = "float32"
    checkpoint: bool = False
    grouped: bool = False
    second_order: bool = True
    keep: bool = True


STRAIGHT, KEPT = "straightforward", "straightforward, memory kept"
FORMS = {
    STRAIGHT: Form("autograd", keep=False),
    KEPT: Form("autograd"),
    "explicit": Form("explicit"),
    "fused": Form("fused"),
    "explicit, bfloat16": Form("explicit", "bfloat16"),
    "fused, bfloat16": Form("fused", "bfloat16"),
    "fused, bfloat16, checkpoint": Form("fused", "bfloat16", checkpoint=True),
    "fused, bfloat16, groups": Form("fused", "bfloat16", grouped=True),
    "first order": Form("fused", second_order=False),
    "first order, bfloat16": Form("fused", "bfloat16", second_order=False),
}


class Work:
    """A model, tasks and a form: all that a gradient needs."""

    def __init__(self, setting: Setting, form: Form) -> None:
        config = InnerLoopConfig(steps=setting.steps, rates="parameter_step", init_rate=0.01, gradient=form.gradient, checkpoint=form.checkpoint)
        self.head, self.products = Distance(), PRODUCTS[form.products]
        self.model = MetaSDF(setting.spec, config, head=self.head, generator=torch.Generator().manual_seed(setting.seed))
        self.model.products, self.model.second_order = self.products, float(form.second_order)
        batch = discs(setting.batch, context=setting.context, query=setting.query, seed=setting.seed)
        self.parts = _split(batch, setting.group) if form.grouped else [batch]

    def gradient(self) -> None:
        """Of the mean loss over all tasks, into the parameters."""
        for p in self.model.parameters():
            p.grad = None
        total = sum(len(part.task) for part in self.parts)
        for part in self.parts:
            (meta_loss(self.model, self.head, part, products=self.products) * (len(part.task) / total)).backward()

    def result(self) -> dict[str, Array]:
        """The last gradient, theta's and the rates'. Raises RuntimeError if a parameter has none."""
        grads: dict[str, list[Tensor]] = {"theta": [], "rates": []}
        for name, p in self.model.named_parameters():
            if p.grad is None:
                raise RuntimeError(f"no gradient reached {name}")
            grads["rates" if name.startswith("rates.") else "theta"].append(p.grad.detach().flatten())
        return {name: torch.cat(parts).numpy() for name, parts in grads.items()}


def _split(batch: TaskBatch, group: int) -> list[TaskBatch]:
    columns = [t.split(group) for t in (batch.task, *batch.context, *batch.query)]
    return [TaskBatch(task, Observations(x, y), Observations(qx, qy)) for task, x, y, qx, qy in zip(*columns, strict=True)]


# -- what other processes do -----------------------------------------------------------------------------------------------------------

_works: dict[str, Work] = {}  # of this process


def peak(setting: Setting, form: Form) -> int:
    small = Work(replace(setting, batch=1, group=1, context=8, query=8), form)
    return peak_bytes(Work(setting, form).gradient, warm_up=small.gradient)


def time_one(setting: Setting, name: str) -> float:
    if name not in _works:
        _works[name] = Work(setting, FORMS[name])
    return clocked(_works[name].gradient)()


def result_of(name: str) -> dict[str, Array]:
    return _works[name].result()


# -- what is measured ------------------------------------------------------------------------------------------------------------------


def measure(setting: Setting, forms: Mapping[str, Form] = FORMS) -> dict[str, Any]:
    works = {name: Work(setting, form) for name, form in forms.items() if form.keep}
    limits = {(form.products, form.second_order): _limit(setting, form) for form in forms.values()}
    threads = torch.get_num_threads()
    with fresh_process(keep=False, threads=threads) as other:
        sides: dict[str, Side] = {}
        for name in forms:
            sides[name] = clocked(works[name].gradient) if name in works else partial(_elsewhere, other, setting, name)
        for key, limit in limits.items():
            sides[_label(*key)], sides[_label(*key) + ", hot"] = clocked(limit.cold), clocked(limit.hot)
        times = in_turn(sides, rounds=setting.rounds)
        results = {name: other.submit(result_of, name).result() for name in forms if name not in works}
    say("comparing gradients, counting operations")
    gflop = {name: counted_gflop(work.gradient) for name, work in works.items()}
    results |= {name: work.result() for name, work in works.items()}
    del works, sides
    rows = {}
    for name, form in forms.items():
        say(f"memory: {name}")
        limit_times = times[_label(form.products, form.second_order)]
        rows[name] = {
            **summary(times[name]),
            "peak_mib": fresh(peak, setting, form, keep=form.keep) / MIB,
            "speedup": ratio(times[STRAIGHT], times[name]), "speedup_kept": ratio(times[KEPT], times[name]),
            "percent_of_limit": 100 * ratio(limit_times, times[name]),
            "gflop": gflop.get(name, gflop[KEPT]),  # the same operations, wherever freed memory goes
            **_difference(results[name], results[KEPT]), **asdict(form),
        }  # fmt: skip
    bare = {}
    for key, limit in limits.items():
        name = _label(*key)
        cold, hot, count = summary(times[name]), summary(times[name + ", hot"]), limit.gflop()
        bare[name] = {**cold, "ms_hot": hot["ms"], "ms_hot_min": hot["ms_min"], "gflop": count, "gflop_per_s": count / cold["ms"] * 1e3,
                      "gflop_per_s_hot": count / hot["ms"] * 1e3, "products": key[0], "second_order": key[1]}  # fmt: skip
    return {"sides": rows, "limit": bare}


def _elsewhere(process: Executor, setting: Setting, name: str) -> float:
    return process.submit(time_one, setting, name).result()


def _limit(setting: Setting, form: Form) -> ProductLimit:
    return ProductLimit(setting.spec, steps=setting.steps, tasks=setting.batch, context=setting.context, query=setting.query,
                        dtype=PRODUCTS[form.products] or torch.float32, second_order=form.second_order)  # fmt: skip


def _label(products: str, second_order: bool) -> str:
    return f"products, {products}" + ("" if second_order else ", first order")


def _difference(g: dict[str, Array], oracle: dict[str, Array]) -> dict[str, float]:
    def relative(*names: str) -> float:
        a, b = (np.concatenate([side[name] for name in names]).astype(np.float64) for side in (g, oracle))
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return {"difference": relative("theta", "rates"), "difference_theta": relative("theta"), "difference_rates": relative("rates")}


def show(setting: Setting, results: dict[str, Any]) -> None:
    table(
        f"one meta-training gradient: {setting.batch} tasks, {setting.context:,} + {setting.query:,} points, {setting.hidden_layers + 2} layers x "
        f"{setting.width}, {setting.steps} steps",
        ("side", "ms", "min", "peak MiB", "speedup", "memory kept", "% of limit", "differs by"),
        ((name, f"{r['ms']:.0f}", f"{r['ms_min']:.0f}", f"{r['peak_mib']:,.0f}", f"{r['speedup']:.2f}", f"{r['speedup_kept']:.2f}",
          f"{r['percent_of_limit']:.0f}", f"{r['difference']:.1e}") for name, r in results["sides"].items()),
    )  # fmt: skip
    table(
        "the bare matrix products",
        ("limit", "GFLOP", "ms", "min", "GFLOP/s", "ms in cache", "GFLOP/s"),
        ((name, f"{r['gflop']:.1f}", f"{r['ms']:.0f}", f"{r['ms_min']:.0f}", f"{r['gflop_per_s']:.0f}", f"{r['ms_hot']:.0f}",
          f"{r['gflop_per_s_hot']:.0f}") for name, r in results["limit"].items()),
    )  # fmt: skip
    print("speedup: against the straightforward form; memory kept: against the same in a process that keeps freed memory.\n"
          "differs by: norm of the difference to the straightforward gradient, relative; for the first order it is what is left out.")  # fmt: skip


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--batch", default=Setting.batch, type=SIZE, show_default=True, help="Tasks.")
@click.option("--context", default=Setting.context, type=SIZE, show_default=True, help="Context points of a task.")
@click.option("--query", default=Setting.query, type=SIZE, show_default=True, help="Query points of a task.")
@click.option("--width", default=Setting.width, type=SIZE, show_default=True, help="Units of a hidden layer.")
@click.option("--hidden-layers", default=Setting.hidden_layers, type=click.IntRange(0), show_default=True, help="Layers from hidden to hidden.")
@click.option("--steps", default=Setting.steps, type=SIZE, show_default=True, help="Inner steps.")
@click.option("--group", default=Setting.group, type=SIZE, show_default=True, help="Tasks in a group, for the side that splits the batch.")
@click.option("--rounds", default=Setting.rounds, type=SIZE, show_default=True, help="How often every side runs.")
@click.option("--seed", default=Setting.seed, show_default=True)
@shared_options
def main(out: Path | None, quick: bool, threads: int, **sizes: int) -> None:
    setting = Setting(**sizes)
    if quick:
        setting = replace(setting, batch=4, context=128, query=128, width=32, steps=2, group=2, rounds=1)
    set_up(keep=True, threads=threads)
    results = measure(setting)
    show(setting, results)
    write(out, "meta_step", asdict(setting), results, DEFINITION)


if __name__ == "__main__":
    main()
