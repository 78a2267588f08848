"""How near a reconstructed surface is to the true one: chamfer, F-score and normals of points on both, IoU and wrong signs of what they enclose.

All randomness is keyed by (seed, name of the shape), so a value depends on the two surfaces alone; definitions are in docs/metrics.md.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.geometry.frame import Frame
from metasdf.geometry.mesh import Mesh, bounds, check
from metasdf.geometry.nearest import kd_tree
from metasdf.geometry.sampling import DEEPSDF_SPREADS, surface_points

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Surface = Mesh | NDArray[np.floating]  # or points with unit normals (K, 6), the latter zero where unknown, as data sets hold them
Inside = Callable[[Floats], Bools]  # points (N, 3) in the shape's own units -> whether they are inside (N,)


class Convention(NamedTuple):
    """What a value depends on beside the surfaces; part of every summary. The number of points is the paper's (3D experiments)."""

    points: int = 30_000  # on each side; as many near the surface for the signs
    threshold: float = 0.02  # of the F-score, in field units: 1 % of the cube's side (Tatarchenko et al. 2019)
    volume_points: int = 20_000  # for IoU, as many as data sets hold
    seed: int = 0


PAPER = Convention()


class Closeness(NamedTuple):
    """Of two sets of points in field units. Normals are None where either side has none."""

    chamfer_field: float
    fscore: float
    precision: float
    recall: float
    normals: float | None
    normals_signed: float | None


class Measures(NamedTuple):
    """Of one shape; see DEFINITION. Floors are None where the truth is points, too few to be drawn twice; iou and misclassified without insides."""

    name: str
    chamfer: float
    chamfer_floor: float | None
    chamfer_field: float
    chamfer_field_floor: float | None
    fscore: float
    fscore_floor: float | None
    precision: float
    recall: float
    normals: float | None
    normals_floor: float | None
    normals_signed: float | None
    iou: float | None
    misclassified: float | None
    convention: Convention = PAPER
    best_of: int = 1


class Failure(NamedTuple):
    """A shape that has no reconstructed surface, and why."""

    name: str
    reason: str
    best_of: int = 1


Outcome = Measures | Failure
DEFINITION = {
    "chamfer": "mean over the true points of the squared distance to the nearest reconstructed point, plus the mean over the reconstructed points of "
    "that to the nearest true one; points uniform by area; squared units of the shape's own file",
    "chamfer_floor": "the same between two samplings of the true surface: what a perfect reconstruction has, about 2 area / (pi points)",
    "chamfer_field": "chamfer in squared field units, in which the cube is [-1, 1]^3: chamfer times the square of the frame's scale",
    "chamfer_field_floor": "chamfer_floor in squared field units",
    "fscore": "harmonic mean of precision and recall",
    "fscore_floor": "the same between two samplings of the true surface, about 1 - exp(-pi points threshold^2 / area in field units)",
    "precision": "share of the reconstructed points whose nearest true point is within the threshold (field units)",
    "recall": "share of the true points whose nearest reconstructed point is within the threshold (field units)",
    "normals": "mean over points of |cos| of the angle between a point's normal and that of the nearest point of the other side; mean of both ways",
    "normals_floor": "the same between two samplings of the true surface",
    "normals_signed": "normals without the absolute value: 1 where all orientations agree, -1 where all are opposite",
    "iou": "volume inside both over volume inside either, by points uniform in the joint bounding box of both surfaces; none where nothing is inside",
    "misclassified": "percent of points whose sign is wrong: true surface points plus Gaussian noise, of variance 0.005 or 0.0005 in field units",
    "best_of": "reconstructions of each shape; where above 1, all values are those of the one with the least chamfer (supplement 3.2.6)",
    "failed": "shapes of which no reconstruction has a surface: in failures, and in no mean",
    "std": "over shapes, divided by n",
}
VALUES = Measures._fields[1:-2]


def compare(
    truth: Surface, ours: Surface, *, name: str, frame: Frame, convention: Convention = PAPER, inside_truth: Inside | None = None,
    inside_ours: Inside | None = None, workers: int = 1,
) -> Measures:  # fmt: skip
    """Measure a reconstruction; both surfaces in the shape's own units, `frame` leads to field units. With both insides, IoU and signs as well.

    Raises InputError for a surface that is empty or damaged (of ours: the shape's `Failure`), UsageError for insides that are no pair of
    `sdf(x) < 0`.
    """
    n = convention.points
    if (inside_truth is None) != (inside_ours is None) or min(n, convention.volume_points) < 1:
        raise UsageError("A comparison needs at least one point, and both insides or none", where=f"{name}, {convention}")
    rng = np.random.default_rng((convention.seed, *hashlib.sha256(name.encode(errors="surrogateescape")).digest()))
    two = isinstance(truth, Mesh) or len(truth) >= 2 * n
    drawn = _draw(truth, 2 * n if two else n, frame=frame, rng=rng, where=f"{name}, truth")
    first, second = drawn[:n], drawn[n:]
    found = closeness(first, _draw(ours, n, frame=frame, rng=rng, where=f"{name}, reconstruction"), threshold=convention.threshold, workers=workers)
    floor = closeness(first, second, threshold=convention.threshold, workers=workers) if two else None
    overlap = wrong = None
    if inside_truth and inside_ours:
        near = first[:, :3] + rng.choice(DEEPSDF_SPREADS, (n, 1)) * rng.standard_normal((n, 3))
        wrong = misclassified(*_signs(frame.from_field(near), inside_truth, inside_ours))
        boxes = np.stack([bounds(s) if isinstance(s, Mesh) else np.stack((s[:, :3].min(0), s[:, :3].max(0))) for s in (truth, ours)])
        volume = rng.uniform(boxes.min((0, 1)), boxes.max((0, 1)), (convention.volume_points, 3))
        overlap = iou(*_signs(volume, inside_truth, inside_ours))
    own = frame.scale**-2
    return Measures(
        name, chamfer=found.chamfer_field * own, chamfer_floor=floor.chamfer_field * own if floor else None,
        chamfer_field_floor=floor.chamfer_field if floor else None, fscore_floor=floor.fscore if floor else None,
        normals_floor=floor.normals if floor else None, iou=overlap, misclassified=wrong, convention=convention, **found._asdict(),
    )  # fmt: skip


