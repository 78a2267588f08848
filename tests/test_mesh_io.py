"""Mesh files: what each format can say comes out right, twins with trimesh where it is installed, and damage of any kind is a typed error."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.errors import InputError, UsageError
from metasdf.geometry import io as mesh_io
from metasdf.geometry.formats import collada, common, gltf, obj, off, ply, stl
from metasdf.geometry.io import MESH_SUFFIXES, read_mesh, read_mesh_bytes, read_points, write_mesh
from metasdf.geometry.mesh import Mesh, areas, bounds, is_watertight, weld

SHAPES = REPOSITORY.parent / "shared" / "data" / "shapes"
VERTICES = np.array(list(itertools.product((0.0, 1.0), repeat=3))) * (1, 2, 3)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = np.array([(q[0], q[i], q[i + 1]) for q in QUADS for i in (1, 2)])
CORNERS = FACES.ravel()
BOX = Mesh(VERTICES, FACES)
PENTAGON = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (1, 0.5, 0), (0, 2, 0)]  # concave: a fan from its first corner would be wrong
PENTAGON_AREA = 2.5


def surface(mesh: Mesh) -> list[list[list[float]]]:
    """The triangles as sets of places, in an order that depends on them only."""
    return sorted(sorted((corner + 0.0).tolist()) for corner in mesh.vertices[mesh.faces])


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def ply_bytes(vertices: Any, polygons: list[tuple[int, ...]], *, form: str = "ascii", index: str = "int", size: str = "uchar") -> bytes:
    """Faces of mixed sizes, with a colour before and a flag after the list, and an element that nobody knows in between."""
    header = (f"ply\nformat {form} 1.0\ncomment made by hand\nelement vertex {len(vertices)}\n"
              "property double x\nproperty double y\nproperty double z\nproperty uchar red\nelement strange 2\nproperty list uchar float what\n"
              f"element face {len(polygons)}\nproperty uchar red\nproperty list {size} {index} vertex_indices\nproperty short flag\n"
              "end_header\n")  # fmt: skip
    if form == "ascii":
        rows = [f"{x} {y} {z} 255" for x, y, z in vertices] + ["1 0.5", "3 1 2 3"] + [f"7 {len(p)} {' '.join(map(str, p))} -1" for p in polygons]
        return (header + "\n".join(rows) + "\n").encode()
    order = "<" if "little" in form else ">"
    codes = {"int": "i", "uchar": "B", "ushort": "H", "uint": "I", "int8": "b"}
    body = b"".join(struct.pack(f"{order}dddB", *v, 255) for v in np.asarray(vertices).tolist())
    body += struct.pack(f"{order}Bf", 1, 0.5) + struct.pack(f"{order}B3f", 3, 1, 2, 3)
    body += b"".join(struct.pack(f"{order}B{codes[size]}{len(p)}{codes[index]}h", 7, len(p), *p, -1) for p in polygons)
    return header.encode() + body


def gltf_tree(points: Any = VERTICES, corners: Any = CORNERS, **changes: Any) -> dict[str, Any]:
    points, corners = np.asarray(points, "<f4"), np.asarray(corners, "<u2")
    body = points.tobytes() + corners.tobytes()
    tree = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
            "accessors": [{"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"},
                          {"bufferView": 1, "componentType": 5123, "count": len(corners), "type": "SCALAR"}],
            "bufferViews": [{"buffer": 0, "byteLength": points.nbytes}, {"buffer": 0, "byteOffset": points.nbytes, "byteLength": corners.nbytes}],
            "buffers": [{"byteLength": len(body), "uri": "data:application/octet-stream;base64," + base64.b64encode(body).decode()}]}  # fmt: skip
    return tree | changes


def read_gltf(tree: dict[str, Any]) -> Mesh:
    return read_mesh_bytes(json.dumps(tree).encode(), ".gltf", where="f.gltf")


MODEL = """<?xml version="1.0"?>
<model unit="inch" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
 xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06"><resources>{objects}</resources><build>{items}</build></model>"""


def mesh_object(number: int, mesh: Mesh = BOX) -> str:
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in mesh.vertices.tolist())
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in mesh.faces.tolist())
    return f'<object id="{number}"><mesh><vertices>{vertices}</vertices><triangles>{triangles}</triangles></mesh></object>'


