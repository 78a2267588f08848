"""How long it takes to fit digits, and how well: from an image file to an SDF, and 1,000 contexts to parameters.

    python benchmarks/fit.py --json fit.json
    python benchmarks/fit.py --data DATA --json fit.json      DATA from: metasdf prepare mnist -o DATA

The shipped priors, in the straightforward form of the inner gradient (autograd, float32) and in ours, one shape at a time and in batches; ours
also in bfloat16 products, where the processor gains by them, and from a quarter of the points. Each side's error over the whole grid stands beside
its time. Without --data the digits are the 100 of the package, drawn again and again.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np
import torch
from common import SIZE, Side, clocked, in_turn, numbers, ratio, set_up, shared_options, summary, table, write
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metasdf.conditioning.metasdf import MetaSDF
from metasdf.data.loader import Loader
from metasdf.data.mnist import load_slice
from metasdf.data.prepare import prepare_slice
from metasdf.data.store import Store
from metasdf.devices import bfloat16_pays
from metasdf.fields import field
from metasdf.geometry.image import mask_from_image, pixel_grid, read_silhouette, sdf_from_mask
from metasdf.prior import SDF, Prior, load
from metasdf.reconstruct import context_for, crop_around, read_observations
from metasdf.tasks import Observations
from metasdf.train import PRODUCTS

PRIORS = ("mnist-dense", "mnist-levelset")
DEFINITION = {
    "files": "milliseconds from an image file to an SDF, the prior already in memory: median over rounds of the mean over images; context_ms of "
             "them read the file, make a distance function and draw the context, adapt_ms fit",
    "contexts": "milliseconds per shape from context to parameters: median over rounds of the time of all shapes, divided by their number",
    "mse": "mean over shapes of the mean over all grid points of (sdf - truth)^2, in image sides squared; mae of |sdf - truth|. The fitted field "
           "is always evaluated in float32",
    "speedup": "how many times faster than the straightforward form, for contexts one shape at a time: median over rounds of each round's own "
               "ratio; speedup_best: than the straightforward form in the batches that suit it best",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    shapes: int = 1000
    batches: tuple[int, ...] = (1, 8)
    images: int = 20
    rounds: int = 3
    seed: int = 0


class Form(NamedTuple):
    gradient: Literal["fused", "explicit", "autograd"]
    products: Literal["float32", "bfloat16"] = "float32"
    parts: int = 1  # one of so many of the context's points


STRAIGHT = "straightforward"


def forms() -> dict[str, Form]:
    low = {"ours, bfloat16": Form("fused", "bfloat16")} if bfloat16_pays(torch.device("cpu")) else {}
    return {STRAIGHT: Form("autograd"), "ours": Form("fused"), **low, "ours, a quarter of the points": Form("fused", parts=4)}


def prior_in(form: Form, name: str) -> Prior:
    """A prior whose inner steps are computed in that form."""
    prior = load(name)
    assert isinstance(prior.conditioner, MetaSDF)
    prior.conditioner.config = replace(prior.conditioner.config, gradient=form.gradient)
    prior.conditioner.products = PRODUCTS[form.products]
    prior.experiment = replace(prior.experiment, n_test=prior.experiment.n_test // form.parts)
    return prior


# -- from an image file ----------------------------------------------------------------------------------------------------------------


def fit_file(path: Path, prior: Prior, parts: list[tuple[float, float]] | None = None) -> SDF:
    """What `metasdf reconstruct` does before it writes anything. `parts` takes the milliseconds to the context, and of the fit."""
    start = time.perf_counter()
    context = context_for(read_observations(path), prior)
    middle = time.perf_counter()
    sdf = prior.adapt(context.x, context.s, frame=context.frame)
    if parts is not None:
        parts.append(((middle - start) * 1e3, (time.perf_counter() - middle) * 1e3))
    return sdf


def truth_of(path: Path, prior: Prior) -> NDArray[np.float32]:
    """The distance function (R, R) from which the file's context is drawn."""
    square, _ = crop_around(read_silhouette(path), extent=prior.extent)
    return sdf_from_mask(mask_from_image(square, int(prior.card["data"]["resolution"])))


