"""Finding meshes: folders, zips, ShapeNet's layout; names are unique and stable, hostile names are refused one by one; split files."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solids import box

from metasdf.data import sources
from metasdf.data.sources import Found, ShapeKey, Source, check_key, find_meshes, read_source, read_split_file
from metasdf.errors import InputError, UsageError
from metasdf.geometry.formats import gltf, obj
from metasdf.geometry.io import write_mesh
from metasdf.geometry.mesh import Mesh

TRIANGLE = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
OBJ = obj.encode(TRIANGLE)


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(OBJ)


def make_zip(path: Path, *names: str, data: bytes = OBJ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


def names(found: Found) -> dict[str, str]:
    """Name -> category."""
    return {source.name: source.category for source in found.sources}


def test_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "b.obj", "chairs/deep/a.ply", "chairs/a.STL", "tables/t.v2.off", "notes.txt", ".hidden.obj", ".git/x.obj", "__MACOSX/._a.obj")
    found = find_meshes(tmp_path)
    assert names(found) == {"b": "", "chairs/a": "chairs", "chairs/deep/a": "chairs", "tables/t.v2": "tables"} and not found.dropped
    assert [source.name for source in found.sources] == sorted(source.name for source in found.sources)
    assert found == find_meshes(str(tmp_path))


def test_one_file(tmp_path: Path) -> None:
    fill(tmp_path, "deep/a.obj")
    assert find_meshes(tmp_path / "deep" / "a.obj").sources == [Source("a", tmp_path / "deep" / "a.obj", None, "")]


def test_clashing_names_keep_their_suffixes(tmp_path: Path) -> None:
    fill(tmp_path, "a.obj", "a.ply", "a.obj.ply", "b.obj", "c/x.obj")
    make_zip(tmp_path / "c.zip", "x.obj", "y.obj")
    assert set(names(find_meshes(tmp_path))) == {"a.obj", "a.ply", "a.obj.ply", "b", "c/x.obj", "c.zip/x.obj", "c/y"}


def test_zips(tmp_path: Path) -> None:
    make_zip(tmp_path / "in" / "one.zip", "a.obj", "chairs/b.obj", "chairs/readme.txt", "folder/", "__MACOSX/._a.obj")
    make_zip(tmp_path / "two.sh3f", "models/c/c.obj")
    found = find_meshes(tmp_path)
    assert names(found) == {"in/one/a": "in", "in/one/chairs/b": "in", "two/models/c/c": "two"} and not found.dropped
    before = sorted(tmp_path.rglob("*"))
    for source in found.sources:
        mesh = read_source(source)
        assert np.array_equal(mesh.vertices, TRIANGLE.vertices) and np.array_equal(mesh.faces, TRIANGLE.faces)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was extracted
    alone = find_meshes(tmp_path / "in" / "one.zip")
    assert names(alone) == {"a": "", "chairs/b": "chairs"}


def test_hostile_members_are_refused_one_by_one(tmp_path: Path) -> None:
    bad = ["../up.obj", "a/../../up.obj", "/etc/abs.obj", "C:/x.obj", "..\\win.obj", "C:\\win.obj", "new\nline.obj", "inner.zip",
           "same.obj", "x/./same.obj"]  # fmt: skip
    path = make_zip(tmp_path / "a.zip", "good.obj", "same.obj", "x/same.obj", *bad[:-2])
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("same.obj", OBJ)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/./same.obj", OBJ)
    for found in (find_meshes(path), find_meshes(tmp_path)):
        assert {source.member for source in found.sources} == {"good.obj", "same.obj", "x/same.obj"}
        assert [name.partition(": ")[2] for name, _ in found.dropped] == sorted(bad)
        reasons = {name.partition(": ")[2]: reason for name, reason in found.dropped}
        assert all("leads out" in reasons[name] for name in bad[:6]) and "control characters" in reasons["new\nline.obj"]
        assert "zip inside" in reasons["inner.zip"] and "twice" in reasons["same.obj"]


def test_spaces_of_any_kind_in_zips(tmp_path: Path) -> None:
    """A tab, a no-break space, an ideographic one: a name, if an odd one, as in a folder. What acts on a terminal is none."""
    odd = ["a\tb.obj", "a\xa0b.obj", "a\u3000b.obj", "a\u200db.obj"]
    found = find_meshes(make_zip(tmp_path / "in" / "a.zip", *odd, "\x1b[2J.obj", "\x9b2J.obj"))
    assert set(names(found)) == {name[:-4] for name in odd}
    assert [reason for _, reason in found.dropped] == ["its name holds control characters"] * 2
    for source in found.sources:
        assert len(read_source(source).faces) == 1
    check_key(ShapeKey("d", "c", "a\xa0b"))
    fill(tmp_path / "folder", *odd)
    assert set(names(find_meshes(tmp_path / "folder"))) == set(names(found))


def test_what_the_source_is_called_leaves_no_trace(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", "good.obj", "../up.obj")
    before = find_meshes(path)
    after = find_meshes(path.rename(tmp_path / "b.zip"))
    assert after.dropped == before.dropped and names(after) == names(before)


def test_declared_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zip(tmp_path / "a.zip", "bomb.obj", data=b"\n" * 10_000)
    make_zip(tmp_path / "b.zip", "good.obj")
    source = next(s for s in find_meshes(tmp_path).sources if s.name == "a/bomb")
    monkeypatch.setattr(sources, "MAX_BYTES", 5000)
    found = find_meshes(tmp_path)
    assert names(found) == {"b/good": "b"} and found.dropped[0][0] == "a.zip: bomb.obj" and "10,000" in found.dropped[0][1]
    with pytest.raises(InputError, match="10,000 bytes"):
        read_source(source)


def test_a_lie_about_the_size_is_no_bomb(tmp_path: Path) -> None:
    """A member that unpacks to more than it declares is cut there, and its checksum says so."""
    path = make_zip(tmp_path / "a.zip", "a.obj", data=OBJ + b"\n" * 100_000)
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = raw.index(signature) + offset
        raw[place : place + 4] = struct.pack("<I", 50)
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="zip cannot be read"):
        read_source(find_meshes(path).sources[0])


def test_zips_that_cannot_be_read(tmp_path: Path) -> None:
    fill(tmp_path, "good.obj")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no zip")
    found = find_meshes(tmp_path)
    assert names(found) == {"good": ""} and found.dropped[0][0] == "bad.zip"
    with pytest.raises(InputError, match="cannot be read"):
        find_meshes(tmp_path / "bad.zip")
    path = make_zip(tmp_path / "locked.zip", "a.obj")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    assert ("locked.zip: a.obj", "encrypted") in find_meshes(tmp_path).dropped
    with pytest.raises(InputError, match="No mesh is found"):
        find_meshes(path)


def test_a_zip_that_changes_or_goes(tmp_path: Path) -> None:
    source = find_meshes(make_zip(tmp_path / "a.zip", "a.obj", "b.obj")).sources[0]
    make_zip(tmp_path / "a.zip", "c.obj")
    with pytest.raises(InputError, match=r"'a\.obj' is needed"):
        read_source(source)
    (tmp_path / "a.zip").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_source(source)


def test_gltf_in_a_zip_finds_its_buffer_there(tmp_path: Path) -> None:
    glb = gltf.encode(TRIANGLE)
    length = struct.unpack("<I", glb[12:16])[0]
    tree, body = json.loads(glb[20 : 20 + length]), glb[28 + length :]
    (tmp_path / "secret.bin").write_bytes(body)
    for uri, found in (("a%20b.bin", True), ("../secret.bin", False), (str(tmp_path / "secret.bin"), False)):
        tree["buffers"][0]["uri"] = uri
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("models/a.gltf", json.dumps(tree))
            archive.writestr("models/a b.bin", body)
        source = find_meshes(tmp_path / "a.zip").sources[0]
        if found:
            assert len(read_source(source).faces) == 1
        else:
            with pytest.raises(InputError, match="not in the zip"):
                read_source(source)


@pytest.mark.parametrize(("members", "found"), [
    (("shapes/tables/a.obj", "shapes/chairs/b.obj"), {"tables/a": "tables", "chairs/b": "chairs"}),
    (("tables/a.obj", "tables/b.obj"), {"tables/a": "tables", "tables/b": "tables"}),
    (("tables/a.obj", "tables/old/b.obj"), {"tables/a": "tables", "tables/old/b": "tables"}),
    (("03001627/c/models/model_normalized.obj",), {"03001627/c": "03001627"}),
])  # fmt: skip
def test_a_zip_of_one_folder_of_folders_stands_for_it(tmp_path: Path, members: tuple[str, ...], found: dict[str, str]) -> None:
    assert names(find_meshes(make_zip(tmp_path / "a.zip", *members))) == found


@pytest.mark.parametrize("zipped", [False, True])
def test_shapenet(tmp_path: Path, zipped: bool) -> None:
    files = ["02691156/abc/models/model_normalized.obj", "02691156/abc/model.obj", "02691156/def/model.obj",
             "04379243/abc/models/model_normalized.obj", "04379243/abc/models/other.obj", "123/abc/model.obj"]  # fmt: skip
    if zipped:
        make_zip(tmp_path / "shapes.zip", *files)
    else:
        fill(tmp_path, *files)
    found = find_meshes(tmp_path / "shapes.zip" if zipped else tmp_path)
    assert names(found) == {"02691156/abc": "02691156", "02691156/def": "02691156", "04379243/abc": "04379243",
                            "04379243/abc/models/other": "04379243", "123/abc/model": "123"} and not found.dropped  # fmt: skip
    first = next(source for source in found.sources if source.name == "02691156/abc")
    assert (first.member or first.path.as_posix()).endswith("models/model_normalized.obj")


def test_shapenet_by_category_and_below_other_folders(tmp_path: Path) -> None:
    fill(tmp_path, "ShapeNetCore.v2/02691156/abc/models/model_normalized.obj", "ShapeNetCore.v1/02691156/abc/model.obj")
    make_zip(tmp_path / "zips" / "04379243.zip", "04379243/x/models/model_normalized.obj")
    expected = {"02691156/abc": "02691156"}
    assert names(find_meshes(tmp_path)) == expected | {"04379243/x": "04379243"}
    assert names(find_meshes(tmp_path / "ShapeNetCore.v2" / "02691156")) == expected


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path / "absent", tmp_path / "notes.txt"):
        with pytest.raises(UsageError, match="no meshes"):
            find_meshes(path)
    with pytest.raises(InputError, match="No mesh is found"):
        find_meshes(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_source(Source("a", tmp_path / "a.obj", None, ""))


WORDS = ["a", "b", "..", ".", "a.obj", "x.zip", "C:", "", "a\\b", "é", "02691156", "models", "model.obj", "model_normalized.obj", "\n"]
PARTS = st.sampled_from(WORDS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=5).map("/".join), max_size=12), st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_any_zip_gives_unique_names_or_a_typed_error(tmp_path_factory, members: list[str], place: int, byte: int, flip: bool) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member in dict.fromkeys(m for m in members if m):
            archive.writestr(member, OBJ)
    if flip:
        raw = bytearray(path.read_bytes())
        raw[place % len(raw)] ^= byte
        path.write_bytes(bytes(raw))
    try:
        found = find_meshes(path)
    except InputError:
        return
    assert len({source.name for source in found.sources}) == len(found.sources)
    for source in found.sources:
        assert ".." not in source.name.split("/") and not source.name.startswith("/")
        try:
            assert len(read_source(source).faces) >= 1
        except InputError:
            assert flip


# --- split files ---


def test_split_files(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"ShapeNetV2": {"02691156": ["b", "a"], "04379243": ["a"]}, "Other": {"x y": []}}))
    assert read_split_file(path) == [ShapeKey("ShapeNetV2", *rest) for rest in (("02691156", "b"), ("02691156", "a"), ("04379243", "a"))]


def test_what_stands_beside_splits(tmp_path: Path) -> None:
    """Families of near-copies, say, which are lists of lists."""
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"planes": {"train": ["a"], "test": ["b"], "families": [["a", "c"]], "note": "by family"}}))
    assert read_split_file(path) == [ShapeKey("planes", "train", "a"), ShapeKey("planes", "test", "b")]


NO_SPLITS = ["", "[]", "3", "{", '{"a": []}', '{"a": {"b": "c"}}', '{"a": {"b": {"c": 1}}}', '{"a": {"b": null}}', '{"a": {"b": [1]}}',
             '{"a": {"b": ["x", "x"]}}', '{"a": {"b": [null]}}', "[" * 100_000, "\xff", '{"a": {"b": [["c"]]}}']  # fmt: skip


@pytest.mark.parametrize("text", NO_SPLITS)
def test_split_files_of_another_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        read_split_file(tmp_path / "split.json")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "/etc/passwd", "a\\b", "C:", "a\n", "a\0", ".hidden", "x" * 300, " a", "a.", "*"])
def test_ids_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    for tree in ({name: {"b": ["c"]}}, {"a": {name: ["c"]}}, {"a": {"b": [name]}}):
        (tmp_path / "split.json").write_text(json.dumps(tree))
        with pytest.raises(InputError, match="Not a name"):
            read_split_file(tmp_path / "split.json")


def test_split_files_that_are_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_split_file(tmp_path / "absent.json")
    (tmp_path / "split.json").write_text('{"a": {"b": ["c"]}}')
    monkeypatch.setattr(sources, "MAX_JSON_BYTES", 5)
    with pytest.raises(InputError, match="large"):
        read_split_file(tmp_path / "split.json")


def test_the_same_id_in_two_folders_is_two_shapes(tmp_path: Path) -> None:
    for folder in ("setA", "setB"):
        write_mesh(tmp_path / folder / "02691156/abc/models/model_normalized.obj", box())
    found = find_meshes(tmp_path)
    assert len({source.name for source in found.sources}) == 2 and {source.category for source in found.sources} == {"02691156"}


def test_links_and_unreadable_folders(tmp_path: Path) -> None:
    write_mesh(tmp_path / "elsewhere/far.ply", box())
    root = tmp_path / "in"
    write_mesh(root / "near.ply", box())
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "broken.obj").symlink_to(tmp_path / "nowhere.obj")
    found = find_meshes(root)
    assert [source.name for source in found.sources] == ["linked/far", "near"] and [name for name, _ in found.dropped] == ["broken.obj"]