def threemf_bytes(objects: str = "", items: str = '<item objectid="1"/>', **more: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", MODEL.format(objects=objects or mesh_object(1), items=items))
        for name, text in more.items():
            archive.writestr(f"3D/{name}.model", text)
    return buffer.getvalue()


DAE = """<?xml version="1.0"?><COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit meter="0.01"/><up_axis>Z_UP</up_axis></asset>
<library_geometries><geometry id="g"><mesh>
<source id="s"><float_array id="a" count="{numbers}">{coordinates}</float_array><technique_common>
<accessor source="#a" count="{count}" stride="3"><param name="X" type="float"/><param name="Y" type="float"/><param name="Z" type="float"/></accessor>
</technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#s"/></vertices>{primitives}</mesh></geometry></library_geometries>
{more}<library_visual_scenes><visual_scene id="w">{nodes}</visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#w"/></scene></COLLADA>"""
INPUTS = '<input semantic="NORMAL" source="#n" offset="0"/><input semantic="VERTEX" source="#v" offset="1"/>'
HERE = '<node><instance_geometry url="#g"/></node>'


def dae_bytes(vertices: Any = VERTICES, primitives: str = "", nodes: str = HERE, more: str = "") -> bytes:
    vertices = np.asarray(vertices, np.float64)
    quads = " ".join(f"0 {corner}" for quad in QUADS for corner in quad)
    primitives = primitives or f'<polylist count="6">{INPUTS}<vcount>{"4 " * 6}</vcount><p>{quads}</p></polylist>'
    return DAE.format(numbers=vertices.size, count=len(vertices), coordinates=" ".join(map(str, vertices.ravel())), primitives=primitives,
                      nodes=nodes, more=more).encode()  # fmt: skip


OBJ_QUADS = "".join(f"v {x} {y} {z}\n" for x, y, z in VERTICES.tolist()) + "".join(f"f {' '.join(str(c + 1) for c in q)}\n" for q in QUADS)
OFF_QUADS = "OFF\n8 6 0\n" + "".join(f"{' '.join(map(str, row))}\n" for row in [*VERTICES.tolist(), *((4, *quad) for quad in QUADS)])
STL_TEXT = "solid a vertex facet\n" + "".join(
    "facet normal 0 0 0\nouter loop\n" + "".join(f"vertex {x} {y} {z}\n" for x, y, z in t) + "endloop\nendfacet\n" for t in VERTICES[FACES].tolist()
) + "endsolid a\n"  # fmt: skip
AC_QUADS = "AC3Db\nOBJECT poly\nnumvert 8\n" + "".join(f"{x} {y} {z}\n" for x, y, z in VERTICES.tolist()) + "numsurf 6\n" + "".join(
    "SURF 0x10\nmat 0\nrefs 4\n" + "".join(f"{c} 0 0\n" for c in q) for q in QUADS) + "kids 0\n"  # fmt: skip
BOXES = {
    ".obj": OBJ_QUADS.encode(),
    ".off": OFF_QUADS.encode(),
    ".stl": stl.encode(BOX),
    "text.stl": STL_TEXT.encode(),
    ".ply": ply_bytes(VERTICES, QUADS),
    "little.ply": ply_bytes(VERTICES, QUADS, form="binary_little_endian"),
    "big.ply": ply_bytes(VERTICES, [*QUADS[1:], (0, 1, 3), (0, 3, 2)], form="binary_big_endian"),
    ".glb": gltf.encode(BOX),
    ".gltf": json.dumps(gltf_tree()).encode(),
    ".3mf": threemf_bytes(),
    ".dae": dae_bytes(),
    ".ac": AC_QUADS.encode(),
}


@pytest.mark.parametrize("name", BOXES)
def test_the_same_box_from_every_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"box{name}".replace("boxt", "t")
    path.write_bytes(BOXES[name])
    mesh = read_mesh(path)
    assert mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int64
    assert is_watertight(mesh) and volume(mesh) == pytest.approx(6, rel=1e-12) and len(mesh.faces) == 12
    assert sorted(weld(mesh).vertices.tolist()) == sorted(VERTICES.tolist())


def test_every_suffix_has_an_example() -> None:
    assert {f".{name.rpartition('.')[2]}" for name in BOXES} == set(MESH_SUFFIXES)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".off", ".stl", ".glb"])
