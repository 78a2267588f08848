"""Errors of a conditioner on whole shapes: MSE, MAE and misclassified sign after each inner step (docs/metrics.md)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metasdf.conditioning.base import Conditioner
from metasdf.data.loader import Loader, check_dim, rows_of
from metasdf.data.store import Store
from metasdf.fields import Params, field
from metasdf.heads import Head
from metasdf.prior import Prior
from metasdf.progress import Report, reporter
from metasdf.provenance import commit, hardware
from metasdf.tasks import ContextRule, Observations

STEPWISE = 1000  # shapes whose errors are also told step by step


class GridErrors(NamedTuple):
    """Means over shapes, one value per inner step (the first is the initialisation), in field units; `shapes` holds each shape's own MSE."""

    mse: list[float]
    mae: list[float]
    misclassified: list[float]  # percent of points whose sign is wrong
    n: int
    failed: int
    shapes: NDArray[np.float64]


@torch.no_grad()
def grid_errors(
    model: Conditioner, head: Head, store: Store, *, indices: NDArray[np.int64], rule: ContextRule, n_context: int, seed: int,
    device: torch.device, batch: int = 8, steps: int | None = None, every_step: bool = True,
    refine: Callable[[Params, Observations], Params] | None = None, report: Report = lambda done, total: None,
) -> GridErrors:  # fmt: skip
    """Fit each shape to a context drawn by `rule` (keyed by seed) and compare with its SDF at every grid point; in 3D at its judged samples.

    A shape whose fitted field is not finite counts as failed; the means are then over the others, and `failed` says so.
    every_step=False judges the last step alone, at half the time. refine: of parameters and context, what counts as one more step.
    """
    loader = Loader(store, indices=indices, rule=rule, n_context=n_context, n_query=0, batch=batch, seed=seed)
    values = np.empty(0)
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        context = loader.tasks(part).context.to(device)
        judged = [loader.shapes.judged(int(i)) for i in part]
        least = min(len(each.s) for each in judged)  # 3D shapes of others may have fewer samples
        x, truth = (torch.from_numpy(np.stack([rows[:least] for rows in column])).to(device) for column in zip(*judged, strict=True))
        errors = []
        path = model.trajectory(context, steps=steps)
        if refine:
            path.append(refine(path[-1], context))
        for params in path[0 if every_step else -1 :]:
            errors.append(judge(head.to_sdf(field(params, x, model.spec)), truth))
        if not start:  # one array from the start: small ones that last would come to lie between the large freed blocks, and memory would grow
            values = np.empty((len(errors), 3, len(indices)))
        for step, found in enumerate(errors):
            values[step, :, start : start + batch] = found.cpu()
        report(min(start + batch, len(indices)), len(indices))
    good = np.isfinite(values[-1]).all(0)
    means = values[..., good].mean(-1) if good.any() else np.full(values.shape[:2], np.nan)
    mse, mae, misclassified = means.T.tolist()
    return GridErrors(mse, mae, misclassified, n=int(good.sum()), failed=int((~good).sum()), shapes=values[-1, 0])


def judge(s: Tensor, truth: Tensor) -> Tensor:
    """MSE, MAE and percent of wrong signs of each of B shapes, (3, B) in double precision, of distances (B, M, 1) at the same points."""
    e = (s - truth).double()
    return torch.stack((e.square().mean((1, 2)), e.abs().mean((1, 2)), ((s < 0) != (truth < 0)).double().mean((1, 2)) * 100))


DEFINITION = {
    "units": "field units: the image side is 1, in 3D half the side of the cube; negative inside",
    "points": "2D: all grid points. 3D: samples drawn as DeepSDF draws them, most near the surface, none of which is ever part of a context",
    "mse": "mean over shapes of the mean over all points of (sdf - truth)^2; the paper's column headed l1-error",
    "mae": "mean over shapes of the mean over all points of |sdf - truth|",
    "misclassified": "percent of points whose sign is wrong",
    "after_step": "the same after each inner step, from the initialisation on, for the first n shapes in the first run; null without such steps, or "
                  "refined",
    "refine": "steps of Adam on all parameters of the field, on the context, after the inner steps",
    "fit_ms": "wall-clock milliseconds from context to parameters: alone, one shape at a time (median over shapes); batched, per shape in one batch",
}


