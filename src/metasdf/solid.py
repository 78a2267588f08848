"""Scans in, meshes out: what is observed of a 3D shape becomes its signed distance function and its surface, in the scan's own units and axes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, MetaSDFError, UsageError
from metasdf.files import write_whole
from metasdf.geometry.io import MESH_OUTPUTS, write_mesh
from metasdf.geometry.mesh import Mesh, components
from metasdf.geometry.pose import Pose, Up, headings, pose_of, upright
from metasdf.geometry.sampling import sdf_samples
from metasdf.geometry.scan import Outliers, Residual, Scan, read_scan, residual, surface_of
from metasdf.prior import SDF, Observed, Prior

Floats = NDArray[np.float64]
FORMAT = "metasdf-solid-1"  # how a summary of ours is told from another file of the same name
FRAMING = 20_000  # points of a mesh by which it is framed


@dataclass(frozen=True)
class Summary:
    """What was done, as written beside the mesh. Lengths are in `units`, those of the scan."""

    input: str
    mesh: str
    prior: str
    kind: str  # of what was given: points, samples or mesh
    units: str
    observations: int
    context: int  # how many of them, or points drawn from the mesh, the prior was given
    steps: int
    seed: int
    resolution: int
    up: Up
    heading: float  # degrees about the up axis by which the scan was turned to what the prior knows
    centre: tuple[float, ...]
    scale: float  # field = turned(x - centre) * scale; the field's domain is [-1, 1]^3
    residual: Residual  # distances of the observations to the mesh
    watertight: bool
    clipped: bool  # the surface leaves the cube, and the mesh has a border there
    components: int
    vertices: int
    faces: int
    fit_ms: float
    mesh_ms: float
    field_evaluations: int
    notes: tuple[str, ...]
    format: str = FORMAT


class Reconstruction(NamedTuple):
    sdf: SDF
    mesh: Mesh
    summary: Summary


class Failure(NamedTuple):
    """A scan that could not be reconstructed, and why."""

    path: Path
    error: MetaSDFError


def reconstruct_scan(
    path: str | Path, prior: Prior, target: str | Path, *, resolution: int = 128, steps: int | None = None, seed: int = 0, up: Up = "y",
    turns: int = 1, columns: str | None = None, outliers: Outliers = "keep",
) -> Reconstruction:  # fmt: skip
    """Read a scan (see `geometry.scan.read_scan`), fit the prior to it, and write its surface to `target` and what was done to a .json beside it.

    A level-set or partial prior learns from points of the surface, a dense one from signed distances: samples, or those to a mesh.
    up: the axis of the scan that points up. turns: headings about it that are tried, 360 / turns degrees apart; the one whose field agrees best
    with the observations is kept. Raises InputError, EmptySurfaceError, UsageError; nothing is written then.
    """
    path, target = Path(path), Path(target)
    if target.suffix.lower() not in MESH_OUTPUTS:
        raise UsageError(f"meshes cannot be written as {target.suffix or 'a file without an ending'}", where=target,
                         fix=f"use one of {', '.join(MESH_OUTPUTS)}")  # fmt: skip
    scan = read_scan(path, columns=columns, outliers=outliers)
    try:
        rng = np.random.default_rng(seed)
        surface = surface_of(scan, FRAMING, rng=rng)
        poses = [pose_of(surface, turn @ upright(up)) for turn in headings(turns)]
        started = time.perf_counter()
        candidates = [observe(scan, surface, prior, pose, rng=rng) for pose in poses]
        sdfs = prior.fit(candidates, steps=steps)
        errors = [_misfit(sdf, seen) for sdf, seen in zip(sdfs, candidates, strict=True)]
        best = int(np.argmin(errors))
        sdf, fitted = sdfs[best], time.perf_counter()
        extraction = sdf.extract(resolution=resolution)
        done = time.perf_counter()
    except MetaSDFError as error:
        if str(path) not in error.where:
            error.where = f"{path}, {error.where}" if error.where else str(path)
        raise
    notes = (*scan.notes, *extraction.notes)
    if extraction.clipped:
        notes += ("the surface leaves the cube the prior knows, and the mesh is open there",)
    apart = components(extraction.mesh)
    given = scan.x if scan.mesh is None else surface
    summary = Summary(
        input=str(path), mesh=target.name, prior=prior.name, kind=scan.kind, units=scan.units, observations=len(scan.x),
        context=len(candidates[best].x), steps=len(sdf.path) - 1, seed=seed, resolution=resolution, up=up, heading=best * 360.0 / turns,
        centre=sdf.frame.centre, scale=sdf.frame.scale,
        residual=residual(given, extraction.mesh, scan.s), watertight=extraction.watertight, clipped=extraction.clipped,
        components=int(apart.max()) + 1 if len(apart) else 0, vertices=len(extraction.mesh.vertices), faces=len(extraction.mesh.faces),
        fit_ms=round((fitted - started) * 1e3, 3), mesh_ms=round((done - fitted) * 1e3, 3), field_evaluations=extraction.evaluations, notes=notes,
    )  # fmt: skip
    write_mesh(target, extraction.mesh)
    write_whole(target.with_suffix(".json"), (json.dumps(asdict(summary), indent=1) + "\n").encode())
    return Reconstruction(sdf, extraction.mesh, summary)


def observe(scan: Scan, surface: Floats, prior: Prior, pose: Pose, *, rng: np.random.Generator) -> Observed:
    """What the prior is given of a scan, in the field's cube: n_test points or samples of it, or all where they are fewer."""
    n = prior.experiment.n_test
    if not prior.needs_values:
        x = pose.to_field(surface)
        return Observed(pose, _some(x, n, rng), None)
    if scan.mesh is not None:
        from metasdf.geometry.signed import MeshSDF  # slow to import

        drawn = sdf_samples(MeshSDF(Mesh(pose.to_field(scan.mesh.vertices), scan.mesh.faces)), n, rng=rng)
        return Observed(pose, drawn.x, drawn.s)
    if scan.s is None:
        raise InputError(f"the prior {prior.name} learns from signed distances, the scan has points alone", cause="a scan without distances",
                         fix="use a level-set prior, whose name ends with -levelset; or give samples x,y,z,s, or a mesh")  # fmt: skip
    x = pose.to_field(scan.x)
    near = np.abs(x).max(1) <= 1
    rows = np.column_stack((x, scan.s * pose.frame.scale))[near]
    chosen = _some(rows, n, rng)
    return Observed(pose, chosen[:, :3], chosen[:, 3])


