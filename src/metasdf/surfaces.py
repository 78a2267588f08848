"""How good a prior's reconstructed surfaces are: each shape of a split fitted, extracted as a mesh and measured (main paper, 3D experiments)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metasdf.data.loader import Loader, MeshShapes, check_dim, rows_of
from metasdf.data.shape import read_shape
from metasdf.data.store import MESHES, Store
from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.evaluate import spread
from metasdf.geometry.frame import Frame
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.signed import MeshSDF
from metasdf.metrics import PAPER, Convention, Failure, Outcome, best, compare, iou, misclassified, summarise
from metasdf.poisson import DEPTH, screened_poisson
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
PIECES = {"pieces": "meshes of fits to distances are without the pieces that these refute (docs/extraction.md); IoU and signs are of the field"}


class Reconstruction(NamedTuple):
    """sdf: of points (N, 3) in field units. evaluations: points at which the field was asked for the mesh."""

    mesh: Mesh
    sdf: Callable[[NDArray[np.floating]], NDArray[np.floating]]
    fit_ms: float
    mesh_ms: float
    evaluations: int


# A row of the data set and a seed for the context -> the shape again. Raises EmptySurfaceError, InputError: a failure.
Reconstruct = Callable[[int, int], Reconstruction]


def evaluate_surfaces(
    prior: Prior, store: Store, *, split: str = "test", category: str | None = None, limit: int | None = None, resolution: int = 128,
    best_of: int = 1, seed: int = 0, steps: int | None = None, refine: int = 0, convention: Convention = PAPER, device: torch.device | None = None,
    progress: bool | Report = True,
) -> dict[str, Any]:  # fmt: skip
    """Chamfer, F-score, normals, IoU and wrong signs of every shape of a split, ready for JSON. The context is drawn as in evaluation.

    best_of: that many reconstructions of each shape, with contexts of their own, the best by chamfer counts (supplement 3.2.6: two).
    steps, refine: of each fit, as in `Prior.adapt`. A shape without a surface is a failure, named, and in no mean.
    Raises UsageError for a data set that is not of 3D shapes, an empty split, or `refine` from bare points.
    """
    _check_meshes(store)
    check_dim(store, prior.dim, whose=prior.name)
    prior.check_refine(refine)
    device = device or torch.device("cpu")
    e, category = prior.experiment, category or prior.experiment.category
    prior.to(device)

    def reconstruct(index: int, seed: int) -> Reconstruction:
        loader = Loader(store, indices=np.array([index]), rule=e.context, n_context=e.n_test, n_query=0, batch=1, seed=seed)
        context = loader.tasks(np.array([index])).context
        started = time.perf_counter()
        (sdf,) = prior.fit([Observed(_frame(store, index), context.x[0].numpy(), context.y[0, :, 0].numpy())], steps=steps, refine=refine)
        fitted = time.perf_counter()
        found = sdf.extract(resolution=resolution)
        return Reconstruction(found.mesh, sdf.at_field, (fitted - started) * 1e3, (time.perf_counter() - fitted) * 1e3, found.evaluations)

    measured = _measure(reconstruct, store, split=split, category=category, limit=limit, best_of=best_of, seed=seed, convention=convention,
                        progress=progress)  # fmt: skip
    return measured | {
        "definition": measured["definition"] | PIECES, "prior": prior.name, "preset": e.preset, "resolution": resolution, "steps": steps,
        "refine": refine, "context": {"rule": e.context, "points": e.n_test}, "hardware": hardware(device),
        "training": prior.card.get("training", {}),
    }  # fmt: skip


def evaluate_poisson(
    store: Store, *, n_points: int, split: str = "test", category: str | None = None, limit: int | None = None, best_of: int = 1, seed: int = 0,
    depth: int = DEPTH, convention: Convention = PAPER, progress: bool | Report = True,
) -> dict[str, Any]:  # fmt: skip
    """The same of screened Poisson (`metasdf.poisson`), from so many points of the surface with their true normals.

    Its signs are those of `sdf_from_mesh`; fit_ms is all it takes from points to mesh. Raises as `poisson_mesh`.
    """
    _check_meshes(store)

    def reconstruct(index: int, seed: int) -> Reconstruction:
        mesh, seconds = poisson_mesh(store, index, n_points=n_points, seed=seed, depth=depth)
        return Reconstruction(Mesh(_frame(store, index).from_field(mesh.vertices), mesh.faces), MeshSDF(mesh), seconds * 1e3, 0.0, 0)

    measured = _measure(reconstruct, store, split=split, category=category, limit=limit, best_of=best_of, seed=seed, convention=convention,
                        progress=progress)  # fmt: skip
    return measured | {
        "prior": None, "preset": "none", "resolution": 2**depth, "steps": None, "context": {"rule": "oriented", "points": n_points},
        "hardware": hardware(torch.device("cpu")), "training": {"seconds": 0.0},
    }  # fmt: skip


def poisson_mesh(store: Store, index: int, *, n_points: int, seed: int, depth: int = DEPTH) -> tuple[Mesh, float]:
    """Screened Poisson's mesh of a shape, in field units, and the seconds it took. Raises UsageError where pymeshlab is missing, or the data set
    has no normals; InputError where there is no surface."""
    rows = read_shape(store.item(index), "surface").arrays["surface"].astype(np.float64)
    if not rows[:, 3:].any():
        raise UsageError("Screened Poisson needs normals, and the surface points of this data set have none", where=store.path,
                         cause="samples in DeepSDF's layout", fix="prepare the meshes themselves")  # fmt: skip
    chosen = np.random.default_rng((seed, index)).choice(len(rows), min(n_points, len(rows)), replace=False)
    started = time.perf_counter()
    mesh = screened_poisson(rows[chosen, :3], rows[chosen, 3:], depth=depth)
    return mesh, time.perf_counter() - started


def _measure(reconstruct: Reconstruct, store: Store, *, split: str, category: str | None, limit: int | None, best_of: int, seed: int,
             convention: Convention, progress: bool | Report) -> dict[str, Any]:  # fmt: skip
    indices = spread(rows_of(store, split, category), limit)
    rows: list[Outcome] = []
    times: list[tuple[float, float, int]] = []
    with reporter(progress, len(indices), "reconstructing") as report:
        for done, index in enumerate(indices, 1):
            attempts = [_attempt(reconstruct, store, int(index), seed=seed + k, convention=convention, times=times) for k in range(best_of)]
            rows.append(best(*attempts) if best_of > 1 else attempts[0])
            report(done, len(indices))
    summary = summarise(rows)
    fit, mesh, asked = (float(np.median(column)) for column in zip(*times, strict=True)) if times else (None, None, None)
    return {
        "data": {"source": store.meta.get("source"), "fingerprint": store.fingerprint}, "split": split, "category": category, **summary,
        "definition": summary["definition"] | DEFINITION, "seed": seed, "fit_ms": fit, "mesh_ms": mesh, "field_evaluations": asked,
        "shapes": [row._asdict() | {"convention": None} if not isinstance(row, Failure) else row._asdict() for row in rows], "commit": commit(),
    }  # fmt: skip


def _attempt(
    reconstruct: Reconstruct, store: Store, index: int, *, seed: int, convention: Convention, times: list[tuple[float, float, int]]
) -> Outcome:
    shape = read_shape(store.item(index), "surface", "volume")
    name, frame = str(shape.facts["name"]), _frame(store, index)
    try:
        ours = reconstruct(index, seed)
    except (EmptySurfaceError, InputError) as error:
        return Failure(name, error.what)
    times.append((ours.fit_ms, ours.mesh_ms, ours.evaluations))
    surface = shape.arrays["surface"].astype(np.float64)
    truth = np.concatenate((frame.from_field(surface[:, :3]), surface[:, 3:]), 1)
    found = compare(truth, ours.mesh, name=name, frame=frame, convention=convention)
    volume, judged = shape.arrays["volume"], MeshShapes(store).judged(index)
    return found._replace(
        iou=iou(volume[:, 3] < 0, ours.sdf(volume[:, :3]) < 0) if len(volume) else None,
        misclassified=misclassified(judged.s[:, 0] < 0, ours.sdf(judged.x) < 0),
    )


def _check_meshes(store: Store) -> None:
    if store.kind != MESHES:
        raise UsageError(f"surfaces are measured of 3D shapes, this data set holds {store.kind}", where=store.path, fix="leave --surfaces out")


def _frame(store: Store, index: int) -> Frame:
    *centre, scale = store.arrays["frames"][index].tolist()
    return Frame((centre[0], centre[1], centre[2]), scale)
