"""AC3D: the tree of objects, their places, concave surfaces, lines left out, and typed errors with the number of the line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metasdf.errors import InputError
from metasdf.geometry.formats.ac3d import parse
from metasdf.geometry.io import read_mesh_bytes
from metasdf.geometry.mesh import areas, bounds

SQUARE = """numvert 4
0 0 0
1 0 0
1 1 0
0 1 0
numsurf 1
SURF 0x10
mat 0
refs 4
0 0 0
1 1 0
2 1 1
3 0 1
"""


def scene(*objects: str, kids: int | None = None) -> str:
    head = 'AC3Db\nMATERIAL "a b" rgb 1 1 1  amb 1 1 1  emis 0 0 0  spec 0 0 0  shi 2  trans 0\nOBJECT world\n'
    return f"{head}kids {len(objects) if kids is None else kids}\n{''.join(objects)}"


def obj(body: str, *kids: str) -> str:
    return f'OBJECT poly\nname "part of it"\n{body}kids {len(kids)}\n{"".join(kids)}'


def read(text: str):
    return parse(text.encode("latin-1"), where="f.ac")


def test_a_square() -> None:
    mesh = read(scene(obj(SQUARE)))
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]] and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_places_add_up_and_rotations_act_on_rows() -> None:
    """x' = x R + loc in the parent, as FlightGear has it: this R sends the x axis to y, y to -x."""
    turn = "rot 0 1 0 -1 0 0 0 0 1\n"
    inner = obj(f"loc 1 0 0\n{SQUARE}")
    mesh = read(scene(obj(f"{turn}loc 0 0 5\n", inner), obj(SQUARE)))
    assert mesh.vertices[:4].tolist() == [[0, 1, 5], [0, 2, 5], [-1, 2, 5], [-1, 1, 5]]
    assert mesh.vertices[4:].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_brothers_after_nested_kids() -> None:
    """Each object stands relative to its own parent, however deep the one before was."""
    deep = obj("loc 1 0 0\n", obj("loc 0 1 0\n", obj(f"loc 0 0 1\n{SQUARE}"), obj(SQUARE)), obj(SQUARE))
    mesh = read(scene(deep, obj(f"loc 9 9 9\n{SQUARE}")))
    assert mesh.vertices[::4].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [9, 9, 9]]


def test_concave_surfaces_come_out_right() -> None:
    dart = "numvert 4\n0 1 0\n-1 -1 0\n0 -0.5 0\n1 -1 0\nnumsurf 1\nSURF 0x30\nmat 0\nrefs 4\n1 0 0\n2 0 0\n3 0 0\n0 0 0\n"
    mesh = read(scene(obj(dart)))
    assert len(mesh.faces) == 2 and areas(mesh).sum() == pytest.approx(1.5)  # double-sided (0x20): still one surface


def test_lines_are_left_out() -> None:
    lines = "".join(f"SURF {kind}\nmat 0\nrefs 3\n0 0 0\n1 0 0\n2 0 0\n" for kind in ("0x1", "0x22", "2", "0X12"))
    assert len(read(scene(obj(SQUARE.replace("numsurf 1", "numsurf 5") + lines))).faces) == 2
    with pytest.raises(InputError, match="no faces"):
        read_mesh_bytes(scene(obj(SQUARE.replace("SURF 0x10", "SURF 0x12"))).encode(), ".ac")


def test_all_that_does_not_matter() -> None:
    body = ('data 14\nOBJECT \nkids 9\ntexture "a b.png"\ntexrep 2 2\ntexoff 0 0\nurl http://x\ncrease 30.0\nsubdiv 2\nhidden\nlocked\nfolded\n'
            'something new\n')  # fmt: skip
    plain = read(scene(obj(SQUARE)))
    normals = SQUARE.replace("0 0 0\n1 0 0\n1 1 0", "0 0 0 0 0 1\n1 0 0 0 0 1\n1 1 0 0 0 1", 1)
    for text in (scene(obj(body + SQUARE)), scene(obj(SQUARE)).replace("\n", "\r\n"), scene(obj(SQUARE)).replace("\n", "\r"),
                 "\xef\xbb\xbf" + scene(obj(SQUARE)), scene(obj(normals)), scene(obj(SQUARE.replace("\nrefs", "\n\nrefs"))),
                 scene(obj(SQUARE.replace("mat 0\n", ""))), scene(obj(SQUARE.replace("1 0 0\n", "\n1 0 0\n")))):  # fmt: skip
        mesh = read(text)
        assert np.array_equal(mesh.vertices, plain.vertices) and np.array_equal(mesh.faces, plain.faces)