def test_what_is_written_is_read_again(suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mesh = Mesh(rng.normal(size=(50, 3)) * 10.0 ** rng.integers(-9, 9, (50, 1)), rng.permuted(np.tile(np.arange(50), (80, 1)), axis=1)[:, :3])
    path = tmp_path / "new" / f"a{suffix}"
    write_mesh(path, mesh)
    again = read_mesh(path)
    if suffix in (".stl", ".glb"):
        mesh = Mesh(mesh.vertices.astype(np.float32).astype(np.float64), mesh.faces)
    assert np.array_equal(again.vertices[again.faces], mesh.vertices[mesh.faces])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_writing_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suffix"):
        write_mesh(tmp_path / "a.xyz", BOX)
    with pytest.raises(InputError, match="not finite"):
        write_mesh(tmp_path / "a.ply", Mesh(VERTICES * np.nan, FACES))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_mesh(tmp_path / "file" / "a.ply", BOX)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- what each format can say ---


def test_obj() -> None:
    text = ("# two squares and a concave pentagon\nmtllib none.mtl\no first\ng a b\nusemtl red\nv 0 0 0 1.0\nv\t1 0 0\nv 1 1 0 0.5 0.5 0.5\nv 0 1 0\n"
            "vt 0 0\nvn 0 0 1\nf -4 -3 -2 -1 # the last four\ns off\nl 1 2\np 3\n"
            "v 0 0 5\nv 1 0 5\nv 1 1 5\nv 0 1 5\nf -4//1 -3//1 -2//1 -1//1\nf 1/1 \\\n 2/1/1 3\n"
            + "".join(f"v {x} {y} {z}\n" for x, y, z in PENTAGON) + "f 9 10 11 12 13\n")  # fmt: skip
    mesh = read_mesh_bytes(text.encode(), ".OBJ")
    assert len(mesh.faces) == 2 + 2 + 1 + 3
    assert areas(mesh).sum() == pytest.approx(1 + 1 + 0.5 + PENTAGON_AREA) and bounds(mesh)[1].tolist() == [2, 2, 5]


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "vertex 3, but there are 3", None),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -4\n", "vertex -4 of 3", 4),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "vertex 0 of 3", 4),
        ("v 0 0 0\nv 1 0\n", "three numbers", 2),
        ("v 0 0 0\nv 1 0 x\n", "could not convert", 2),
        ("v 0 0 0\nv 1 0 nan\nv 0 1 0\nf 1 2 3\n", "not finite", None),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no faces", None),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nl 1 2 3\nf 1 2\n", "no faces", None),
        ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no surface", None),
        ("", "no faces", None),
        ("\0\1\2", "no faces", None),
    ],
)
def test_obj_errors(text: str, says: str, line: int | None) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_mesh_bytes(text.encode(), ".obj", where="f.obj")
    assert caught.value.where == ("f.obj" if line is None else f"f.obj, line {line}")


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize(("size", "index"), [("uchar", "int"), ("int", "uint"), ("int8", "ushort")])
def test_ply_with_faces_of_any_size(form: str, size: str, index: str) -> None:
    polygons: list[tuple[int, ...]] = [(0, 1, 2, 3, 4), (0, 1), (0, 1, 2), (), (0, 1, 3, 4), (4, 3, 1)]
    mesh = read_mesh_bytes(ply_bytes(PENTAGON, polygons, form=form, size=size, index=index), ".ply")
    assert len(mesh.faces) == 3 + 1 + 2 + 1
    assert areas(mesh).sum() == pytest.approx(PENTAGON_AREA + 2 + 1.5 + 0.5)


def test_ply_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    (tmp_path / "a.ply").write_bytes(ply.encode(points))
    assert np.array_equal(read_points(tmp_path / "a.ply"), points)
    with pytest.raises(InputError, match="no faces") as caught:
        read_mesh(tmp_path / "a.ply")
    assert "point cloud" in caught.value.cause
    (tmp_path / "a.ply").write_bytes(ply.encode(points)[:-1])
    with pytest.raises(InputError, match="more than the file can hold"):
        read_points(tmp_path / "a.ply")
    header = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    (tmp_path / "a.ply").write_text(header + "0 0 x")
    with pytest.raises(InputError, match="cannot be read"):
        read_points(tmp_path / "a.ply")
    with pytest.raises(UsageError, match="suffix"):
        read_points(tmp_path / "a.obj")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"element vertex 8", b"element vertex 4000000000", "more than the file can hold"),
        (b"element face 6", b"element face 4000000000", "more than the file can hold"),
        (b"element face 6", b"element face -6", "negative"),
        (b"element face 6", b"element face x", "cannot be read"),
        (b"element face 6", b"element face 0", "no faces"),
        (b"property double z\n", b"", "cannot be read|x, y and z|does not fit|beyond"),
        (b"property double z\n", b"property nonsense z\n", "header cannot be understood"),
        (b"format", b"fromat", "header cannot be understood"),
        (b"end_header", b"end_haeder", "does not begin with a ply header"),
        (b"ply", b"plx", "does not begin with a ply header"),
    ],
)
def test_ply_errors(old: bytes, new: bytes, says: str) -> None:
    for data in (BOXES[".ply"], BOXES["little.ply"]):
        with pytest.raises(InputError, match=says):
            read_mesh_bytes(data.replace(old, new, 1), ".ply")


def test_a_list_that_claims_too_much() -> None:
    data = bytearray(ply_bytes(VERTICES, [(0, 1, 2)], form="binary_little_endian", size="uint"))
    data[-18:-14] = b"\xff\xff\xff\xff"
    with pytest.raises(InputError, match="list of 4294967295 values does not fit"):
        read_mesh_bytes(bytes(data), ".ply")


