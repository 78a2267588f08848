"""A folder of scans of tables becomes meshes: all fits at once, then a mesh for each.

    python examples/batch_convert.py SCANS OUT [PRIOR]

`metasdf reconstruct SCANS/* -m tables-levelset -o OUT` does that too, one scan after the other and with more to choose; this shows it in Python.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import metasdf
from metasdf.errors import MetaSDFError
from metasdf.geometry.io import write_mesh
from metasdf.geometry.scan import read_scan, surface_of


def main(scans: str, out: str, source: str = "tables-levelset", *, resolution: int = 128) -> int:
    """How many scans could not be converted; each of them is named, and the others go on."""
    prior, points, failed = metasdf.load(source), {}, 0
    for path in sorted(Path(scans).iterdir()):
        name = path.name if path.stem in points else path.stem  # chair.xyz beside chair.ply
        try:
            points[name] = surface_of(read_scan(path), prior.experiment.n_test, rng=np.random.default_rng(0))
        except MetaSDFError as error:
            print(error, file=sys.stderr)
            failed += 1
    sdfs = prior.adapt(list(points.values())) if points else []  # clouds of equal size are fitted as one batch
    for name, sdf in zip(points, sdfs, strict=True):
        try:
            mesh = sdf.mesh(resolution)
        except MetaSDFError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        write_mesh(Path(out) / f"{name}.ply", mesh)
        sdf.save(Path(out) / f"{name}.safetensors")
        print(f"{name}: {len(points[name]):,} points, {len(mesh.faces):,} faces")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
