"""Whether torch.compile makes a training gradient faster: the explicit form as it is and compiled, beside the fused form that training uses.

    python benchmarks/compiled.py --json results/compiled.json

Needs a C++ compiler, which metasdf itself does not. The fused form is an operation of its own that torch.compile does not see into; of the
straightforward one it does not support the double backward.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from common import SIZE, Side, clocked, in_turn, ratio, say, set_up, shared_options, summary, table, write
from meta_step import Form, Setting, Work

from metasdf.train import meta_loss

PLAIN, COMPILED, FUSED = "explicit", "explicit, compiled", "fused"
DEFINITION = {
    "ms": "milliseconds for one gradient of the meta-training loss, forward and backward: median over rounds",
    "speedup": "how many times faster than the explicit form: median over rounds of each round's own ratio",
    "compile_s": "seconds of the first gradient of the compiled form, compilation included",
    "difference": "of the first compiled loss to the eager one, relative",
}  # fmt: skip


class Compiled(Work):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, Form("explicit"))
        (batch,) = self.parts
        self._loss = torch.compile(lambda: meta_loss(self.model, self.head, batch))

    def gradient(self) -> None:
        for p in self.model.parameters():
            p.grad = None
        self.loss = self._loss()
        self.loss.backward()


def measure(setting: Setting) -> dict[str, Any]:
    plain, fused, compiled = Work(setting, Form("explicit")), Work(setting, Form("fused")), Compiled(setting)
    say("compiling")
    start = time.perf_counter()
    compiled.gradient()
    seconds = time.perf_counter() - start
    exact = meta_loss(plain.model, plain.head, plain.parts[0]).item()
    sides: dict[str, Side] = {name: clocked(work.gradient) for name, work in ((PLAIN, plain), (COMPILED, compiled), (FUSED, fused))}
    times = in_turn(sides, rounds=setting.rounds)
    rows = {name: {**summary(own), "speedup": ratio(times[PLAIN], own)} for name, own in times.items()}
    return {"sides": rows, "compile_s": seconds, "difference": abs(compiled.loss.item() - exact) / exact}


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--batch", default=8, type=SIZE, show_default=True, help="Tasks.")
@click.option("--rounds", default=Setting.rounds, type=SIZE, show_default=True, help="How often every side runs.")
@shared_options
def main(out: Path | None, quick: bool, threads: int, batch: int, rounds: int) -> None:
    setting = Setting(batch=batch, rounds=rounds)
    if quick:
        setting = replace(setting, batch=2, context=32, query=32, width=16, steps=1, rounds=1)
    set_up(keep=True, threads=threads)
    results = measure(setting)
    table(f"one meta-training gradient: {setting.batch} tasks", ("side", "ms", "min", "speedup"),
          ((name, f"{r['ms']:.0f}", f"{r['ms_min']:.0f}", f"{r['speedup']:.2f}") for name, r in results["sides"].items()))  # fmt: skip
    click.echo(f"compiled in {results['compile_s']:.0f} s; its first loss differs by {results['difference']:.1e}")
    write(out, "compiled", asdict(setting), results, DEFINITION)


if __name__ == "__main__":
    main()