def test_stl() -> None:
    data = stl.encode(BOX)
    padded = b"solid no text" + data[13:] + b"  "
    assert surface(read_mesh_bytes(padded.replace(b"solid no text", b"Solid\0no text"), ".stl")) == surface(BOX)
    huge = data[:80] + b"\xff\xff\xff\xff" + data[84:]
    for damaged, says in ((data[:-1], "cannot hold 12 triangles"), (huge, "cannot hold 4,294,967,295"), (data[:50], "cannot hold 0"),
                          (b"", "cannot hold"), (data[:80] + bytes(4), "no faces"),
                          (STL_TEXT[:-20].encode(), "does not end"), (STL_TEXT.replace("vertex 0.0 2.0", "vertex 2.0", 1).encode(), "not three each"),
                          (STL_TEXT.replace("vertex 0.0", "vertex zero", 1).encode(), "cannot be read"),
                          (b"solid a\nendsolid a\n", "no faces")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            read_mesh_bytes(damaged, ".stl")
    upper = STL_TEXT.upper().replace("\n", "\r\n   ").encode()
    assert surface(read_mesh_bytes(upper, ".stl")) == surface(BOX)


def test_off() -> None:
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in PENTAGON)
    for text in (f"OFF\n5 1 0\n{rows}5 0 1 2 3 4\n", f"OFF5 1 0\n{rows}5 0 1 2 3 4\n", f"# a\n\nOFF # b\n# c\n5 1\n\n{rows}5 0 1 2 3 4 255 0 0\n",
                 f"STCNOFF 5 1 0\n{rows.replace(chr(10), ' 9 9 9 9' + chr(10))}5 0 1 2 3 4 7\n"):  # fmt: skip
        mesh = read_mesh_bytes(text.encode(), ".off")
        assert len(mesh.faces) == 3 and areas(mesh).sum() == pytest.approx(PENTAGON_AREA)
    for text, says in (("", "does not begin"), ("OFX\n", "does not begin"), ("4OFF\n", "does not begin"), ("OFF", "missing"),
                       ("OFF BINARY\n", "Binary"), ("OFF\n5", "missing"), (f"OFF\n5 2 0\n{rows}5 0 1 2 3 4", "only 6 lines"),
                       ("OFF\n-1 1 0\n3 0 1 2", "announced"),
                       (f"OFF\n5 1 0\n{rows}6 0 1 2 3 4", "too few"), (f"OFF\n5 1 0\n{rows}-1 0 1 2", "too few"),
                       (f"OFF\n5 1 0\n{rows}3 0 1 9", "vertex 9"), (f"OFF\nx 1 0\n{rows}", "cannot be read"),
                       (f"OFF\n5 1 0\n{rows.replace('2 0 0', '2 0')}3 0 1 2", "cannot be read|too few"),
                       (f"OFF\n5 0 0\n{rows}", "no faces")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            read_mesh_bytes(text.encode(), ".off")


# --- scenes ---


def test_gltf_places_add_up() -> None:
    """Parent: turned by 90 degrees about z, then moved. Child: scaled, with a reflection, given as a matrix."""
    half = 0.5**0.5
    nodes = [{"children": [1, 2], "translation": [10, 0, 0], "rotation": [0, 0, half, half]},
             {"mesh": 0, "scale": [2, 2, 2]}, {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 7, 1]}]  # fmt: skip
    mesh = read_gltf(gltf_tree(nodes=nodes))
    assert len(mesh.faces) == 24 and volume(mesh) == pytest.approx(6 * 8 + 6)  # the mirrored one is not inside out
    turned = VERTICES[:, [1, 0, 2]]
    expected = np.vstack((turned * (-2, 2, 2) + (10, 0, 0), turned * (-1, -1, 1) + (10, 0, 7)))
    assert np.allclose(np.unique(mesh.vertices.round(9), axis=0), np.unique(expected.round(9), axis=0))


def test_gltf_strips_fans_and_bare_triangles() -> None:
    square, flat = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], {"attributes": {"POSITION": 0}}
    for primitive, corners in (({**flat, "indices": 1, "mode": 5}, [0, 1, 2, 3]), ({**flat, "indices": 1, "mode": 6}, [0, 1, 3, 2]),
                               ({**flat, "mode": 5}, [0]), ({**flat, "indices": 1, "mode": 4}, [0, 1, 2, 2, 1, 3])):  # fmt: skip
        mesh = read_gltf(gltf_tree(square, corners, meshes=[{"primitives": [primitive, {**flat, "mode": 1}, {**flat, "mode": 0}]}]))
        normals = np.cross(*(mesh.vertices[mesh.faces[:, k]] - mesh.vertices[mesh.faces[:, 0]] for k in (1, 2)))
        assert np.array_equal(normals, [[0, 0, 1]] * 2)
    assert len(read_gltf(gltf_tree(VERTICES[FACES].reshape(-1, 3), [0], meshes=[{"primitives": [flat]}])).faces) == 12


def test_gltf_sparse_normalised_and_interleaved() -> None:
    tree = gltf_tree()
    extra = struct.pack("<H2x3f", 0, -5, 0, 0)
    tree["buffers"].append({"byteLength": 16, "uri": "data:;base64," + base64.b64encode(extra).decode()})
    tree["bufferViews"] += [{"buffer": 1, "byteLength": 2}, {"buffer": 1, "byteOffset": 4, "byteLength": 12}]
    tree["accessors"][0]["sparse"] = {"count": 1, "indices": {"bufferView": 2, "componentType": 5123}, "values": {"bufferView": 3}}
    assert bounds(read_gltf(tree))[0].tolist() == [-5, 0, 0]
    del tree["accessors"][0]["bufferView"]  # all zero but one
    with pytest.raises(InputError, match="no surface"):
        read_gltf(tree)
    shorts = np.zeros((8, 5), "<i2")  # rows of ten bytes, six of them used
    shorts[:, 1:4] = VERTICES / (1, 2, 3) * 32767
    body = shorts.tobytes() + FACES.astype("<u2").tobytes()
    tree = gltf_tree(bufferViews=[{"buffer": 0, "byteLength": 80, "byteStride": 10}, {"buffer": 0, "byteOffset": 80, "byteLength": 72}],
                     buffers=[{"byteLength": len(body), "uri": "data:;base64," + base64.b64encode(body).decode()}])  # fmt: skip
    tree["accessors"][0] |= {"componentType": 5122, "normalized": True, "byteOffset": 2}
    assert surface(read_gltf(tree)) == surface(Mesh(VERTICES / (1, 2, 3), FACES))