def closeness(truth: NDArray[np.floating], ours: NDArray[np.floating], *, threshold: float, workers: int = 1) -> Closeness:
    """Of points with normals (N, 6) and (M, 6), neither empty, against the nearest of the other side, both ways."""
    (there, to_ours), (back, to_truth) = (kd_tree(b[:, :3]).query(a[:, :3], workers=workers) for a, b in ((truth, ours), (ours, truth)))
    recall, precision = float((there <= threshold).mean()), float((back <= threshold).mean())
    cosines = [(a[:, 3:] * b[nearest, 3:]).sum(1) for a, b, nearest in ((truth, ours, to_ours), (ours, truth, to_truth))]
    known = truth[:, 3:].any() and ours[:, 3:].any()
    return Closeness(
        chamfer_field=float(np.square(there).mean() + np.square(back).mean()),
        fscore=2 * precision * recall / (precision + recall) if precision else 0.0, precision=precision, recall=recall,
        normals=float(np.mean([np.abs(c).mean() for c in cosines])) if known else None,
        normals_signed=float(np.mean([c.mean() for c in cosines])) if known else None,
    )  # fmt: skip


def iou(truth: Bools, ours: Bools) -> float | None:
    """Intersection over union of what is inside (N,), of points uniform in any box around both; None where nothing is."""
    union = int((truth | ours).sum())
    return float((truth & ours).sum() / union) if union else None


def misclassified(truth: Bools, ours: Bools) -> float:
    """Percent of points at which insides (N,) disagree."""
    return float((truth != ours).mean() * 100)


def best(*attempts: Outcome) -> Outcome:
    """Of several reconstructions of one shape the one with the least chamfer, which from then on says of how many it is the best."""
    if len({attempt.name for attempt in attempts}) != 1:
        raise UsageError("The best is taken of reconstructions of one shape", where=f"{[attempt.name for attempt in attempts]}")
    measured = [attempt for attempt in attempts if isinstance(attempt, Measures)]
    chosen: Outcome = min(measured, key=lambda each: each.chamfer) if measured else attempts[0]
    return chosen._replace(best_of=sum(attempt.best_of for attempt in attempts))


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Mean, median and standard deviation of every value over shapes, how many have it, and which shapes failed; ready for JSON.

    Raises UsageError for no shapes, for one shape twice, and for shapes that were not measured alike.
    """
    measured = [outcome for outcome in outcomes if isinstance(outcome, Measures)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    conventions, best_of = {m.convention for m in measured}, {outcome.best_of for outcome in outcomes}
    if len(best_of) != 1 or len(conventions) > 1:
        raise UsageError("A mean needs shapes, all measured alike", where=f"best of {sorted(best_of)}; {sorted(conventions)}",
                         fix="measure all by one convention, and take the best of equally many")  # fmt: skip
    name, times = Counter(outcome.name for outcome in outcomes).most_common(1)[0]
    if times > 1:
        raise UsageError("A shape is there more than once", where=name, fix="choose one reconstruction of each shape with best(), which says so")
    return {
        "n": len(measured), "failed": len(failures), "failures": [{"name": f.name, "reason": f.reason} for f in failures],
        "best_of": best_of.pop(), "convention": conventions.pop()._asdict() if conventions else None,
        "metrics": {value: _over_shapes([getattr(m, value) for m in measured]) for value in VALUES}, "definition": DEFINITION,
    }  # fmt: skip


def _over_shapes(values: list[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "median": float(np.median(known)), "std": float(np.std(known)), "n": len(known)}


def _draw(surface: Surface, n: int, *, frame: Frame, rng: np.random.Generator, where: str) -> Floats:
    """n points with normals (n, 6) in field units. Of a mesh this takes as many random numbers whatever the mesh, so all reconstructions of a
    shape are judged by the same points."""
    if isinstance(surface, Mesh):
        points, normals, _ = surface_points(check(surface, where=where), n, rng=rng)
    else:
        rows = np.asarray(surface, np.float64)
        if rows.shape[1:] != (6,) or len(rows) < n or not np.isfinite(rows).all():
            raise InputError(f"A surface is a mesh, or at least {n:,} finite points with normals (K, 6)", where=where, cause=f"shape {rows.shape}",
                             fix="give more points, or a convention with fewer")  # fmt: skip
        points, normals = np.split(rows[rng.choice(len(rows), n, replace=False)], 2, axis=1)
    return np.concatenate((frame.to_field(points), normals), 1)


def _signs(x: Floats, *insides: Inside) -> list[Bools]:
    signs = [np.asarray(inside(x)) for inside in insides]
    if any(sign.shape != (len(x),) or sign.dtype != np.bool_ for sign in signs):
        raise UsageError("An inside answers yes or no for each point", where=f"{[(sign.shape, str(sign.dtype)) for sign in signs]}",
                         fix="of a signed distance function pass lambda x: sdf(x) < 0")  # fmt: skip
    return signs
