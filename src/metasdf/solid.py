"""Scans in, meshes out: what is observed of a 3D shape becomes its signed distance function and its surface, in the scan's own units and axes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.familiar import Points, doubt, misfit
from metasdf.files import write_whole
from metasdf.geometry.cloud import remarks
from metasdf.geometry.io import MESH_OUTPUTS, write_mesh
from metasdf.geometry.mesh import Mesh, components
from metasdf.geometry.pose import Pose, Up, headings, pose_of, upright
from metasdf.geometry.sampling import sdf_samples, surface_points
from metasdf.geometry.scan import Outliers, Residual, Scan, read_scan, residual, surface_of
from metasdf.geometry.simplify import simplify
from metasdf.inputs import Failure, each, earlier_input, free_name, naming, said_steps
from metasdf.prior import SDF, Observed, Prior, shipped
from metasdf.tasks import moved

if TYPE_CHECKING:
    from metasdf.geometry.signed import MeshSDF

Floats = NDArray[np.float64]
FORMAT = "metasdf-solid-1"  # how a summary of ours is told from another file of the same name
DRAWN = 20_000  # points of the surface of a mesh
PARTS, PARTS_REFINED = 2, 8  # times n_test observations: the learned steps see one, the others judge; where the fit is refined, that sees all
CAUSES = ("another kind of shape, another axis up (--up) or heading (--align), normals that point inwards, stray points (--outliers drop), or few "
          "points")  # fmt: skip
SINGLE = (".stl", ".glb")  # mesh files in single precision


@dataclass(frozen=True)
class Summary:
    """What was done, as written beside the mesh. Lengths are in `units`, those of the scan."""

    input: str
    mesh: str
    prior: str
    kind: str  # of what was given: points, samples or mesh
    units: str
    observations: int
    context: int  # how many of them, or points drawn from the mesh, the learned steps were given
    steps: int
    refine: int  # of Adam, after these
    refined_on: int  # how many of them these were given
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


class Fit(NamedTuple):
    """A scan, what of its surface is known (K, 3) in its own units and axes, and the field fitted to `context` observations after it was turned
    by `heading` degrees, and refined on `refined_on`. ms: what the fit took. notes: sentences for the user."""

    scan: Scan
    surface: Floats
    sdf: SDF
    context: int
    refined_on: int
    heading: float
    ms: float
    notes: tuple[str, ...]


class Reconstruction(NamedTuple):
    sdf: SDF
    mesh: Mesh
    summary: Summary


def fit_scan(
    path: str | Path, prior: Prior, *, steps: int | None = None, refine: int = 0, seed: int = 0, up: Up = "y", turns: int = 1,
    columns: str | None = None, outliers: Outliers = "keep",
) -> Fit:  # fmt: skip
    """Read a scan (see `geometry.scan.read_scan`) and fit the prior to it.

    A level-set or partial prior learns from points of the surface, an oriented one from points with normals, a dense one from signed distances:
    samples, or those to a mesh.
    up: the axis of the scan that points up. turns: headings about it that are tried, 360 / turns degrees apart; the one whose field agrees best
    with the observations is kept. refine: steps of Adam after that (`Prior.refine_sdf`), on PARTS_REFINED times as many observations, where the
    scan has them. Raises InputError, UsageError.
    """
    path = Path(path)
    prior.check_refine(refine)
    with naming(path):
        scan = read_scan(path, columns=columns, outliers=outliers)
        rng = np.random.default_rng(seed)
        surface = surface_of(scan, DRAWN, rng=rng)
        framed = surface if scan.mesh is None else scan.x  # as shapes of training are: by their vertices
        poses = [pose_of(framed, turn @ upright(up)) for turn in headings(turns)]
        started = time.perf_counter()
        known = observations(scan, surface, prior, poses[0], parts=PARTS_REFINED if refine else PARTS, rng=rng)
        given = known.rows(slice(prior.experiment.n_test))
        sdfs = prior.fit([_seen(pose, given) for pose in poses], steps=steps)
        best = int(np.argmin([misfit(sdf, given) for sdf in sdfs]))
        sdf = prior.refine_sdf(sdfs[best], _seen(poses[best], known), steps=refine) if refine else sdfs[best]
        ms = (time.perf_counter() - started) * 1e3
        said = doubt(prior, sdf, known, len(given.x), units=scan.units, causes=CAUSES), _unused_normals(scan, prior)
    return Fit(scan, surface, sdf, len(given.x), len(known.x) if refine else 0, best * 360.0 / turns, ms, (*scan.notes, *filter(None, said)))


def reconstruct_scan(
    path: str | Path, prior: Prior, target: str | Path, *, resolution: int = 128, steps: int | None = None, refine: int = 0, seed: int = 0,
    up: Up = "y", turns: int = 1, columns: str | None = None, outliers: Outliers = "keep", faces: float | None = None,
) -> Reconstruction:  # fmt: skip
    """Fit the prior to a scan (see `fit_scan`, also for `refine`), and write its surface to `target` and what was done to a .json beside it.

    faces: the mesh is simplified to so many, or to that share of its own, below 1 (see `geometry.simplify`).
    Raises InputError, EmptySurfaceError, UsageError; nothing is written then.
    """
    path, target = Path(path), Path(target)
    _check_target(target, path)
    scan, surface, sdf, context, refined_on, heading, fit_ms, notes = fit_scan(
        path, prior, steps=steps, refine=refine, seed=seed, up=up, turns=turns, columns=columns, outliers=outliers
    )
    started = time.perf_counter()
    with naming(path):
        extraction = sdf.extract(resolution=resolution)
        mesh, notes = extraction.mesh, (*notes, *extraction.notes)
        if extraction.clipped:
            notes += ("the surface leaves the cube the prior knows, and the mesh is open there",)
        if faces is not None:
            mesh, _, note = simplify(mesh, faces, units=scan.units)
            notes += (note,)
    mesh_ms = (time.perf_counter() - started) * 1e3
    if target.suffix.lower() in SINGLE:
        notes += tuple(f"the mesh: {text}" for text in remarks(mesh.vertices.astype(np.float32).astype(np.float64)))
    summary = Summary(
        input=str(path), mesh=target.name, prior=prior.name, kind=scan.kind, units=scan.units, observations=len(scan.x), context=context,
        steps=len(sdf.path) - 1, refine=refine, refined_on=refined_on, seed=seed, resolution=resolution, up=up, heading=heading,
        centre=sdf.frame.centre, scale=sdf.frame.scale, residual=residual(surface if scan.mesh else scan.x, mesh, scan.s),
        watertight=extraction.watertight, clipped=extraction.clipped, components=int(components(mesh).max()) + 1, vertices=len(mesh.vertices),
        faces=len(mesh.faces), fit_ms=round(fit_ms, 3), mesh_ms=round(mesh_ms, 3), field_evaluations=extraction.evaluations, notes=notes,
    )  # fmt: skip
    write_mesh(target, mesh)
    write_whole(target.with_suffix(".json"), (json.dumps(asdict(summary), indent=1) + "\n").encode())
    return Reconstruction(sdf, mesh, summary)


def observations(scan: Scan, surface: Floats, prior: Prior, pose: Pose, *, parts: int = PARTS, rng: np.random.Generator) -> Points:
    """What is known of a scan, in its own units and axes: n_test points of the surface, or samples with distances, which the prior is given; and
    others, so many times n_test in all. All there are where they are fewer. The first n_test do not depend on `parts`. pose: in whose cube samples
    of a mesh are drawn."""
    n = prior.experiment.n_test
    if prior.needs_normals:
        return _beside_surface(scan, n, prior, pose, parts=parts, rng=rng)
    if not prior.needs_values:
        return Points(_some(surface, n, rng, parts=parts))
    if scan.mesh is not None:
        sdf = _mesh_sdf(scan.mesh, pose)
        drawn = [sdf_samples(sdf, n, rng=rng) for _ in range(parts)]  # each with its share far from the surface
        return Points(pose.from_field(np.concatenate([part.x for part in drawn])), np.concatenate([part.s for part in drawn]) / pose.frame.scale)
    if scan.s is None:
        raise InputError(f"the prior {prior.name} learns from signed distances, the scan has points alone", cause="a scan without distances",
                         fix="use a level-set prior, whose name ends with -levelset; or give samples x,y,z,s, or a mesh")  # fmt: skip
    rows = np.column_stack((scan.x, scan.s))[np.abs(pose.to_field(scan.x)).max(1) <= 1]
    if not len(rows):
        raise InputError("no sample lies near the surface", cause="too few samples", fix="give more of them, within the size of the shape")
    chosen = _some(rows, n, rng, parts=parts)
    return Points(chosen[:, :3], chosen[:, 3])


def _beside_surface(scan: Scan, n: int, prior: Prior, pose: Pose, *, parts: int, rng: np.random.Generator) -> Points:
    """The same of points with normals, as observations of the distance (`tasks.moved`)."""
    if scan.mesh is not None:
        mesh = _mesh_sdf(scan.mesh, pose).surface
        drawn = [moved(rng, *surface_points(mesh, n, rng=rng)[:2]) for _ in range(parts)]
        return Points(pose.from_field(np.concatenate([x for x, _ in drawn])), np.concatenate([s[:, 0] for _, s in drawn]) / pose.frame.scale)
    if scan.normals is None or scan.s is not None:  # samples with distances are not on the surface, whatever else they have
        there = "no normals" if scan.s is None else "signed distances"
        raise InputError(f"the prior {prior.name} learns from surface points with normals, the scan has {there}",
                         cause="columns nx, ny, nz that are missing, or not all unit vectors" if scan.s is None else "samples around the surface",
                         fix=f"use a {'level-set' if scan.s is None else 'dense'} prior; or give points with normals, or a mesh")  # fmt: skip
    chosen = _some(np.column_stack((scan.x, scan.normals)), n, rng, parts=parts)
    x, s = moved(rng, chosen[:, :3], chosen[:, 3:], unit=1.0 / pose.frame.scale)
    return Points(x, s[:, 0])


def _unused_normals(scan: Scan, prior: Prior) -> str | None:
    """That a shipped prior of the same shapes would use the scan's normals."""
    if scan.normals is None or scan.s is not None or prior.experiment.context != "levelset":
        return None
    if (other := f"{prior.experiment.category}-oriented") not in shipped():
        return None
    return f"the scan has normals, which {prior.name} does not use: -m {other} --refine 200 does, and follows them closer"


