"""Scans: every format, written literally here, is read back; what is odd is said; what cannot be used is an error in four parts, never a crash."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solids import ball, box
from test_mesh_io import BOXES

from metasdf.data.procedural import procedural_shape
from metasdf.data.shape import frame_of
from metasdf.errors import InputError, MetaSDFError, UsageError
from metasdf.geometry.cloud import find_outliers, remarks
from metasdf.geometry.io import MESH_SUFFIXES, write_mesh
from metasdf.geometry.mesh import Mesh
from metasdf.geometry.pose import pose_of
from metasdf.geometry.samples import crossings
from metasdf.geometry.sampling import depth_view, sdf_samples, surface_points
from metasdf.geometry.scan import SCAN_SUFFIXES, read_scan, residual, surface_of
from metasdf.geometry.shapes import sphere
from metasdf.geometry.signed import MeshSDF

RNG = np.random.default_rng(0)
NORMALS = RNG.standard_normal((40, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)
POINTS = NORMALS * (1, 2, 3) + (10, 20, 30)
CUBE = RNG.uniform(-2, 2, (40, 3))
SAMPLES = np.column_stack((CUBE, np.linalg.norm(CUBE, axis=1) - 1.3))  # the sphere of radius 1.3: both signs, never 0
ORIENTED = np.column_stack((POINTS, NORMALS))
COLOURED = np.column_stack((POINTS, RNG.integers(0, 256, (40, 3))))


def text(rows: Any, separator: str = " ", header: str = "") -> bytes:
    return (header + "".join(separator.join(repr(float(v)) for v in row) + "\n" for row in rows)).encode()


def ply(rows: Any, names: str = "x y z", *, form: str = "ascii", kind: str = "double", more: str = "") -> bytes:
    names = "".join(f"property {kind} {name}\n" for name in names.split())
    header = f"ply\nformat {form} 1.0\nelement vertex {len(rows)}\n{names}{more}end_header\n".encode()
    code = ("<" if "little" in form else ">") + {"double": "d", "float": "f"}[kind] * np.shape(rows)[1]
    return header + (text(rows) if form == "ascii" else b"".join(struct.pack(code, *row) for row in np.asarray(rows).tolist()))


def npy(array: Any) -> bytes:
    array = np.ascontiguousarray(array)
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


FILES: dict[str, tuple[str, bytes]] = {
    "xyz": ("a.xyz", text(POINTS)),
    "tabs": ("a.txt", text(POINTS, "\t")),
    "csv": ("a.csv", text(POINTS, ",")),
    "a header": ("a.csv", text(POINTS[:, ::-1], ",", "Z,Y,X\r\n")),
    "a comment": ("a.txt", text(POINTS, header="# made by hand: x y z follow\n# x y z\n\n")),
    "CloudCompare": ("a.txt", text(POINTS, header="//X Y Z\n40\n").replace(b"\n40\n", b"\n")),
    "pts": ("a.pts", text(POINTS)),
    "pts with a count": ("a.pts", b"40\r\n" + text(POINTS)),
    "pts in two parts": ("a.pts", b"15\n" + text(POINTS[:15]) + b"25\n" + text(POINTS[15:])),
    "ply": ("a.ply", ply(POINTS)),
    "ply of MeshLab": ("a.ply", ply(POINTS, more="element face 0\nproperty list uchar int vertex_indices\n")),
    "little ply": ("a.PLY", ply(POINTS, form="binary_little_endian")),
    "big ply": ("a.ply", ply(POINTS, form="binary_big_endian")),
    "npy": ("a.npy", npy(POINTS)),
}
WITH_NORMALS = {
    "xyz": ("a.xyz", text(ORIENTED)),
    "a header": ("a.csv", text(ORIENTED[:, [3, 4, 5, 0, 1, 2]], ";", "NX;NY;NZ;X;Y;Z\n")),
    "two decimals": ("a.txt", "".join("{:.17g} {:.17g} {:.17g} {:.2f} {:.2f} {:.2f}\n".format(*row) for row in ORIENTED).encode()),
    "ply": ("a.ply", ply(ORIENTED, "x y z nx ny nz", form="binary_little_endian")),
    "npy": ("a.npy", npy(ORIENTED)),
}
WITH_DISTANCES = {
    "four columns": ("a.txt", text(SAMPLES)),
    "a header": ("a.csv", text(SAMPLES[:, [3, 0, 1, 2]], ",", '"SDF","x","y","z"\n')),
    "distance": ("a.csv", text(SAMPLES, ",", "x,y,z,distance\n")),
    "ply": ("a.ply", ply(SAMPLES, "x y z sdf")),
    "npy": ("a.npy", npy(SAMPLES)),
}


# -- reading ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_points(tmp_path: Path, name: str) -> None:
    scan = read_scan(write(tmp_path / FILES[name][0], FILES[name][1]))
    assert scan.kind == "points" and scan.x.dtype == np.float64 and (scan.x == POINTS).all()
    assert (scan.normals, scan.s, scan.mesh, scan.units, scan.notes) == (None, None, None, "units of the input", ())


@pytest.mark.parametrize("name", WITH_NORMALS)
def test_points_with_normals(tmp_path: Path, name: str) -> None:
    scan = read_scan(write(tmp_path / WITH_NORMALS[name][0], WITH_NORMALS[name][1]))
    assert scan.kind == "points" and (scan.x == POINTS).all() and scan.normals is not None and scan.notes == ()
    assert np.abs(scan.normals - NORMALS).max() < (0.02 if name == "two decimals" else 1e-15)
    assert np.abs(np.linalg.norm(scan.normals, axis=1) - 1).max() < 1e-15


@pytest.mark.parametrize("name", WITH_DISTANCES)
def test_samples(tmp_path: Path, name: str) -> None:
    scan = read_scan(write(tmp_path / WITH_DISTANCES[name][0], WITH_DISTANCES[name][1]))
    assert scan.kind == "samples" and scan.s is not None and scan.notes == ()
    assert (np.column_stack((scan.x, scan.s)) == SAMPLES).all()


@pytest.mark.parametrize("name", BOXES)
def test_meshes(tmp_path: Path, name: str) -> None:
    scan = read_scan(write(tmp_path / f"a{name}".replace("at", "t"), BOXES[name]))
    assert scan.kind == "mesh" and scan.mesh is not None and scan.x is scan.mesh.vertices and scan.notes == ()
    assert scan.units == ("metres" if name in (".glb", ".gltf") else "units of the input")
    surface = surface_of(scan, 200, rng=np.random.default_rng(0))
    assert surface.shape == (200, 3) and residual(surface, scan.mesh).rms < 1e-12


def test_every_suffix_is_read() -> None:
    examples = [name for group in (FILES, WITH_NORMALS, WITH_DISTANCES) for name, _ in group.values()]
    assert {Path(name).suffix.lower() for name in examples} | {".npz", *MESH_SUFFIXES} == set(SCAN_SUFFIXES)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    scan = read_scan(write_npz(path, points=POINTS, normals=NORMALS.astype(np.float16), loc=np.zeros(3)))
    assert scan.kind == "points" and (scan.x == POINTS).all() and scan.normals is not None and scan.notes == ("not used: loc",)
    assert np.abs(scan.normals - NORMALS).max() < 1e-3
    for sdf in (SAMPLES[:, 3], SAMPLES[:, 3:]):
        scan = read_scan(write_npz(path, points=CUBE, sdf=sdf, x=np.ones(2)))
        assert scan.kind == "samples" and scan.s is not None and (np.column_stack((scan.x, scan.s)) == SAMPLES).all()
        assert scan.notes == ("not used: x",)
    outside = SAMPLES[:, 3] > 0
    pos, neg = (np.concatenate((part, np.full((2, 4), np.nan))).astype(np.float32) for part in (SAMPLES[outside], SAMPLES[~outside]))
    scan = read_scan(write_npz(path, pos=pos, neg=neg))
    assert scan.kind == "samples" and scan.s is not None and ((scan.s > 0) == np.sort(outside)[::-1]).all()
    assert scan.x.tolist() == np.concatenate((pos[:-2], neg[:-2]))[:, :3].astype(np.float64).tolist()
    assert scan.notes == ("4 of 44 rows of pos and neg are not finite and were left out",)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    plain = np.column_stack((POINTS, np.arange(40.0)))
    for name, content, notes in (
        ("a.csv", text(plain, ",", "x,y,z,Intensity\n"), ("not used: intensity",)),
        ("a.txt", text(COLOURED), ("not used: red, green, blue",)),
        ("a.npy", npy(COLOURED), ("not used: red, green, blue",)),
        ("a.pts", b"40\n" + text(plain), ("not used: column 4",)),
        ("a.pts", text(np.column_stack((plain, COLOURED[:, 3:]))), ("not used: column 4, column 5, column 6, column 7",)),
        ("a.ply", ply(plain, "x y z s"), ("not used: texture s",)),
        ("a.ply", ply(plain, "x y z nx"), ()),
    ):
        scan = read_scan(write(tmp_path / name, content))
        assert scan.kind == "points" and (scan.x == POINTS).all() and scan.normals is None and scan.notes == notes, name


def test_columns_as_asked_for(tmp_path: Path) -> None:
    rows = np.column_stack((SAMPLES[:, 3], np.arange(40.0), CUBE[:, ::-1]))
    for name, content in (("a.txt", text(rows)), ("a.csv", text(rows, ",", "what,ever,it,may,be\n")), ("a.npy", npy(rows))):
        scan = read_scan(write(tmp_path / name, content), columns="S, _, z, y, x")
        assert scan.s is not None and (np.column_stack((scan.x, scan.s)) == SAMPLES).all() and scan.notes == ()
    scan = read_scan(write(tmp_path / "a.txt", text(ORIENTED)), columns="x,y,z,_,_,_")
    assert scan.kind == "points" and scan.normals is None
    for wrong in ("x,y", "x,y,z,z", "x,y,z,w", "", "xyz"):
        with pytest.raises(UsageError, match="not the names of columns") as caught:
            read_scan(tmp_path / "a.txt", columns=wrong)
        assert caught.value.where == "columns" and "none of x, y, z, nx, ny, nz, s" in caught.value.cause and "x,y,z,_,s" in caught.value.fix
    for name, content in (("a.ply", ply(POINTS)), ("b.npz", b"")):
        with pytest.raises(UsageError, match="cannot be named") as caught:
            read_scan(write(tmp_path / name, content), columns="x,y,z")
        assert "names of their own" in caught.value.cause and caught.value.fix == "leave columns out"
    for name, content in (("a.txt", text(POINTS)), ("a.npy", npy(POINTS))):
        with pytest.raises(InputError, match=r"3 columns, not 4|\(40, 3\), not \(N, 4\)"):
            read_scan(write(tmp_path / name, content), columns="x,y,z,s")


# -- errors, all in four parts ---------------------------------------------------------------------------------------------------------

NAN = np.where(np.arange(40)[:, None] % 20 == 7, np.nan, POINTS)  # rows 7 and 27
HUGE = np.where(np.arange(40)[:, None] == 3, 1e200, POINTS)
HEADER = b"ply\nformat ascii 1.0\nelement vertex 40\nproperty double x\nproperty double y\nproperty double z\nend_header\n"


@pytest.mark.parametrize(
    ("name", "content", "what", "where", "cause", "fix"),
    [
        ("a.xyz", b"", "holds no points", "", "an empty file", "export it again"),
        ("a.csv", b"x,y,z\n", "holds no points", "", "nothing but a header", "export it again"),
        ("a.npy", b"", "array cannot be read", "", "empty, damaged", "numpy.save"),
        ("a.npy", npy(POINTS)[:-1], "array cannot be read", "", "(40, 3) in 959 bytes", "numpy.save"),
        ("a.npy", npy(np.zeros((0, 3))), "holds no points", "", "an empty export", "export it again"),
        ("a.npz", b"PK\x03\x04 garbage", "cannot be read", "", "damaged, cut off", "numpy.savez"),
        ("a.ply", b"", "Not a PLY file", "", "empty file", "export it again"),
        ("a.ply", ply(POINTS, form="binary_little_endian")[:-1], "more than the file can hold", "", "damaged or incomplete", "export it again"),
        ("a.ply", HEADER + b"1 2 x\n" * 40, "points cannot be read: could not convert", "", "damaged", "write the file again"),
        ("a.ply", ply(POINTS[:0]), "holds no points", "", "an empty export", "export it again"),
        ("a.ply", ply(POINTS[:, :2], "x y"), "no vertices with x, y and z", "", "another kind of data", "export it again"),
        ("a.stl", b"\xff" * 90, "cannot hold", "", "cut off, or not STL", "export it again"),
        ("a.obj", b"v 0 1 2\n" * 40, "no faces", "", "a point cloud", "export it again"),
        ("a.pts", b"41\n" + text(POINTS), "announces 41 points and has 40", "", "cut off", "leave out the line"),
        ("a.xyz", text(POINTS)[:-30], "columns, those before have 3", "line 40", "incomplete line", "the same columns"),
        ("a.xyz", b"\x93NUMPY\xff\xfe", "no text", "", "a binary file", "comma-separated text"),
        ("a.csv", text(POINTS) + b"1 2 z\n", "'z' is not a number", "line 41", "a damaged line", "decimal point"),
        ("a.csv", text(POINTS, ",", "lon,lat,height\n"), "lon, lat, height are not known", "line 1", "no x, y and z", "x,y,z,_,s"),
        ("a.csv", text(SAMPLES, ",", "x,y,z,X\n"), "are not known", "line 1", "a name twice", "x,y,z,_,s"),
        ("a.xyz", text(NAN, header="# x y z\n\n"), "2 of 40 rows hold NaN or infinity, the first on line 10", "", "missing", "remove those lines"),
        ("a.npy", npy(NAN), "2 of 40 rows hold NaN or infinity, the first is row 7", "", "missing", "isfinite"),
        ("a.ply", ply(NAN), "2 of 40 rows hold NaN or infinity, the first is row 7", "", "missing", "isfinite"),
        ("a.npy", npy(HUGE), "numbers go beyond 1e+100", "", "damaged", "export it again"),
        ("a.txt", text(SAMPLES * (1e300, 1, 1, 1)), "numbers go beyond 1e+100", "", "damaged", "export it again"),
        ("a.ply", ply(HUGE), "numbers go beyond 1e+100", "", "damaged", "export it again"),
        ("a.xyz", text(POINTS[:1]), "one point shows no shape", "", "a failed scan", "all over the surface"),
        ("a.xyz", text(POINTS[[4] * 30]), "all 30 points are the same", "", "rounded coordinates", "all over the surface"),
        ("a.xyz", text(POINTS[[*range(9)] * 9]), "9 different points cannot show a solid", "", "cut off", "at least 10"),
        ("a.xyz", text(POINTS[:, :2]), "there are 2 columns: these are 2D points for a 3D prior", "line 1", "a drawing", "a 2D prior"),
        ("a.csv", text(POINTS[:, :2], ",", "x,y\n"), "the header says x and y: these are 2D points", "line 1", "a drawing", "a 2D prior"),
        ("a.txt", text(POINTS, header="# x y s\n"), "the header says x and y: these are 2D points", "line 1", "a drawing", "a 2D prior"),
        ("a.npy", npy(POINTS[:, :2]), "(40, 2), not (N, 3), (N, 4) or (N, 6)", "", "another kind of data", "2D points are for 2D priors"),
        ("a.npy", npy(POINTS.T), "shape (3, 40)", "", "transposed", "points.T"),
        ("a.npy", npy(POINTS + 1j), "holds complex128", "", "other data", "astype(float)"),
        ("a.txt", text(np.column_stack((POINTS, RNG.random(40)))), "does not look like signed distances", "line 1", "an intensity", "x,y,z,_,s"),
        ("a.txt", text(np.column_stack((CUBE, 90 * RNG.standard_normal(40)))), "does not look like signed", "line 1", "other units", "x,y,z,_,s"),
        ("a.npy", npy(np.column_stack((POINTS, 3 * NORMALS))), "neither unit vectors nor colours", "", "other measurements", "x,y,z,_,s"),
        ("a.txt", text(np.column_stack((POINTS, CUBE[:, :2]))), "5 columns without names", "line 1", "other measurements", "x,y,z,_,s"),
        ("a.txt", text(POINTS[:, :1]), "1 columns without names", "line 1", "another separator", "x,y,z,_,s"),
        ("a.csv", b"1,5;2,25;3,1\n" * 20, "both commas and semicolons", "line 1", "decimal commas", "a decimal point"),
        ("a.csv", text(SAMPLES * (1, 1, 1, 0), ",", "x,y,z,s\n"), "every distance is zero", "", "no distances were computed", "a level-set prior"),
        ("a.las", b"LASF", "files of type .las cannot be read", "", "another format", "convert it to one of .csv .txt .xyz .pts .npy .npz .obj"),
        ("a", b"", "files of type (none) cannot be read", "", "a missing ending", "convert"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes, what: str, where: str, cause: str, fix: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        read_scan(path)
    error = caught.value
    assert what in error.what and cause in error.cause and fix in error.fix
    assert error.where == (f"{path}, {where}" if where else str(path))
    assert all((error.what, error.where, error.cause, error.fix))


def test_bad_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for arrays, what, cause in (
        ({"verts": POINTS}, "neither points nor pos and neg", "it has verts"),
        ({"pos": SAMPLES}, "neither points nor pos and neg", "it has pos"),
        ({}, "neither points nor pos and neg", "no arrays"),
        ({"points": POINTS.T}, "points has shape (3, 40), not (N, 3)", "transposed"),
        ({"points": POINTS[:, 0]}, "points has shape (40,), not (N, 3)", "transposed"),
        ({"points": POINTS, "normals": NORMALS[:-1]}, "normals has shape (39, 3), not (N, 3)", "other data"),
        ({"points": POINTS, "sdf": CUBE}, "sdf has shape (40, 3), not (N, 1)", "other data"),
        ({"pos": SAMPLES, "neg": POINTS}, "neg has shape (40, 3), not (N, 4)", "other data"),
        ({"points": NAN}, "2 of 40 rows hold NaN or infinity, the first is row 7", "missing"),
        ({"pos": SAMPLES * np.nan, "neg": SAMPLES[:0]}, "holds no points", "nothing finite"),
        ({"points": POINTS.astype(str)}, "not real numbers", "damaged"),
        ({"points": np.array([[None] * 3])}, "cannot be read", "damaged"),
    ):
        with pytest.raises(InputError) as caught:
            read_scan(write_npz(path, **arrays))
        assert what in caught.value.what and cause in caught.value.cause and caught.value.where == str(path) and caught.value.fix, what


def test_paths(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none.xyz", "the input does not exist"), (tmp_path, "the input is a folder")):
        with pytest.raises(UsageError, match=what) as caught:
            read_scan(path)
        assert (caught.value.where, caught.value.cause, caught.value.fix) == (str(path), "a wrong path", "pass a point cloud, samples or a mesh")


EXAMPLES = [*FILES.values(), *WITH_NORMALS.values(), *WITH_DISTANCES.values(), ("a.stl", BOXES[".stl"]), ("a.off", BOXES[".off"])]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(EXAMPLES), st.integers(0, 2**20), st.binary(max_size=8), st.booleans())
def test_damage_is_a_typed_error(tmp_path_factory: pytest.TempPathFactory, example: tuple[str, bytes], at: int, patch: bytes, cut: bool) -> None:
    """Cut off, or with some bytes replaced: what is still read is sound, all else is an error of ours."""
    name, content = example
    at %= len(content)
    path = write(tmp_path_factory.mktemp("fuzz") / name, content[:at] if cut else content[:at] + patch + content[at + len(patch) :])
    try:
        scan = read_scan(path)
    except MetaSDFError as error:
        assert error.what and str(path) in error.where
    else:
        assert len(scan.x) and np.isfinite(scan.x).all() and (scan.s is None or np.isfinite(scan.s).all())
        assert scan.normals is None or np.abs(np.linalg.norm(scan.normals, axis=1) - 1).max() < 1e-9


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SCAN_SUFFIXES), st.sampled_from([b"", b"ply\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"glTF"]), st.binary(max_size=200))
def test_garbage_is_a_typed_error(tmp_path_factory: pytest.TempPathFactory, suffix: str, start: bytes, rest: bytes) -> None:
    with pytest.raises(MetaSDFError):
        read_scan(write(tmp_path_factory.mktemp("garbage") / f"a{suffix}", start + rest))


# -- what is odd is said ---------------------------------------------------------------------------------------------------------------


def test_copies_are_counted_and_kept_once(tmp_path: Path) -> None:
    rows = np.concatenate((ORIENTED, ORIENTED[[3, 3, 7]] * (1, 1, 1, -1, -1, -1)))
    scan = read_scan(write(tmp_path / "a.npy", npy(rows)))
    assert (scan.x == POINTS).all() and scan.normals is not None and np.abs(scan.normals - NORMALS).max() < 1e-15  # the first of them
    assert scan.notes == ("3 of 43 points are exact copies of others and were left out",)
    scan = read_scan(write(tmp_path / "a.npy", npy(np.concatenate((SAMPLES, SAMPLES[:1], SAMPLES[:1] * (1, 1, 1, 1.001))))))
    assert len(scan.x) == 41 and scan.notes[0].startswith("1 of 42")  # at one place, but not the same sample


def test_missing_normals(tmp_path: Path) -> None:
    for value in (0, np.nan, np.inf):
        rows = ORIENTED.copy()
        rows[5, 3:] = value
        scan = read_scan(write(tmp_path / "a.ply", ply(rows, "x y z nx ny nz")))
        assert scan.normals is None and len(scan.x) == 40 and scan.notes == ("1 of 40 normals are missing, so none is used",)


def test_planes_and_lines(tmp_path: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for stretch, says in (((1, 1, 0), "plane"), ((1, 0, 0), "line"), ((1, 1, 1e-7), "plane"), ((1, 1e-7, 1e-7), "line"), ((1, 1, 1e-5), "")):
        for offset in (0, 1000):
            scan = read_scan(write(tmp_path / "a.npy", npy((CUBE * stretch) @ turn + offset)))
            assert [note.split(",")[0] for note in scan.notes] == ([f"all points lie on one {says}"] if says else [])
    write_mesh(tmp_path / "a.ply", Mesh(np.eye(3), np.array([[0, 1, 2]])))
    assert "one plane" in read_scan(tmp_path / "a.ply").notes[0]


@pytest.mark.parametrize("name", ["a.xyz", "a.ply", "a.npy"])
def test_georeferenced_scans_keep_their_digits(tmp_path: Path, name: str) -> None:
    """Whole metres of 1e7 and steps of 2^-20 m are exact in float64; the field coordinates are those of the scan beside the origin."""
    local = np.round(np.random.default_rng(0).normal(size=(500, 3)) * 2**20) / 2**20
    offset = np.array([1e7, -3e6, 500])
    far = local + offset
    content = {"a.xyz": text(far), "a.ply": ply(far, form="binary_little_endian"), "a.npy": npy(far)}[name]
    scan = read_scan(write(tmp_path / name, content))
    assert scan.notes == () and (scan.x - offset == local).all()
    pose = pose_of(scan.x)
    assert np.abs(pose.to_field(scan.x) - pose_of(local).to_field(local)).max() < 1e-8
    assert np.abs(pose.from_field(pose.to_field(scan.x)) - scan.x).max() < 1e-8
    assert residual(scan.x, lambda x: np.linalg.norm(x - offset, axis=1)).median == np.median(np.linalg.norm(local, axis=1))


def test_lost_digits_are_seen(tmp_path: Path) -> None:
    for content in (ply(POINTS + 4e6, form="binary_big_endian", kind="float"), text((POINTS + 4e6).astype(np.float32))):
        scan = read_scan(write(tmp_path / ("a.ply" if content[:3] == b"ply" else "a.xyz"), content))
        note = scan.notes[-1]
        assert "come in steps of 0.25" in note and "single precision" in note and "export them in double precision" in note
    assert remarks(POINTS.astype(np.float32).astype(np.float64)) == [] and remarks(POINTS + 4e6) == []


def test_outliers_are_told_and_left_out_only_when_asked(tmp_path: Path) -> None:
    x = surface_points(procedural_shape("chairs", 2, seed=0), 3000, rng=np.random.default_rng(0))
    rows = np.concatenate((np.concatenate((x.points, x.normals), 1), [(9, 9, 9, 0, 0, 1), (9, 9, 9.1, 0, 0, 1), (-5, 0, 0, 1, 0, 0)]))
    path = write(tmp_path / "a.npy", npy(np.roll(rows, 1, axis=0)))
    kept = read_scan(path)
    larger = pose_of(x.points).frame.scale / pose_of(rows[:, :3]).frame.scale
    assert len(kept.x) == 3003 and larger > 5
    assert kept.notes == (f"3 points lie far from all others, the first at (-5, 0, 0); with them the shape seems {larger:.3g} times as large. "
                          "If they are no part of it, leave them out: --outliers drop",)  # fmt: skip
    dropped = read_scan(path, outliers="drop")
    assert sorted(dropped.x.tolist()) == sorted(x.points.tolist()) and dropped.normals is not None and len(dropped.normals) == 3000
    assert dropped.notes[0].endswith("They were left out")


@pytest.mark.parametrize(("category", "n"), [("chairs", 300), ("tables", 3000), ("planes", 30_000)])
def test_a_whole_scan_has_no_outliers(category: str, n: int) -> None:
    mesh = procedural_shape(category, 1, seed=0)
    assert not find_outliers(surface_points(mesh, n, rng=np.random.default_rng(0)).points).any()
    assert not find_outliers(depth_view(mesh, (1, -0.5, 2), 64).points).any()


def test_outliers_wherever_the_scan_is() -> None:
    x = np.concatenate((np.random.default_rng(0).normal(size=(30_000, 3)), np.full((25, 3), 50) + np.eye(25, 3)))  # a group of 25: a passer-by
    for scale, offset in ((1, 0), (1e-200, 0), (1e90, 0), (1, 1e7)):
        found = find_outliers(x * scale + offset)
        assert found[-25:].all() and found.sum() == 25
    far = np.concatenate((x[:-25], [[1e30, 0, 0], [-1e60, 1e60, 0]]))
    assert np.flatnonzero(find_outliers(far)).tolist() == [30_000, 30_001]
    two = np.concatenate((x[:5000], x[:5000] + 100))  # two things: neither is an outlier
    assert not find_outliers(two).any()
    for n in (2, 10, 11):
        assert not find_outliers(x[:n]).any()


# -- surfaces, frames, residuals -------------------------------------------------------------------------------------------------------


def test_crossings_of_samples() -> None:
    """Of a sphere: within the square of the gap; of a thin plate whose samples are dense near it only: nothing midway in the air."""
    rng = np.random.default_rng(0)
    previous = 1.0
    for n in (1000, 8000, 27_000):
        x = rng.uniform(-1, 1, (n, 3))
        s = sphere(0.6)(x)
        error = float(np.abs(np.linalg.norm(crossings(x, s), axis=1) - 0.6).max())
        assert error < previous / 2  # the gap shrinks by a half, and a third
        previous = error
    plates = MeshSDF(Mesh(*map(np.concatenate, zip(box(size=(2, 0.1, 2)), (box().vertices * (2, 0.1, 2) + (0, 1, 0), box().faces + 8), strict=True))))
    x, s = sdf_samples(plates, 6000, rng=rng, spreads=(0.02,), share=0.0)
    found = crossings(x, s)
    assert len(found) > 1000 and np.abs(plates(found)).max() < 0.05


def test_crossings_refuse() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    for s, sign in ((sphere(3)(x), "inside"), (sphere(1e-3)(x), "outside")):
        with pytest.raises(InputError, match=f"all 100 distances are {sign}"):
            crossings(x, s)
    with pytest.raises(InputError, match="no two neighbouring samples") as caught:
        crossings(x, np.where(np.arange(100) % 2, 1e-6, -1e-6))
    assert (caught.value.where, caught.value.fix) == ("100 samples", "give more samples near the surface") and "other units" in caught.value.cause


def test_the_surface_and_frame_of_all_kinds(tmp_path: Path) -> None:
    """A mesh, points of it and samples around it show the same surface, and are framed alike."""
    mesh = procedural_shape("tables", 0, seed=0)
    rng = np.random.default_rng(0)
    write_mesh(tmp_path / "mesh.ply", mesh)
    write(tmp_path / "points.ply", ply(surface_points(mesh, 8000, rng=rng).points, form="binary_little_endian"))
    sdf = MeshSDF(mesh)
    write(tmp_path / "samples.npy", npy(np.column_stack(sdf_samples(sdf, 8000, rng=rng, spreads=(0.03, 0.01)))))
    true = frame_of(mesh)
    for name in ("mesh.ply", "points.ply", "samples.npy"):
        scan = read_scan(tmp_path / name)
        surface = surface_of(scan, 5000, rng=rng)
        assert residual(surface, mesh).p95 < 0.003, name
        frame = pose_of(surface).frame
        assert frame.scale == pytest.approx(true.scale, rel=0.02) and np.abs(np.subtract(frame.centre, true.centre)).max() < 0.01, name
        if scan.s is not None:
            assert residual(scan.x, sdf, scan.s).rms == 0 and residual(scan.x, mesh, scan.s).rms < 1e-12


def test_residuals_in_closed_form() -> None:
    """Points at distances 0, 1 .. 100 from the unit sphere: median 50, 95 % within 95, mean square 3350; in the scan's own units."""
    x = np.outer(np.arange(101) + 1.0, (0, 0.6, 0.8))
    for size in (1.0, 1000.0):
        found = residual(x * size, sphere(size))
        assert found == pytest.approx((3350**0.5 * size, 50 * size, 95 * size))
    mesh = ball(4)
    rms, median, p95 = residual(x, mesh)
    assert (rms, median, p95) == pytest.approx((3350**0.5, 50, 95), abs=2e-3)
    assert residual(x, sphere(1), sphere(1)(x) + 0.5) == pytest.approx((0.5, 0.5, 0.5))
    assert residual(x / 200, mesh, sphere(1)(x / 200)).rms < 2e-3  # inside, where a mesh has no sign
    with pytest.raises(InputError, match="101 of 101 distances to the result are not finite") as caught:
        residual(x, lambda x: x[:, 0] * np.nan)
    assert (caught.value.cause, caught.value.fix) == ("a fit that diverged", "use fewer steps, or another prior")