@torch.no_grad()
def file_errors(paths: list[Path], prior: Prior) -> dict[str, float]:
    errors = []
    for path in paths:
        truth = truth_of(path, prior)
        s = fit_file(path, prior).in_field(torch.from_numpy(pixel_grid(len(truth))))
        errors.append(s.numpy().reshape(truth.shape).astype(np.float64) - truth)
    return {"mse": float(np.mean(np.square(errors))), "mae": float(np.mean(np.abs(errors)))}


def files(paths: list[Path], name: str, rounds: int) -> dict[str, Any]:
    """Every form's time and error on every file, for one prior."""
    priors = {label: prior_in(form, name) for label, form in forms().items()}
    parts: dict[str, list[tuple[float, float]]] = {label: [] for label in priors}

    def all_files(label: str) -> None:
        for path in paths:
            fit_file(path, priors[label], parts[label])

    times = in_turn({label: clocked(partial(all_files, label)) for label in priors}, rounds=rounds)
    results: dict[str, Any] = {}
    for label, own in times.items():
        context_ms, adapt_ms = (statistics.median(column) for column in zip(*parts[label][len(paths) :], strict=True))  # less the warm-up
        results[label] = {**summary(own, per=len(paths)), "context_ms": context_ms, "adapt_ms": adapt_ms,
                          "speedup": ratio(times[STRAIGHT], own), **file_errors(paths, priors[label])}  # fmt: skip
    return results


def write_images(folder: Path, n: int) -> list[Path]:
    """The first n digits of the package, spread over the classes, as PNG files."""
    images = load_slice()[0]
    paths = [folder / f"digit-{k}.png" for k in range(n)]
    for k, path in enumerate(paths):
        Image.fromarray(images[k * 37 % len(images)]).save(path)  # 37: no factor of 100, so no digit comes twice
    return paths


# -- from contexts ---------------------------------------------------------------------------------------------------------------------


class Contexts(NamedTuple):
    """What is observed of each shape, with the true distances (shapes, M, 1) on the grid (M, 2)."""

    context: Observations
    truth: Tensor
    grid: Tensor


def draw_contexts(store: Store, indices: NDArray[np.int64], prior: Prior, setting: Setting) -> Contexts:
    """Contexts as evaluation draws them; a shape that comes again, because there are too few, has other points."""
    e = prior.experiment
    loader = Loader(store, indices=indices, rule=e.context, n_context=e.n_test, n_query=0, batch=1, seed=setting.seed)
    repeated = np.resize(indices, setting.shapes)
    parts = [loader.tasks(repeated[first : first + len(indices)], epoch=epoch).context
             for epoch, first in enumerate(range(0, setting.shapes, len(indices)))]  # fmt: skip
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    judged = [loader.shapes.judged(int(i)) for i in repeated]
    return Contexts(Observations(x, y), torch.from_numpy(np.stack([each.s for each in judged])), torch.from_numpy(judged[0].x))


def cut(context: Observations, batch: int, prior: Prior) -> list[Observations]:
    """In batches, with as many of the points, whose order is random, as the prior is to see."""
    n = prior.experiment.n_test
    return [Observations(x[:, :n].contiguous(), y[:, :n].contiguous()) for x, y in zip(context.x.split(batch), context.y.split(batch), strict=True)]


@torch.no_grad()
def fit_all(prior: Prior, batches: list[Observations]) -> None:
    for context in batches:
        prior.conditioner.trajectory(context)


@torch.no_grad()
def context_errors(prior: Prior, contexts: Contexts) -> dict[str, float]:
    errors = []
    for context, truth in zip(cut(contexts.context, 8, prior), contexts.truth.split(8), strict=True):
        params = prior.conditioner.trajectory(context)[-1]
        s = prior.head.to_sdf(field(params, contexts.grid.expand(len(truth), -1, -1), prior.conditioner.spec))
        errors.append((s - truth).double())
    e = torch.cat(errors)
    return {"mse": float(e.square().mean()), "mae": float(e.abs().mean())}