def _mesh_sdf(mesh: Mesh, pose: Pose) -> MeshSDF:
    from metasdf.geometry.signed import MeshSDF  # slow to import

    return MeshSDF(Mesh(pose.to_field(mesh.vertices), mesh.faces))


def reconstruct_scans(
    paths: Sequence[Path], prior: Prior, out: Path, *, say: Callable[[str], None] = print, **options: Any
) -> list[Failure]:
    """Each scan by `reconstruct_scan`, going on after one that fails. out: a mesh file for one scan, or a folder that gets a .ply for each."""
    single = bool(out.suffix) and not out.is_dir() and len(paths) == 1
    if not single and out.suffix.lower() in MESH_OUTPUTS:
        raise UsageError(f"{len(paths)} scans cannot be written to one file", where=out, fix="give a folder: -o OUT")
    taken: set[str] = set()

    def one(path: Path) -> list[str]:
        target = out
        if not single:
            name = free_name(path, out, taken, outputs=(".ply", ".json"), form=FORMAT)
            taken.add(name)
            target = out / f"{name}.ply"
        done = reconstruct_scan(path, prior, target, **options).summary
        return [_told(path, target, done), *(f"  note: {note}" for note in done.notes)]

    return each(paths, one, say=say)


def _check_target(target: Path, scan: Path) -> None:
    """What cannot be written, or would be lost, is said before any work."""
    if target.suffix.lower() not in MESH_OUTPUTS:
        raise UsageError(f"meshes cannot be written as {target.suffix or 'a file without an ending'}", where=target,
                         fix=f"use one of {', '.join(MESH_OUTPUTS)}; or give a folder, without a dot in its name, or an existing one")  # fmt: skip
    summary = target.with_suffix(".json")
    lost = target if target.resolve() == scan.resolve() else summary if summary.exists() and earlier_input(summary, FORMAT) is None else None
    if lost is not None:
        raise UsageError(f"{lost.name} would be overwritten", where=lost, cause="it is the scan itself" if lost is target
                         else "the summary goes beside the mesh, and this file is something else", fix="choose another -o")  # fmt: skip


def _told(path: Path, target: Path, s: Summary) -> str:
    turned = f", turned by {s.heading:g} degrees" if s.heading else ""
    pieces = f"{s.components} piece{'s' if s.components != 1 else ''}, {'watertight' if s.watertight else 'open'}"
    return (f"{path}: {s.observations:,} {s.kind if s.kind != 'mesh' else 'vertices of a mesh'}, {said_steps(s.steps, s.refine)} in "
            f"{s.fit_ms:.0f} ms{turned}; {s.faces:,} faces in {pieces}, in {s.mesh_ms:.0f} ms; residual median {s.residual.median:.3g}, "
            f"95 % within {s.residual.p95:.3g} {s.units} -> {target}")  # fmt: skip


def _some(rows: Floats, n: int, rng: np.random.Generator, *, parts: int) -> Floats:
    """`parts` times n of the rows in random order; all, in their own order, where there are no more than n."""
    return rows if len(rows) <= n else rows[rng.permutation(len(rows))[: parts * n]]


def _seen(pose: Pose, points: Points) -> Observed:
    return Observed(pose, pose.to_field(points.x), None if points.s is None else points.s * pose.frame.scale)