def test_gltf_without_a_scene() -> None:
    tree = gltf_tree(nodes=[{"mesh": 0}, {"children": [0], "translation": [0, 0, 1]}])
    del tree["scene"], tree["scenes"]
    assert bounds(read_gltf(tree)).tolist() == [[0, 0, 1], [1, 2, 4]]
    del tree["nodes"]
    assert bounds(read_gltf(tree)).tolist() == [[0, 0, 0], [1, 2, 3]]


def test_a_skinned_mesh_stays_at_rest() -> None:
    assert bounds(read_gltf(gltf_tree(nodes=[{"mesh": 0, "skin": 0, "translation": [9, 9, 9]}]))).tolist() == [[0, 0, 0], [1, 2, 3]]


def test_gltf_reads_buffers_beside_it_and_nowhere_else(tmp_path: Path) -> None:
    tree = gltf_tree()
    body = base64.b64decode(tree["buffers"][0]["uri"].partition(",")[2])
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.bin", folder / "my buffer.bin", folder / "sub" / "b.bin"):
        place.write_bytes(body)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    for name, found in (("my%20buffer.bin", True), ("sub/b.bin", True), ("../secret.bin", False), ("sub/../../secret.bin", False),
                        ("link.bin", False), ("%2e%2e/secret.bin", False),
                        (str(tmp_path / "secret.bin"), False), ("..\\secret.bin", False), ("absent.bin", False),
                        ("http://localhost/a.bin", False), ("file:///etc/passwd", False), ("", False), (".", False), ("a\0.bin", False)):  # fmt: skip
        tree["buffers"][0]["uri"] = name
        (folder / "a.gltf").write_text(json.dumps(tree))
        if found:
            assert surface(read_mesh(folder / "a.gltf")) == surface(BOX)
        else:
            with pytest.raises(InputError):
                read_mesh(folder / "a.gltf")
    with pytest.raises(InputError, match="needs another one"):
        read_gltf(tree)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"asset": {"version": "1.0"}}, "1.0 is not supported"),
        ({"extensionsUsed": ["KHR_draco_mesh_compression"]}, "KHR_draco_mesh_compression"),
        ({"nodes": [{"mesh": 0, "children": [0]}]}, "100 deep"),
        ({"nodes": [{"mesh": 0, "children": [1, 1]}, *({"mesh": 0, "children": [k, k]} for k in range(2, 40)), {}]}, "1,000 nodes"),
        ({"nodes": [{"mesh": 7}]}, "cannot be read"),
        ({"scenes": []}, "cannot be read"),
        ({"scenes": [{"nodes": []}]}, "no faces"),
        ({"buffers": [{"byteLength": 10}]}, "buffer is missing"),
        ({"buffers": [{"byteLength": 10, "uri": "data:;base64,AAAA"}]}, "do not fit"),
        ({"buffers": [{"byteLength": 10, "uri": "data:;base64,%%%"}]}, "cannot be read"),
        ({"accessors": [{"bufferView": 0, "componentType": 5126, "count": 2**60, "type": "VEC3"}] * 2}, "do not fit"),
        ({"accessors": [{"componentType": 5126, "count": 2**60, "type": "VEC3"}] * 2}, "without any data"),
        ({"accessors": [{"bufferView": 0, "byteOffset": -4, "componentType": 5126, "count": 1, "type": "VEC3"}] * 2}, "do not fit"),
        ({"accessors": [{"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC2"}] * 2}, "three numbers"),
    ],
)
def test_gltf_errors(changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "MAX_NODES", 1000)
    with pytest.raises(InputError, match=says):
        read_gltf(gltf_tree(**changes))
    with pytest.raises(InputError, match="names vertex 8"):
        read_gltf(gltf_tree(corners=[0, 1, 8]))


def test_glb_errors() -> None:
    data = gltf.encode(BOX)
    for damaged in (data[:4] + b"\1\0\0\0" + data[8:], data[:12], data[:40], data[:-1], data[:12] + b"\xff\xff\xff\xff" + data[16:]):
        with pytest.raises(InputError):
            read_mesh_bytes(damaged, ".glb")