def evaluate(
    prior: Prior, store: Store, *, split: str = "test", runs: int = 1, seed: int = 0, limit: int | None = None, batch: int = 8,
    steps: int | None = None, refine: int = 0, category: str | None = None, device: torch.device | None = None, progress: bool | Report = True,
) -> dict[str, Any]:  # fmt: skip
    """Every shape of a split, each run with its own draw of context points (seed, seed + 1, ...). The result is ready for JSON.

    metrics are means over runs, with `_std` over runs where there are several (the paper evaluates three times, supplement 2.2.7);
    `after_step` holds those of the first STEPWISE shapes in the first run, from the initialisation (0) to the last inner step: all steps of all
    shapes would take twice the time. Raises UsageError for an empty split, shapes of another dimension, or steps of `refine` from bare points.
    """
    prior.check_refine(refine)
    device = device or torch.device("cpu")
    e = prior.experiment
    check_dim(store, prior.dim, whose=prior.name)
    indices = spread(rows_of(store, split, category or e.category), limit)
    model = prior.to(device).conditioner
    stepwise = indices[: STEPWISE if model.inner_steps and not refine else 0]
    total = len(stepwise) + runs * len(indices)
    refined = partial(prior.refine, steps=refine) if refine else None

    def errors_of(shapes: NDArray[np.int64], run: int, *, done: int, every_step: bool) -> GridErrors:
        return grid_errors(model, prior.head, store, indices=shapes, rule=e.context, n_context=e.n_test, seed=seed + run, device=device, batch=batch,
                           steps=steps, every_step=every_step, refine=refined, report=lambda own, _: report(done + own, total))  # fmt: skip

    with reporter(progress, total, "evaluating") as report:
        by_step = errors_of(stepwise, 0, done=0, every_step=True) if len(stepwise) else None
        results = [errors_of(indices, run, done=len(stepwise) + run * len(indices), every_step=False) for run in range(runs)]
    names = ("mse", "mae", "misclassified")
    last = {name: np.array([getattr(r, name)[-1] for r in results]) for name in names}  # (runs,)
    metrics = {name: float(values.mean()) for name, values in last.items()}
    if runs > 1:
        metrics |= {f"{name}_std": float(values.std(ddof=1)) for name, values in last.items()}
    finite = np.concatenate([r.shapes[np.isfinite(r.shapes)] for r in results])
    metrics["mse_median"] = float(np.median(finite)) if finite.size else float("nan")
    return {
        "prior": prior.name, "preset": e.preset, "data": {"source": store.meta.get("source"), "fingerprint": store.fingerprint}, "split": split,
        "n": min(r.n for r in results), "failed": max(r.failed for r in results), "metrics": metrics,
        "after_step": {name: getattr(by_step, name) for name in names} | {"n": by_step.n} if by_step else None,
        "fit_ms": fit_times(prior, store, indices, batch=batch, seed=seed, steps=steps, refine=refine, device=device),
        "context": {"rule": e.context, "points": e.n_test}, "refine": refine, "runs": runs, "seed": seed, "definition": DEFINITION,
        "commit": commit(), "hardware": hardware(device), "training": prior.card.get("training", {}),
    }  # fmt: skip


def spread(indices: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """At most `limit` of the shapes, evenly over the whole split: neighbours are often alike."""
    n = len(indices)
    return indices if limit is None or limit >= n else indices[np.arange(limit) * n // limit]


@torch.no_grad()
def fit_times(
    prior: Prior, store: Store, indices: NDArray[np.int64], *, batch: int, seed: int, steps: int | None, device: torch.device, refine: int = 0
) -> dict[str, float]:
    """Milliseconds from context to parameters: one shape alone (median over 20 shapes), and per shape of a batch (median of 5 runs).

    A method that takes seconds is timed less often: after a minute no more, for either.
    """
    e = prior.experiment
    loader = Loader(store, indices=indices, rule=e.context, n_context=e.n_test, n_query=0, batch=batch, seed=seed)

    def milliseconds(shapes: NDArray[np.int64]) -> float:
        context = loader.tasks(shapes).context.to(device)
        start = time.perf_counter()
        params = prior.conditioner.trajectory(context, steps=steps)[-1]
        if refine:
            prior.refine(params, context, steps=refine)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e3 / len(shapes)

    def median(parts: list[NDArray[np.int64]]) -> float:
        milliseconds(parts[0][:1])  # warms up
        times, start = [], time.perf_counter()
        for part in parts:
            times.append(milliseconds(part))
            if time.perf_counter() - start > 60:
                break
        return statistics.median(times)

    alone = median([indices[i : i + 1] for i in range(min(20, len(indices)))])
    return {"alone": alone, "batched": median([indices[:batch]] * 5), "batch": len(indices[:batch])}
