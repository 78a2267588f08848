"""How fast signed distances of a mesh are computed, and how often their sign is wrong.

    python benchmarks/prepare.py --threads 1 --json prepare.json

One torus of many triangles, and the same with all defects at once: `MeshSDF` against brute force (every face for every point, in NumPy) and
against the usual library call, `trimesh.proximity.signed_distance` (needs trimesh, rtree and embreex). Then the sign errors of all of them, and
of the winding number of the faces as they come, for each kind of defect. One thread: the numbers are per core.
"""

from __future__ import annotations

import os

os.environ.setdefault("IGL_NUM_THREADS", "1")  # before libigl asks how many it may use

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import trimesh
from common import MIB, SIZE, clocked, fresh, in_turn, peak_bytes, ratio, set_up, shared_options, summary, table, write
from numpy.typing import NDArray

from metasdf.geometry.mesh import Mesh
from metasdf.geometry.native import winding_number
from metasdf.geometry.sampling import DEEPSDF_SPREADS, near_surface, uniform
from metasdf.geometry.signed import MeshSDF

Floats = NDArray[np.float64]
SDF = Callable[[Floats], Floats]
DEFINITION = {
    "build_ms": "from the mesh to a function, once per mesh: median over rounds",
    "us_per_sample": "median over rounds of the time of all the side's points divided by their number; per second: its inverse",
    "total_s": "build and `samples` points at that pace",
    "speedup": "how many times faster per sample than brute force, and than trimesh: median over rounds of each round's own ratio",
    "peak_mib": "how far the resident memory of a fresh process rises while it builds and asks for all `samples` at once, their own arrays included",
    "errors": "share of points with a wrong sign, in percent: near the surface (2 % of the size), and all over the box; truth is the torus itself, "
              "points as near to its surface as its faces are left out",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    faces: int = 50_000
    samples: int = 500_000
    others: int = 10_000  # points for trimesh
    brute: int = 50  # points for brute force
    rounds: int = 3
    seed: int = 0


# -- meshes ----------------------------------------------------------------------------------------------------------------------------

MAJOR, MINOR = 0.7, 0.25


def torus(faces: int) -> Mesh:
    """About that many faces, outwards; its farthest corner is within the unit sphere, as DeepSDF has its shapes."""
    n = max(3, round((faces / 5) ** 0.5))
    m = max(3, round(faces / (2 * n)))
    i, j = (part.ravel() for part in np.meshgrid(np.arange(m), np.arange(n), indexing="ij"))
    u, v = 2 * np.pi * i / m, 2 * np.pi * j / n
    vertices = np.stack(((MAJOR + MINOR * np.cos(v)) * np.cos(u), (MAJOR + MINOR * np.cos(v)) * np.sin(u), MINOR * np.sin(v)), 1)
    right, up = (i + 1) % m, (j + 1) % n
    a, b, c, d = i * n + j, right * n + j, right * n + up, i * n + up
    return Mesh(vertices, np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1))))


def torus_sdf(x: Floats) -> Floats:
    return np.asarray(np.hypot(np.hypot(x[:, 0], x[:, 1]) - MAJOR, x[:, 2]) - MINOR)


def broken(mesh: Mesh, kind: str, *, seed: int) -> Mesh:
    rng = np.random.default_rng(seed)
    faces = mesh.faces

    def some(share: float) -> NDArray[np.bool_]:
        return rng.random(len(faces)) < share

    if kind in ("10 % missing", "all at once"):
        faces = faces[~some(0.1)]
    if kind in ("20 % flipped", "all at once"):
        faces = np.where(some(0.2)[:, None], faces[:, ::-1], faces)
    if kind in ("double-sided", "all at once"):
        faces = np.concatenate((faces, faces[:, ::-1]))
    if kind in ("30 % duplicated", "all at once"):
        faces = np.concatenate((faces, faces[some(0.3)]))
    if kind in ("no shared corners", "all at once"):
        return Mesh(mesh.vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3))
    return Mesh(mesh.vertices, faces)


KINDS = ("none", "10 % missing", "20 % flipped", "double-sided", "30 % duplicated", "no shared corners", "all at once")


# -- sides -----------------------------------------------------------------------------------------------------------------------------