def test_3mf_scenes() -> None:
    """An assembly of two boxes, built twice; four rows of three numbers move points that are rows. The unit, inches, is not applied."""
    moved = 'transform="1 0 0 0 1 0 0 0 1 10 0 0"'
    whole = f'<object id="2"><components><component objectid="1"/><component objectid="1" {moved}/></components></object>'
    turned = 'transform="0 1 0 -1 0 0 0 0 1 0 0 100"'
    mesh = read_mesh_bytes(threemf_bytes(mesh_object(1) + whole, f'<item objectid="2"/><item objectid="2" {turned}/>'), ".3mf")
    assert len(mesh.faces) == 48 and bounds(mesh).tolist() == [[-2, 0, 0], [11, 11, 103]] and volume(mesh) == pytest.approx(24)
    assert len(read_mesh_bytes(threemf_bytes(mesh_object(1) + whole, ""), ".3mf").faces) == 24  # nothing built: what is in nothing else
    other = MODEL.format(objects=mesh_object(5), items="")
    apart = '<object id="1"><components><component objectid="5" p:path="/3D/other.model"/></components></object>'
    assert surface(read_mesh_bytes(threemf_bytes(apart, other=other), ".3mf")) == surface(BOX)


def test_3mf_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = '<object id="1"><components><component objectid="1"/></components></object>'
    floor = '<object id="{0}"><components>' + '<component objectid="{1}"/>' * 10 + "</components></object>"
    tower = "".join(floor.format(k, k + 1) for k in range(1, 9))
    entity = '<!DOCTYPE model [<!ENTITY a "aaaaaaaa">]>'
    bad_faces = mesh_object(1).replace('v1="0"', 'v1="9"')
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    doctype = io.BytesIO()
    with zipfile.ZipFile(doctype, "w") as archive:
        archive.writestr("3D/3dmodel.model", entity + MODEL.format(objects=mesh_object(1), items="").partition("?>")[2])
    monkeypatch.setattr(common, "MAX_NODES", 1000)
    for data, says in ((threemf_bytes(loop), "100 deep"), (threemf_bytes(tower + mesh_object(9)), "1,000 nodes"), (b"", "cannot be read"),
                       (threemf_bytes(items='<item objectid="7"/>'), "'7' is used"), (threemf_bytes(bad_faces), "vertex 9"),
                       (threemf_bytes('<object id="1"/>'), "no faces"), (buffer.getvalue(), "no 3D/3dmodel.model"),
                       (threemf_bytes(items='<item objectid="1" p:path="/../x.model"/>'), "missing in the zip"),
                       (threemf_bytes(mesh_object(1)[:-20]), "cannot be read"), (doctype.getvalue(), "document type"),
                       (threemf_bytes(items='<item objectid="1" transform="1 2"/>'), "cannot be read")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            read_mesh_bytes(data, ".3mf")
    monkeypatch.setattr("metasdf.geometry.formats.threemf._MAX_BYTES", 100)
    with pytest.raises(InputError, match="Unpacked"):
        read_mesh_bytes(threemf_bytes(), ".3mf")


def test_dae_places_add_up() -> None:
    nodes = ('<node><translate>10 0 0</translate><rotate>0 0 1 90</rotate><node><scale>2 2 2</scale><instance_geometry url="#g"/></node>'
             '<instance_node url="#again"/></node>')  # fmt: skip
    again = '<library_nodes><node id="again"><matrix>1 0 0 0 0 1 0 0 0 0 1 7 0 0 0 1</matrix><instance_geometry url="#g"/></node></library_nodes>'
    mesh = read_mesh_bytes(dae_bytes(nodes=nodes, more=again), ".dae")
    turned = VERTICES[:, [1, 0, 2]]
    expected = np.vstack((turned * (-2, 2, 2) + (10, 0, 0), turned * (-1, 1, 1) + (10, 0, 7)))
    assert len(mesh.faces) == 24 and volume(mesh) == pytest.approx(54)
    assert np.allclose(np.unique(mesh.vertices.round(9), axis=0), np.unique(expected.round(9), axis=0))


def test_dae_looks_at() -> None:
    """From (0, 0, 5) towards the x axis with z up: the camera's -z is x, its y is z, its x is -y."""
    mesh = read_mesh_bytes(dae_bytes(nodes='<node><lookat>0 0 5 1 0 5 0 0 1</lookat><instance_geometry url="#g"/></node>'), ".dae")
    expected = VERTICES @ np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]]) + (0, 0, 5)
    assert np.allclose(sorted(mesh.vertices.tolist()), sorted(expected.tolist()))


