"""How good a prior's reconstructed surfaces are: each shape of a split fitted, extracted as a mesh and measured (main paper, 3D experiments)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from metasdf.data.loader import Loader, check_dim, rows_of
from metasdf.data.shape import read_shape
from metasdf.data.store import MESHES, Store
from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.evaluate import spread
from metasdf.geometry.frame import Frame
from metasdf.metrics import PAPER, Convention, Failure, Outcome, best, compare, iou, misclassified, summarise
from metasdf.prior import Observed, Prior
from metasdf.progress import Report, reporter
from metasdf.provenance import commit, hardware

DEFINITION = {
    "iou": "volume inside both over volume inside either, by the data set's points uniform in the field's cube [-1, 1]^3; none where it has no such",
    "misclassified": "percent of the shape's judged samples, drawn as DeepSDF draws them and never part of a context, whose sign is wrong",
    "fit_ms": "median over shapes of the wall-clock milliseconds from context to parameters, one shape at a time",
    "mesh_ms": "median over shapes of the wall-clock milliseconds from parameters to mesh",
    "field_evaluations": "median over shapes of the points at which the field was asked for the mesh",
}


def evaluate_surfaces(
    prior: Prior, store: Store, *, split: str = "test", category: str | None = None, limit: int | None = None, resolution: int = 128,
    best_of: int = 1, seed: int = 0, steps: int | None = None, convention: Convention = PAPER, device: torch.device | None = None,
    progress: bool | Report = True,
) -> dict[str, Any]:  # fmt: skip
    """Chamfer, F-score, normals, IoU and wrong signs of every shape of a split, ready for JSON. The context is drawn as in evaluation.

    best_of: that many reconstructions of each shape, with contexts of their own, the best by chamfer counts (supplement 3.2.6: two).
    A shape without a surface is a failure, named, and in no mean. Raises UsageError for a data set that is not of 3D shapes, or an empty split.
    """
    if store.kind != MESHES:
        raise UsageError(f"surfaces are measured of 3D shapes, this data set holds {store.kind}", where=store.path, fix="leave --surfaces out")
    check_dim(store, prior.dim, whose=prior.name)
    device = device or torch.device("cpu")
    e, category = prior.experiment, category or prior.experiment.category
    prior.to(device)
    indices = spread(rows_of(store, split, category), limit)
    rows: list[Outcome] = []
    times: list[tuple[float, float, int]] = []
    with reporter(progress, len(indices), "reconstructing") as report:
        for done, index in enumerate(indices, 1):
            attempts = [_attempt(prior, store, int(index), resolution=resolution, seed=seed + k, steps=steps, convention=convention, times=times)
                        for k in range(best_of)]  # fmt: skip
            rows.append(best(*attempts) if best_of > 1 else attempts[0])
            report(done, len(indices))
    summary = summarise(rows)
    fit, mesh, asked = (float(np.median(column)) for column in zip(*times, strict=True)) if times else (None, None, None)
    return {
        "prior": prior.name, "preset": e.preset, "data": {"source": store.meta.get("source"), "fingerprint": store.fingerprint}, "split": split,
        "category": category, **summary, "definition": summary["definition"] | DEFINITION, "resolution": resolution, "seed": seed,
        "steps": steps, "fit_ms": fit, "mesh_ms": mesh, "field_evaluations": asked, "context": {"rule": e.context, "points": e.n_test},
        "shapes": [row._asdict() | {"convention": None} if not isinstance(row, Failure) else row._asdict() for row in rows],
        "commit": commit(), "hardware": hardware(device), "training": prior.card.get("training", {}),
    }  # fmt: skip


def _attempt(
    prior: Prior, store: Store, index: int, *, resolution: int, seed: int, steps: int | None, convention: Convention,
    times: list[tuple[float, float, int]],
) -> Outcome:  # fmt: skip
    e = prior.experiment
    loader = Loader(store, indices=np.array([index]), rule=e.context, n_context=e.n_test, n_query=0, batch=1, seed=seed)
    shape = read_shape(store.item(index), "surface", "volume")
    name, frame = str(shape.facts["name"]), Frame(tuple(shape.facts.get("centre", (0.0, 0.0, 0.0))), float(shape.facts.get("scale", 1.0)))
    context = loader.tasks(np.array([index])).context
    started = time.perf_counter()
    (sdf,) = prior.fit([Observed(frame, context.x[0].numpy(), context.y[0, :, 0].numpy())], steps=steps)
    fitted = time.perf_counter()
    try:
        extraction = sdf.extract(resolution=resolution)
    except (EmptySurfaceError, InputError) as error:
        return Failure(name, error.what)
    times.append(((fitted - started) * 1e3, (time.perf_counter() - fitted) * 1e3, extraction.evaluations))
    surface = shape.arrays["surface"].astype(np.float64)
    truth = np.concatenate((frame.from_field(surface[:, :3]), surface[:, 3:]), 1)
    found = compare(truth, extraction.mesh, name=name, frame=frame, convention=convention)
    volume, judged = shape.arrays["volume"], loader.shapes.judged(index)
    return found._replace(
        iou=iou(volume[:, 3] < 0, sdf.at_field(volume[:, :3]) < 0) if len(volume) else None,
        misclassified=misclassified(judged.s[:, 0] < 0, sdf.at_field(judged.x) < 0),
    )