def test_more_kids_announced_than_come() -> None:
    """As in 13 of FlightGear's 221 models."""
    assert len(read(scene(obj(SQUARE), kids=3)).faces) == 2


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("", "does not begin", None),
        ("<html>", "does not begin", None),
        (scene(obj(SQUARE)).replace("\n3 0 1", "\n4 0 1"), "names vertex 4; the object has 4", 19),
        (scene(obj(SQUARE)).replace("\n3 0 1", "\n-1 0 1"), "names vertex -1", 19),
        (scene(obj(SQUARE)).replace("\n0 1 0", "\n0 x 0"), "could not convert", 11),
        (scene(obj(SQUARE)).replace("\n0 1 0\n", "\n"), "could not convert|reshape|where a word is due|inhomogeneous", 11),
        (scene(obj(SQUARE)).replace("numvert 4", "numvert 3"), "'0' where a word is due", 11),
        (scene(obj(SQUARE)).replace("numvert 4", "numvert 4000000000"), "only 14 lines follow", 7),
        (scene(obj(SQUARE)).replace("numvert 4", "numvert -4"), "numvert says -4", 7),
        (scene(obj(SQUARE)).replace("numsurf 1", "numsurf 2"), "A SURF is due, not 'kids'", 20),
        (scene(obj(SQUARE)).replace("SURF 0x10", "SURF 0x14"), "no kind of surface", 13),
        (scene(obj(SQUARE)).replace("refs 4\n", ""), "'0' where a word|without refs|A SURF", None),
        (scene(obj(SQUARE)).replace("kids 0", "OBJECT poly"), "without kids", 20),
        (scene(obj(SQUARE)).replace("kids 0", ""), "ends in the middle", None),
        (scene(obj(SQUARE))[:120], "ends in the middle", None),
        (scene(obj(SQUARE)).replace("kids 0", "kids -1"), "kids says -1", 20),
        (scene(obj("numvert 3\n0 0\n1 0\n1 1\n")), "reshape", 10),
        (scene(obj("loc 1 2\n" + SQUARE)), "reshape", 7),
        (scene(obj("rot 1 2 3\n" + SQUARE)), "reshape", 7),
        (scene(obj("loc nan 0 0\n" + SQUARE)), "not finite", None),
    ],
)
def test_damage_is_named_with_its_line(text: str, says: str, line: int | None) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read(text)
    assert caught.value.where.startswith("f.ac") and (line is None or caught.value.where.endswith(f", line {line}"))


def test_depth_is_no_recursion() -> None:
    deep = "AC3Db\n" + "OBJECT group\nloc 1 0 0\nkids 1\n" * 3_000 + obj(SQUARE)
    assert bounds(read(deep))[0, 0] == 3_000


GOOD = scene(obj("loc 1 0 0\ndata 3\nabc\n", obj(SQUARE), obj(f"rot 0 1 0 -1 0 0 0 0 1\n{SQUARE}")), obj(SQUARE))
WORDS = ["-1", "1e999", "nan", "99999999999999999999", "4294967296", "", "x", "OBJECT", "kids 1", "numvert 3", "refs 2", "SURF 0x0", "data 9999"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_give_a_mesh_or_a_typed_error(data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["word", "cut", "flip", "line"]))
        lines = text.split("\n")
        k = data.draw(st.integers(0, len(lines) - 1))
        if kind == "word" and (words := lines[k].split(" ")):
            words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(WORDS))
            lines[k] = " ".join(words)
        elif kind == "line":
            lines = lines[:k] + data.draw(st.sampled_from([[], [lines[k], lines[k]]])) + lines[k + 1 :]
        text = "\n".join(lines)
        if text and kind in ("cut", "flip"):
            k = data.draw(st.integers(0, len(text) - 1))
            text = text[:k] if kind == "cut" else text[:k] + chr(data.draw(st.integers(0, 255))) + text[k + 1 :]
    try:
        mesh = read_mesh_bytes(text.encode("latin-1"), ".ac")
    except InputError as error:
        assert error.what
    else:
        assert 0 < len(mesh.faces) < 100 and np.isfinite(mesh.vertices).all()
