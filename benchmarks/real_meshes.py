"""What preparation makes of a folder of real meshes: how many are kept, how far their signs can be trusted, how long each takes.

    python benchmarks/real_meshes.py MESHES --data DATA --json results/real_meshes.json

Prepares MESHES into DATA (or finds it there, then without times) with all defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from common import SIZE, set_up, shared_options, table, write

from metasdf.data.meshes import LOW, prepare_meshes
from metasdf.data.shape import Sampling
from metasdf.data.store import Store

DEFINITION = {
    "agreement": "share of test points within some 1 % of the mesh's size of its surface on which two independent sign methods agree, per mesh; "
                 "lowest, 5 %, 25 %, 50 % over meshes",
    "seconds": "wall-clock time of one mesh in its worker, from the file read to the file written: median, 95 %, largest, and all together",
    "lowest": "the ten meshes with the lowest agreement",
}  # fmt: skip
QUANTILES = (0.0, 0.05, 0.25, 0.5)


def agreement(facts: list[dict[str, Any]]) -> dict[str, Any]:
    values = [each["agreement"] for each in facts]
    return {"n": len(values), "quantiles": np.quantile(values, QUANTILES).tolist(), "below": {"value": LOW, "n": sum(v < LOW for v in values)}}


def counts(facts: list[dict[str, Any]], name: str) -> dict[str, int]:
    values = [each[name] for each in facts]
    return {value: values.count(value) for value in sorted(set(values))}


def measure(store: Store, seconds: dict[str, float]) -> dict[str, Any]:
    facts = store.meta["shapes"]
    t = list(seconds.values())
    lowest = sorted(facts, key=lambda each: each["agreement"])[:10]
    return {
        "found": store.meta["found"], "kept": store.meta["kept"], "dropped": store.meta["dropped"], "fingerprint": store.fingerprint,
        "categories": {name: agreement([each for each in facts if each["category"] == name]) for name in counts(facts, "category")},
        "all": agreement(facts), "kinds": counts(facts, "kind"), "methods": counts(facts, "method"),
        "lowest": [{key: each[key] for key in ("name", "agreement", "kind", "method", "reason")} for each in lowest],
        "seconds": {"n": len(t), **dict(zip(("median", "95 %", "largest"), np.quantile(t, (0.5, 0.95, 1)).tolist(), strict=True)), "all": sum(t)}
                   if t else None,
        "slowest": max(seconds, key=seconds.__getitem__) if t else None,
    }  # fmt: skip


def show(results: dict[str, Any]) -> None:
    rows = {**results["categories"], "all": results["all"]}
    title = f"{results['found']} found = {results['kept']} kept + {len(results['dropped'])} dropped"
    table(title, ("meshes", "n", "lowest", "5 %", "25 %", "median"),
          ((name, str(row["n"]), *(f"{q:.4f}" for q in row["quantiles"])) for name, row in rows.items()))  # fmt: skip
    table("lowest agreement", ("mesh", "agreement", "kind", "by"),
          ((r["name"], f"{r['agreement']:.4f}", r["kind"], r["method"]) for r in results["lowest"]))  # fmt: skip


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.argument("meshes", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The data set to write.")
@click.option("--workers", type=SIZE, default=None, help="Processes (default: one for each core).")
@shared_options
def main(meshes: Path, data: Path, workers: int | None, out: Path | None, quick: bool, threads: int) -> None:
    set_up(keep=True, threads=threads)
    sampling = Sampling(samples=1000, surface=100, views=1) if quick else Sampling()
    seconds: dict[str, float] = {}
    store = prepare_meshes(meshes, data, sampling=sampling, workers=workers, made=seconds.__setitem__, say=print)
    results = measure(store, seconds)
    show(results)
    write(out, "real_meshes", {"meshes": meshes.resolve().name, "workers": workers, **store.meta["sampling"]}, results, DEFINITION)


if __name__ == "__main__":
    main()
