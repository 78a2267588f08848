"""Screened Poisson reconstruction (Kazhdan and Hoppe 2013), the classical way from points with normals to a closed mesh: an outside baseline that has
learned nothing. It is MeshLab's, by the optional package pymeshlab."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import InputError, UsageError
from metasdf.geometry.mesh import Mesh

Floats = NDArray[np.float64]
DEPTH = 8  # of the octree, MeshLab's default; 2^8 cells along a side


def available() -> bool:
    return find_spec("pymeshlab") is not None


def screened_poisson(points: Floats, normals: Floats, *, depth: int = DEPTH) -> Mesh:
    """points and normals (N, 3), the latter outwards. Raises UsageError where pymeshlab is missing, InputError where there is no surface."""
    try:
        import pymeshlab
    except ImportError as error:
        raise UsageError("Screened Poisson needs pymeshlab", cause=str(error), fix="pip install 'metasdf[poisson]'") from error
    meshes: Any = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=points, v_normals_matrix=normals))
    try:
        meshes.generate_surface_reconstruction_screened_poisson(depth=depth, preclean=True, threads=1)
    except pymeshlab.PyMeshLabException as error:
        raise InputError(f"Screened Poisson finds no surface: {error}", cause="too few points, or normals that contradict each other") from error
    found = meshes.current_mesh()
    if not found.face_number():
        raise InputError("Screened Poisson finds no surface", cause="too few points, or normals that contradict each other")
    return Mesh(found.vertex_matrix().astype(np.float64), found.face_matrix().astype(np.int64))