def brute_force(mesh: Mesh) -> SDF:
    """Distance to every face and solid angle of every face, one point at a time."""
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)

    def one(p: Floats) -> float:
        u, v, w = a - p, b - p, c - p
        nearest = np.inf
        within = np.ones(len(a), np.bool_)
        for start, end in ((u, v), (v, w), (w, u)):
            edge = end - start
            t = np.clip(-(start * edge).sum(1) / np.maximum((edge**2).sum(1), 1e-300), 0, 1)
            nearest = min(nearest, float(np.linalg.norm(start + t[:, None] * edge, axis=1).min()))
            within &= (np.cross(edge, -start) * normal).sum(1) >= 0
        height = np.abs((u * normal).sum(1))
        nearest = min(nearest, float(height[within].min(initial=np.inf)))
        lu, lv, lw = (np.linalg.norm(side, axis=1) for side in (u, v, w))
        solid = np.arctan2((u * np.cross(v, w)).sum(1), lu * lv * lw + (u * v).sum(1) * lw + (v * w).sum(1) * lu + (w * u).sum(1) * lv)
        return -nearest if solid.sum() > np.pi else nearest  # each arctan is half a solid angle: 2 pi in all is once around

    return lambda x: np.array([one(p) for p in x])


def by_trimesh(mesh: Mesh) -> SDF:
    """Its sign is positive inside. It builds its trees when first asked."""
    theirs = trimesh.Trimesh(mesh.vertices, mesh.faces)
    trimesh.proximity.signed_distance(theirs, np.array([[0.1, 0.2, 0.3]]))
    return lambda x: -trimesh.proximity.signed_distance(theirs, x)


def by_given_faces(mesh: Mesh, x: Floats) -> Floats:
    """The sign that the winding number of the faces as they come gives; not a distance."""
    return 0.5 - winding_number(mesh, x)


SIDES: dict[str, Callable[[Mesh], SDF]] = {"ours": MeshSDF, "trimesh": by_trimesh, "brute force": brute_force}


