"""The 3D part of the demo: bare points on a real table that no prior has seen, its surface after each step, and the mesh to turn in the page."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metasdf.data import show
from metasdf.errors import EmptySurfaceError
from metasdf.files import write_whole
from metasdf.geometry.io import read_mesh
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.render import Picture, contact_sheet, render
from metasdf.geometry.sampling import surface_points
from metasdf.prior import SDF, Prior
from metasdf.solid import Summary, reconstruct_scan

NAME = "tables-levelset"
CREDIT = "“oaktable” by Doug C, from BlendSwap by way of Sweet Home 3D’s furniture library"
LICENCE = "CC0 1.0"
SCAN = "try/table.xyz"
POINTS = 3000  # of the scan: what is given, and some to judge by
PANEL = 300  # pixels
DOT = 0.006  # radius of a drawn point, in sizes of the shape


class Table(NamedTuple):
    """What the page shows: a PNG of the points, the surface before the first step and after each, and the truth; a page with the mesh to turn."""

    prior: Prior
    summary: Summary
    size: float  # the table's longest side, in its own units
    picture: bytes
    viewer: str

    @property
    def residual(self) -> float:
        """Median distance of the scan's points to the mesh, in percent of the table's size."""
        return self.summary.residual.median / self.size * 100


def run(out: Path, prior: Prior, *, resolution: int = 128) -> Table:
    """Write the scan into OUT and reconstruct it, as `metasdf reconstruct` does, to OUT/table.glb, with table.png and table.html beside it."""
    truth = example_table()
    points = surface_points(truth, POINTS, rng=np.random.default_rng(0)).points
    scan = out / SCAN
    write_whole(scan, "\n".join([*(" ".join(f"{v:.5f}" for v in row) for row in points), ""]).encode())
    done = reconstruct_scan(scan, prior, out / "table.glb", resolution=resolution)
    panels = [(render(dots(points), size=PANEL, supersample=2), f"{len(points):,} points")]
    panels += [(_surface(done.sdf.after(j), resolution), f"step {j}" if j else "start") for j in range(len(done.sdf.path))]
    panels.append((render(truth, size=PANEL, supersample=2), "truth"))
    pictures, titles = zip(*panels, strict=True)
    picture = show.png(contact_sheet(pictures, titles, columns=4))
    write_whole(out / "table.png", picture)
    viewer = "table.html"
    write_whole(out / viewer, turnable(done.mesh).encode())
    return Table(prior, done.summary, float(np.ptp(truth.vertices, axis=0).max()), picture, viewer)


def example_table() -> Mesh:
    """The table that ships with the package, in centimetres, y up."""
    with as_file(files("metasdf") / "data" / "table_example" / "oaktable.ply") as path:
        return read_mesh(path)


def told(table: Table) -> str:
    s = table.summary
    return (f"a table from {s.context:,} bare points: {s.steps} steps in {s.fit_ms:.0f} ms, {s.faces:,} faces in {s.mesh_ms / 1e3:.1f} s, "
            f"half of the points within {table.residual:.2f} % of its size")  # fmt: skip


def dots(points: np.ndarray) -> Mesh:
    """An octahedron for each point (N, 3), so that points are drawn, and throw shadows, as surfaces do."""
    ends = np.concatenate((np.eye(3), -np.eye(3))) * DOT * np.ptp(points, axis=0).max()
    sides = np.array([(0, 1, 2), (1, 3, 2), (3, 4, 2), (4, 0, 2), (1, 0, 5), (3, 1, 5), (4, 3, 5), (0, 4, 5)])
    first = np.arange(len(points))[:, None, None] * len(ends)
    return Mesh((points[:, None] + ends).reshape(-1, 3), (sides + first).reshape(-1, 3))


def turnable(mesh: Mesh) -> str:
    """An HTML page that shows the mesh and turns it under the mouse; it holds its script, three.js, and asks for nothing."""
    import trimesh
    from trimesh.viewer.notebook import scene_to_html

    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    solid.visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(baseColorFactor=(225, 235, 248, 255), doubleSided=True))
    scene = trimesh.Scene(solid)
    scene.set_camera(angles=(-0.35, 0.6, 0.0), distance=1.6 * np.ptp(mesh.vertices, axis=0).max())
    return scene_to_html(scene)


def _surface(sdf: SDF, resolution: int) -> Picture:
    try:
        return render(sdf.mesh(resolution), size=PANEL, supersample=2)
    except EmptySurfaceError:
        return np.full((PANEL, PANEL, 3), 255, np.uint8)