def test_dae_primitives() -> None:
    plain = '<input semantic="VERTEX" source="#v" offset="0"/>'
    square = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    for primitive in (f"<triangles>{plain}<p>0 1 2 2 1 3</p></triangles>", f"<tristrips>{plain}<p>0 1 2 3</p><p>0 1</p></tristrips>",
                      f"<trifans>{plain}<p>0 1 3 2</p></trifans>", f"<polygons>{plain}<p>0 1 3 2</p></polygons>",
                      f"<polylist>{plain}<vcount>4 2</vcount><p>0 1 3 2 0 1</p></polylist>",
                      f"<lines>{plain}<p>0 1</p></lines><triangles>{INPUTS}<p>9 0 9 1 9 2</p><p>9 2 9 1 9 3</p></triangles>"):  # fmt: skip
        mesh = read_mesh_bytes(dae_bytes(square, primitive), ".dae")
        normals = np.cross(*(mesh.vertices[mesh.faces[:, k]] - mesh.vertices[mesh.faces[:, 0]] for k in (1, 2)))
        assert np.array_equal(normals, [[0, 0, 1]] * 2)
    concave = f"<polygons>{plain}<p>0 1 2 3 4</p></polygons>"
    assert areas(read_mesh_bytes(dae_bytes(PENTAGON, concave), ".dae")).sum() == pytest.approx(PENTAGON_AREA)


def test_dae_skins_and_libraries() -> None:
    skin = '<controller id="c"><skin source="#m"/></controller><controller id="m"><morph source="#g"/></controller>'
    skin = f"<library_controllers>{skin}</library_controllers>"
    assert surface(read_mesh_bytes(dae_bytes(nodes='<node><instance_controller url="#c"/></node>', more=skin), ".dae")) == surface(BOX)
    bare = dae_bytes().partition(b"<library_visual_scenes>")[0] + b"</COLLADA>"
    assert surface(read_mesh_bytes(bare, ".dae")) == surface(BOX)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<p>0 0 0 1", "<p>0 0 0 9", "vertex 9"),
        ("<p>0 0 0 1", "<p>0 0 0 -1", "vertex -1"),
        ("<p>0 0 0 1", "<p>0 0 0", "cannot be read"),
        ("<vcount>4 4", "<vcount>4 3", "need 23 corners"),
        ('count="8"', 'count="4000000000"', "only 24 numbers"),
        ('url="#g"', 'url="#h"', "'#h' is used"),
        ('url="#g"', 'url="http://localhost/x.dae#g"', "another one"),
        ('url="#g"', 'url="#g"/><instance_node url="#loop"', "100 deep"),
        ("<node>", '<node id="loop"><skew>1 2 3</skew>', "skew"),
        (">0.0 0.0", ">0.0 nan", "not finite"),
        ("</COLLADA>", "", "cannot be read"),
        ("<COLLADA", '<!DOCTYPE a [<!ENTITY b "c">]><COLLADA', "document type"),
        ("COLLADA", "KML", "Not a COLLADA"),
        ("</polylist>", "<ph><p>0 0</p><h>0 0</h></ph></polylist>", "hole"),
    ],
)
def test_dae_errors(old: str, new: str, says: str) -> None:
    text = dae_bytes(nodes='<node id="loop"><instance_geometry url="#g"/></node>' if "loop" in new and "skew" not in new else HERE).decode()
    with pytest.raises(InputError, match=says):
        read_mesh_bytes(text.replace(old, new).encode(), ".dae")


def test_parts_used_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "MAX_FACES", 100)
    with pytest.raises(InputError, match="more than 100 faces"):
        read_gltf(gltf_tree(nodes=[{"children": list(range(1, 11))}, *[{"mesh": 0}] * 10]))
    monkeypatch.setattr(gltf, "MAX_VERTICES", 100)
    with pytest.raises(InputError, match="more than 100 in all"):
        read_gltf(gltf_tree(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}] * 3}]))
    monkeypatch.setattr(collada, "MAX_VERTICES", 20)
    triangle = '<triangles><input semantic="VERTEX" source="#v" offset="0"/><p>0 1 2</p></triangles>'
    with pytest.raises(InputError, match="more than 20 vertices"):
        read_mesh_bytes(dae_bytes(primitives=triangle * 3), ".dae")


