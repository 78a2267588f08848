"""A file is the old one or the new one, never something between; and a damaged file is never taken for a good one."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from metasdf import checkpoint
from metasdf.checkpoint import digest, load_state, plain, save_state, write_json
from metasdf.errors import CheckpointError, MetaSDFError, UsageError
from metasdf.files import write_whole

TENSORS = {"theta.0": torch.arange(6.0).reshape(2, 3) - 2.5, "step": torch.tensor(7.0), "long": torch.tensor([2**40, -1])}
STATE: dict[str, Any] = {"step": 7, "config": {"lr": 1e-4, "name": "Ärger"}, "none": None}


def saved(path: Path, *, kind: str = "checkpoint") -> bytes:
    save_state(path, TENSORS, STATE, kind=kind)
    return path.read_bytes()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def only(folder: Path, *names: str) -> bool:
    """Nothing else is there, hidden files included."""
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_saved_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path / "c.safetensors")
    tensors, state = load_state(tmp_path / "c.safetensors", kind="checkpoint")
    assert equal(tensors, TENSORS) and state == STATE
    assert only(tmp_path, "c.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8])
def test_every_bit_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"x": (torch.rand(3, 4) * 3).to(dtype), "empty": torch.zeros(0, 2, dtype=dtype), "mirrored": torch.rand(3, 4).T.to(dtype)}
    save_state(tmp_path / "c", tensors, {}, kind="prior")
    assert equal(load_state(tmp_path / "c", kind="prior")[0], tensors)


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    save_state(tmp_path / "c", {"x": torch.tensor([float("nan"), float("inf"), -0.0])}, {}, kind="prior")
    x = load_state(tmp_path / "c", kind="prior")[0]["x"]
    assert x[0].isnan() and x[1].isposinf() and x[2].signbit()


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """One bit of every byte, in turn: the header's length, names, shapes, settings, checksums and numbers."""
    path = tmp_path / "c.safetensors"
    good = saved(path)
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            tensors, state = load_state(path, kind="checkpoint")
        except CheckpointError as error:
            assert str(path) in error.where and error.exit_code == 1
        else:  # the name of the checksum of the state itself: then the rest is whole
            assert equal(tensors, TENSORS) and state == STATE
            assert b'"state_sha256"' not in bytes(damaged)


def test_no_cut_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    good = saved(path)
    for length in [*range(0, len(good), 17), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_state(path, kind="checkpoint")
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(path, kind="checkpoint")


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 64, b"PK\x03\x04" + b"x" * 100, b"\xff" * 100])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the prior file cannot be read") as caught:
        load_state(path, kind="prior")
    assert caught.value.where == str(path) and caught.value.cause and caught.value.fix


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no prior file"):
        load_state(tmp_path / "missing", kind="prior")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path, kind="prior")


def test_another_kind(tmp_path: Path) -> None:
    saved(tmp_path / "p", kind="prior")
    with pytest.raises(CheckpointError, match="no metasdf checkpoint of version 1, it says 'metasdf-prior-1'"):
        load_state(tmp_path / "p", kind="checkpoint")


def test_a_file_of_another_program(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match="it says 'nothing'"):
        load_state(tmp_path / "t.safetensors", kind="checkpoint")


def header(**changes: str | None) -> dict[str, str]:
    whole = {"format": "metasdf-prior-1", "state": json.dumps(STATE), "sha256": digest(TENSORS), **changes}
    return {k: v for k, v in whole.items() if v is not None}


def test_files_from_before_the_state_had_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(save(TENSORS, metadata=header()))
    assert load_state(tmp_path / "p", kind="prior")[1] == STATE


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"sha256": None}, "checksum"), ({"sha256": "0"}, "checksum"), ({"state": None}, "description"), ({"state": "{"}, "description"),
     ({"state_sha256": "0"}, "checksum"), ({"format": "metasdf-prior-2"}, "version 1, it says 'metasdf-prior-2'")],
)  # fmt: skip
def test_a_bad_header(tmp_path: Path, changes: dict[str, str | None], says: str) -> None:
    (tmp_path / "p").write_bytes(save(TENSORS, metadata=header(**changes)))
    with pytest.raises(CheckpointError, match=says):
        load_state(tmp_path / "p", kind="prior")


def test_the_digest_sees_names_types_shapes_and_numbers() -> None:
    x = torch.zeros(2, 3)
    others = [{"y": x}, {"x": x.T}, {"x": x.reshape(6)}, {"x": x.int()}, {"x": x - 1e-30}, {"x": x, "y": x}, {}, {"x": -x}]
    assert len({digest(t) for t in [{"x": x}, *others]}) == len(others) + 1
    assert digest({"a": x, "b": x + 1}) == digest({"b": x + 1, "a": x})


# -- whole or not at all -------------------------------------------------------------------------------------------------------------------


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two" and only(path.parent, "a.bin")
    longest = path.parent / ("n" * 251 + ".bin")
    write_whole(longest, b"three")
    assert longest.read_bytes() == b"three"


def test_results_are_for_sharing(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def fail(error: BaseException) -> Any:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("where", "what"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str) -> None:
    path = tmp_path / "c.safetensors"
    old = saved(path)
    monkeypatch.setattr(where, what, fail(FULL))
    with pytest.raises(MetaSDFError, match=r"c\.safetensors could not be written: No space left on device") as caught:
        save_state(path, {"x": torch.ones(3)}, {}, kind="checkpoint")
    monkeypatch.undo()
    assert caught.value.exit_code == 1 and caught.value.where == str(path) and caught.value.fix
    assert path.read_bytes() == old and only(tmp_path, path.name)


@pytest.mark.parametrize(("where", "what"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str) -> None:
    path = tmp_path / "c.safetensors"
    old = saved(path)
    monkeypatch.setattr(where, what, fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"x": torch.ones(3)}, {}, kind="checkpoint")
    monkeypatch.undo()
    assert path.read_bytes() == old and only(tmp_path, path.name)


def test_what_cannot_be_serialised_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    old = saved(path)
    with pytest.raises(TypeError):
        save_state(path, TENSORS, {"x": object()}, kind="checkpoint")
    monkeypatch.setattr(checkpoint, "save", fail(MemoryError()))
    with pytest.raises(MemoryError):
        save_state(path, TENSORS, {}, kind="checkpoint")
    assert path.read_bytes() == old and only(tmp_path, path.name)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write c\.json") as caught:
        write_json(tmp_path / "run" / "c.json", {})
    assert caught.value.exit_code == 2 and caught.value.where == str(tmp_path / "run") and caught.value.fix
    assert (tmp_path / "run").read_text() == "mine" and only(tmp_path, "run")


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.json").mkdir()
    with pytest.raises(MetaSDFError, match="could not be written"):
        write_json(tmp_path / "c.json", {})
    assert only(tmp_path, "c.json") and only(tmp_path / "c.json")


def test_json_is_strict(tmp_path: Path) -> None:
    """NaN and infinity are no JSON; they are written as null."""
    write_json(tmp_path / "a.json", {"b": [1.5, float("nan"), (float("-inf"), 2)], "a": {"x": float("inf")}, "t": True, "s": "NaN", "n": None})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert read == {"b": [1.5, None, [None, 2]], "a": {"x": None}, "t": True, "s": "NaN", "n": None}
    assert list(read) == ["b", "a", "t", "s", "n"]  # in the order given
    assert plain({"x": 1}) == {"x": 1}