def points(mesh: Mesh, n: int, *, seed: int) -> Floats:
    """As DeepSDF draws them, in any order."""
    rng = np.random.default_rng(seed)
    x = np.concatenate((near_surface(mesh, n - n * 3 // 50, rng=rng, spreads=DEEPSDF_SPREADS), uniform(n * 3 // 50, rng=rng)))
    return rng.permuted(x, axis=0)


def speeds(mesh: Mesh, setting: Setting) -> dict[str, Any]:
    """Every side builds in turn, then every side is asked in turn."""
    numbers = {"ours": setting.samples, "trimesh": setting.others, "brute force": setting.brute}
    x = points(mesh, setting.samples, seed=setting.seed)
    built = in_turn({name: clocked(partial(build, mesh)) for name, build in SIDES.items()}, rounds=setting.rounds)
    functions = {name: build(mesh) for name, build in SIDES.items()}
    asked = in_turn({name: clocked(partial(functions[name], x[:n])) for name, n in numbers.items()}, rounds=setting.rounds)
    paces = {name: [ms * 1e3 / n for ms in asked[name]] for name, n in numbers.items()}
    results: dict[str, Any] = {}
    for name in SIDES:
        build, pace = summary(built[name]), summary(paces[name])
        results[name] = {
            "build_ms": build["ms"], "build_ms_rounds": build["ms_rounds"], "us_per_sample": pace["ms"], "us_rounds": pace["ms_rounds"],
            "points": numbers[name], "per_second": 1e6 / pace["ms"], "total_s": build["ms"] / 1e3 + pace["ms"] * setting.samples / 1e6,
            "speedup_over_trimesh": ratio(paces["trimesh"], paces[name]), "speedup_over_brute_force": ratio(paces["brute force"], paces[name]),
        }  # fmt: skip
    s = functions["ours"](x[: setting.brute])
    results["ours"]["difference"] = float(np.abs(np.abs(s) - np.abs(functions["brute force"](x[: setting.brute]))).max())
    return results


def peak(faces: int, kind: str, samples: int, seed: int) -> int:
    """For a fresh process."""
    def work(faces: int, samples: int) -> None:
        mesh = broken(torus(faces), kind, seed=seed)
        MeshSDF(mesh)(points(mesh, samples, seed=seed))

    return peak_bytes(partial(work, faces, samples), warm_up=partial(work, 500, 500), times=1)


def errors(setting: Setting, n: int) -> dict[str, Any]:
    """Percent of wrong signs near the surface and all over the box, for each defect and method."""
    rng, mesh = np.random.default_rng(setting.seed), torus(min(setting.faces, 10_000))
    fields = [near_surface(mesh, n, rng=rng, spreads=(0.04,)), rng.uniform(-1, 1, (n, 3)) * (1, 1, 0.3)]
    gap = 2 * np.abs(torus_sdf(mesh.vertices[mesh.faces].mean(1))).max()  # between the torus and its faces
    fields = [x[np.abs(torus_sdf(x)) > gap] for x in fields]
    results: dict[str, Any] = {}
    for kind in KINDS:
        bad = broken(mesh, kind, seed=setting.seed)
        ours = MeshSDF(bad)
        methods: dict[str, SDF] = {
            "as it comes": partial(by_given_faces, bad), "trimesh": by_trimesh(bad), "winding": MeshSDF(bad, sign="winding"),
            "visibility": MeshSDF(bad, sign="visibility"), "auto": ours,
        }  # fmt: skip
        wrong = {name: [float(((sdf(x) < 0) != (torus_sdf(x) < 0)).mean() * 100) for x in fields] for name, sdf in methods.items()}
        results[kind] = {**wrong, "agreement": ours.agreement, "agreement_uniform": ours.agreement_uniform, "method": ours.method}
    return results


def measure(setting: Setting, test_points: int) -> dict[str, Any]:
    meshes = {kind: broken(torus(setting.faces), kind, seed=setting.seed) for kind in ("none", "all at once")}
    return {
        "speed": {kind: {"faces": len(mesh.faces), "sides": speeds(mesh, setting),
                         "peak_mib": fresh(peak, setting.faces, kind, setting.samples, setting.seed) / MIB} for kind, mesh in meshes.items()},
        "errors": errors(setting, test_points),
    }  # fmt: skip


def show(setting: Setting, results: dict[str, Any]) -> None:
    for kind, found in results["speed"].items():
        table(
            f"torus, {found['faces']:,} faces, defects: {kind}; ours takes {found['peak_mib']:,.0f} MiB",
            ("side", "build ms", "us per sample", "per second", f"s for {setting.samples:,}", "x trimesh", "x brute force"),
            ((name, f"{r['build_ms']:,.0f}", f"{r['us_per_sample']:,.2f}", f"{r['per_second']:,.0f}", f"{r['total_s']:,.1f}",
              f"{r['speedup_over_trimesh']:,.1f}", f"{r['speedup_over_brute_force']:,.0f}") for name, r in found["sides"].items()),
        )  # fmt: skip
    methods = ("as it comes", "trimesh", "winding", "visibility", "auto")
    table(
        "wrong signs in %, near the surface / all over the box",
        ("defect", *methods, "agreement"),
        ((kind, *("{:.2f} / {:.2f}".format(*found[name]) for name in methods), f"{found['agreement']:.3f}")
         for kind, found in results["errors"].items()),
    )  # fmt: skip


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--faces", default=Setting.faces, type=SIZE, show_default=True, help="Triangles of the torus.")
@click.option("--samples", default=Setting.samples, type=SIZE, show_default=True, help="Points for MeshSDF.")
@click.option("--others", default=Setting.others, type=SIZE, show_default=True, help="Points for trimesh.")
@click.option("--brute", default=Setting.brute, type=SIZE, show_default=True, help="Points for brute force.")
@click.option("--rounds", default=Setting.rounds, type=SIZE, show_default=True, help="How often every side runs.")
@click.option("--seed", default=Setting.seed, show_default=True, help="Of the points and the defects.")
@shared_options
def main(out: Path | None, quick: bool, threads: int, **sizes: Any) -> None:
    setting = Setting(**sizes)
    if quick:
        setting = replace(setting, faces=1000, samples=20_000, others=100, brute=5, rounds=1)
    set_up(keep=True, threads=threads)
    results = measure(setting, 200 if quick else 20_000)
    show(setting, results)
    write(out, "prepare", asdict(setting), results, DEFINITION)


if __name__ == "__main__":
    main()