def contexts(store: Store, indices: NDArray[np.int64], name: str, setting: Setting) -> dict[str, Any]:
    """Every form's time and error on the same contexts, in batches of several sizes, for one prior."""
    priors = {label: prior_in(form, name) for label, form in forms().items()}
    drawn = draw_contexts(store, indices, priors[STRAIGHT], setting)
    errors = {label: context_errors(prior, drawn) for label, prior in priors.items()}
    sides: dict[str, Side] = {
        side(label, batch): clocked(partial(fit_all, prior, cut(drawn.context, batch, prior)))
        for label, prior in priors.items()
        for batch in setting.batches
    }
    times = in_turn(sides, rounds=setting.rounds)
    first, *_ = plain = [side(STRAIGHT, batch) for batch in setting.batches]
    best = min(plain, key=lambda name: statistics.median(times[name]))
    return {
        side(label, batch): {
            **summary(times[side(label, batch)], per=setting.shapes), "batch": batch, "speedup": ratio(times[first], times[side(label, batch)]),
            "speedup_best": ratio(times[best], times[side(label, batch)]), **errors[label],
        }
        for label in priors
        for batch in setting.batches
    }  # fmt: skip


def side(label: str, batch: int) -> str:
    return f"{label}, " + ("one at a time" if batch == 1 else f"batches of {batch:,}")


# -- all of it -------------------------------------------------------------------------------------------------------------------------


def measure(setting: Setting, data: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), setting.images)
        if data is None:
            store = prepare_slice(Path(folder) / "digits", progress=False)
            indices = np.arange(len(store))
        else:
            store = Store.open(data)
            indices = store.split("test")
        indices = indices[: setting.shapes]
        by_file = {name: files(paths, name, setting.rounds) for name in PRIORS}
        by_context = {name: contexts(store, indices, name, setting) for name in PRIORS}
        source = {"source": store.meta.get("source"), "fingerprint": store.fingerprint, "distinct_shapes": len(indices)}
    return {"data": source, "files": by_file, "contexts": by_context}


def show(setting: Setting, results: dict[str, Any]) -> None:
    for name in PRIORS:
        table(
            f"{name}: image file -> SDF, ms per image ({setting.images} images)",
            ("side", "ms", "min", "to the context", "fit", "speedup", "MSE x 1e6", "MAE x 1e3"),
            ((label, *(f"{r[key]:.2f}" for key in ("ms", "ms_min", "context_ms", "adapt_ms", "speedup")), f"{r['mse'] * 1e6:.2f}",
              f"{r['mae'] * 1e3:.3f}") for label, r in results["files"][name].items()),
        )  # fmt: skip
        table(
            f"{name}: context -> parameters, ms per shape ({setting.shapes:,} shapes, {results['data']['distinct_shapes']:,} different ones)",
            ("side", "ms", "min", "speedup", "over best", "MSE x 1e6", "MAE x 1e3"),
            ((label, *(f"{r[key]:.2f}" for key in ("ms", "ms_min", "speedup", "speedup_best")), f"{r['mse'] * 1e6:.2f}", f"{r['mae'] * 1e3:.3f}")
             for label, r in results["contexts"][name].items()),
        )  # fmt: skip
    print("speedup: against the straightforward form, for contexts one at a time; over best: against it in the batches that suit it best.")


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Data set whose test split gives the contexts.  [default: the 100 digits of the package]")  # fmt: skip
@click.option("--shapes", default=Setting.shapes, type=SIZE, show_default=True, help="Contexts to fit.")
@click.option("--batches", default=",".join(map(str, Setting.batches)), show_default=True, callback=numbers,
              help="How many shapes are fitted together: one set of sides for each. The smallest is what speedups compare with.")  # fmt: skip
@click.option("--images", default=Setting.images, show_default=True, type=click.IntRange(1, 100), help="Image files to fit.")
@click.option("--rounds", default=Setting.rounds, type=SIZE, show_default=True, help="How often every side runs.")
@click.option("--seed", default=Setting.seed, show_default=True, help="Of the context points.")
@shared_options
def main(out: Path | None, quick: bool, threads: int, data: Path | None, **sizes: Any) -> None:
    setting = replace(Setting(**sizes), shapes=4, batches=(1, 2), images=1, rounds=1) if quick else Setting(**sizes)
    set_up(keep=True, threads=threads)
    results = measure(setting, data)
    show(setting, results)
    write(out, "fit", asdict(setting), results, DEFINITION)


if __name__ == "__main__":
    main()