def reconstruct_scans(
    paths: Sequence[Path], prior: Prior, out: Path, *, say: Callable[[str], None] = print, **options: object
) -> list[Failure]:
    """Each scan by `reconstruct_scan`, going on after one that fails. out: a mesh file for one scan, or a folder that gets a .ply for each."""
    single = out.suffix.lower() in MESH_OUTPUTS
    if single and len(paths) > 1:
        raise UsageError(f"{len(paths)} scans cannot be written to one file", where=out, fix="give a folder: -o OUT")
    failures: list[Failure] = []
    taken: set[Path] = set()
    for path in dict.fromkeys(paths):
        target = out if single else _free(out, path, taken)
        taken.add(target)
        try:
            done = reconstruct_scan(path, prior, target, **options).summary  # type: ignore[arg-type]
        except MetaSDFError as error:
            failures.append(Failure(path, error))
            say(f"{path}: failed, {error.what}")
            continue
        say(_told(path, target, done))
        for note in done.notes:
            say(f"  note: {note}")
    if failures:
        say(f"{len(failures)} of {len(dict.fromkeys(paths))} scans failed:")
        for failure in failures:
            say(f"error: {failure.error}")
    return failures


def _told(path: Path, target: Path, s: Summary) -> str:
    turned = f", turned by {s.heading:g} degrees" if s.heading else ""
    return (f"{path}: {s.observations:,} {s.kind if s.kind != 'mesh' else 'vertices of a mesh'}, {s.steps} steps in {s.fit_ms:.0f} ms{turned}; "
            f"{s.faces:,} faces in {s.components} piece{'s' if s.components != 1 else ''}, {'watertight' if s.watertight else 'open'}, "
            f"in {s.mesh_ms:.0f} ms; residual median {s.residual.median:.3g}, 95 % within {s.residual.p95:.3g} {s.units} -> {target}")  # fmt: skip


def _free(out: Path, path: Path, taken: set[Path]) -> Path:
    """OUT/STEM.ply, or with the scan's ending or a number where two scans have one stem."""
    stem, ending = path.stem, path.suffix.lstrip(".").lower()
    names = (stem, f"{stem}-{ending}", *(f"{stem}-{ending}-{k}" for k in range(2, 10_000)))
    return next(target for name in names if (target := out / f"{name}.ply") not in taken)


def _some(rows: Floats, n: int, rng: np.random.Generator) -> Floats:
    return rows if len(rows) <= n else rows[rng.permutation(len(rows))[:n]]


def _misfit(sdf: SDF, seen: Observed) -> float:
    """Mean |f - s| over what was observed, in field units; infinite where the field is not finite."""
    error = np.abs(sdf.at_field(seen.x) - (0.0 if seen.s is None else seen.s)).mean()
    return float(error) if np.isfinite(error) else float("inf")