def test_deep_xml_and_json() -> None:
    with pytest.raises(InputError):
        read_mesh_bytes(b"<COLLADA>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</COLLADA>", ".dae")
    with pytest.raises(InputError):
        read_mesh_bytes(b'{"asset":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ".gltf")


# --- files ---


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_mesh(tmp_path / "a.obj")
    with pytest.raises(UsageError, match="suffix"):
        read_mesh(tmp_path / "a.fbx")
    (tmp_path / "b.obj").mkdir()
    with pytest.raises(UsageError, match="does not exist"):
        read_mesh(tmp_path / "b.obj")
    (tmp_path / "c.obj").write_text(OBJ_QUADS)
    monkeypatch.setattr(mesh_io, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        read_mesh(tmp_path / "c.obj")


def test_unused_vertices_go_even_broken_ones() -> None:
    mesh = read_mesh_bytes(OBJ_QUADS.encode() + b"v nan nan nan\nv 9 9 9\n", ".obj")
    assert len(mesh.vertices) == 8 and bounds(mesh)[1].tolist() == [1, 2, 3]


def test_the_real_meshes_are_as_their_table_says() -> None:
    if not SHAPES.is_dir():
        pytest.skip("the real meshes are not here: ../shared/data/shapes is missing beside the repository")
    with (SHAPES / "sources.tsv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert len(rows) == 258
    for row in rows[::13]:
        mesh = read_mesh(SHAPES / row["category"] / f"{row['name']}.ply")
        assert (len(mesh.vertices), len(mesh.faces), str(is_watertight(mesh))) == (int(row["vertices"]), int(row["faces"]), row["watertight"])


def trimesh_for(suffix: str) -> Any:
    """trimesh, or a skipped test where it or what it needs for a format is missing."""
    for needed in {".3mf": ["lxml", "networkx"], ".dae": ["collada"]}.get(suffix, []):
        pytest.importorskip(needed)
    return pytest.importorskip("trimesh")


@pytest.mark.parametrize("suffix", [".obj", ".off", ".stl", ".ply", ".glb", ".gltf", ".3mf", ".dae"])
def test_trimesh_reads_the_same(suffix: str) -> None:
    """A twin: where trimesh reads a plain file, it finds the same surface."""
    trimesh = trimesh_for(suffix)
    triangles = f'<triangles count="12"><input semantic="VERTEX" source="#v" offset="0"/><p>{" ".join(map(str, FACES.ravel()))}</p></triangles>'
    data = {".ply": ply.encode(*BOX), ".dae": dae_bytes(primitives=triangles)}.get(suffix, BOXES[suffix])
    theirs = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], process=False).to_mesh()
    ours = read_mesh_bytes(data, suffix)
    assert surface(ours) == surface(Mesh(np.asarray(theirs.vertices), np.asarray(theirs.faces))) and len(ours.faces) == 12


@pytest.mark.parametrize("suffix", [".glb", ".3mf", ".dae", ".ply", ".obj", ".stl", ".off"])
def test_trimesh_writes_the_same(suffix: str) -> None:
    """A twin the other way: a scene that trimesh writes, each part at its place."""
    trimesh = trimesh_for(suffix)
    scene = trimesh.Scene()
    for k, part in enumerate((trimesh.creation.icosphere(1), trimesh.creation.box((1, 2, 3)))):
        matrix = trimesh.transformations.rotation_matrix(1 + k, (1, 2, 3))
        matrix[:3, 3] = 4 * k, 5 * k, 6
        scene.add_geometry(part, transform=matrix)
    theirs = scene.to_mesh()
    data = (scene if suffix in (".glb", ".3mf") else theirs).export(file_type=suffix[1:])
    ours = read_mesh_bytes(data.encode() if isinstance(data, str) else data, suffix)
    assert len(ours.faces) == len(theirs.faces)
    assert np.allclose(bounds(ours), theirs.bounds, atol=1e-5) and areas(ours).sum() == pytest.approx(theirs.area, rel=1e-5)


# --- damage ---

WORDS = [b"-1", b"nan", b"1e999", b"4294967295", b"99999999999999999999", b"", b"x", b"0", b"<", b'"', b"[", b"\0"]


def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        kind, k = draw(st.sampled_from(["cut", "flip", "huge", "drop", "word"])), draw(st.integers(0, max(len(data) - 1, 0)))
        if kind == "cut":
            data = data[:k]
        elif kind == "flip":
            data = data[:k] + bytes([draw(st.integers(0, 255))]) + data[k + 1 :]
        elif kind == "huge":
            data = data[:k] + draw(st.sampled_from([b"\xff", b"\x7f", b"\0"])) * 4 + data[k + 4 :]
        elif kind == "drop":
            data = data[:k] + data[k + draw(st.integers(1, 40)) :]
        else:
            parts = data.split(b" ")
            parts[k % len(parts)] = draw(st.sampled_from(WORDS))
            data = b" ".join(parts)
    return data


@pytest.mark.parametrize("name", BOXES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_give_a_mesh_or_a_typed_error(name: str, data: st.DataObject) -> None:
    draw = data.draw
    if name == ".3mf" and draw(st.booleans()):  # damage inside the zip, where its checksum does not see it
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("3D/3dmodel.model", damaged(draw, MODEL.format(objects=mesh_object(1), items='<item objectid="1"/>').encode()))
        broken = buffer.getvalue()
    else:
        broken = damaged(draw, BOXES[name])
    try:
        mesh = read_mesh_bytes(broken, f".{name.rpartition('.')[2]}")
    except InputError as error:
        assert error.what
    else:
        assert 0 < len(mesh.faces) < 1000 and np.isfinite(mesh.vertices).all() and 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)


STARTS = [b"", b"OFF ", b"ply\n", b"solid ", b"glTF\2\0\0\0", b"<", b"AC3Db\n"]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MESH_SUFFIXES), st.binary(max_size=200), st.sampled_from(STARTS))
def test_noise_is_a_typed_error(suffix: str, noise: bytes, start: bytes) -> None:
    with pytest.raises(InputError):
        read_mesh_bytes(start + noise, suffix)


def test_modules_agree_with_the_table() -> None:
    for module, suffix in ((obj, ".obj"), (off, ".off"), (stl, ".stl"), (gltf, ".glb")):
        assert surface(read_mesh_bytes(module.encode(BOX), suffix)) == surface(BOX)
