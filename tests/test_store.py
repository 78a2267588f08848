"""The data-set store: what it keeps, what it refuses, and that it is complete or absent."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metasdf.data.store import MANIFEST, Store, StoreWriter, find_existing
from metasdf.errors import InputError, UsageError

REQUEST = {"source": {"a": "123"}, "resolution": 4, "split": (80, 10, 10)}


def write(path: Path, *, request: dict[str, Any] = REQUEST, force: bool = False, value: float = 1.0, meta: dict[str, Any] | None = None) -> Store:
    with StoreWriter(path, kind="test", request=request, meta=meta or {"licence": "CC0"}, force=force) as w:
        w.create("sdf", (5, 4, 4), np.float32)[:] = value
        w.add("labels", np.arange(5))
        stream = w.stream("points", (2,), np.float32)
        for k in range(3):
            stream.append(np.full((k, 2), k))
        w.splits = {"train": [0, 2, 3], "test": np.array([1]), "none": []}
    return Store.open(path)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(tmp_path: Path) -> None:
    store = write(tmp_path / "data")
    assert (len(store), store.kind, store.meta, sorted(store.arrays)) == (5, "test", {"licence": "CC0"}, ["labels", "points", "sdf"])
    assert isinstance(store.arrays["sdf"], np.memmap) and not store.arrays["sdf"].flags.writeable
    np.testing.assert_array_equal(store.arrays["sdf"], np.ones((5, 4, 4), np.float32))
    np.testing.assert_array_equal(store.arrays["points"], [[1, 1], [2, 2], [2, 2]])
    np.testing.assert_array_equal(store.splits["train"], [0, 2, 3])
    assert store.splits["train"].dtype == np.int64 and store.split("none").size == 0
    np.testing.assert_array_equal(np.load(tmp_path / "data" / "sdf.npy"), store.arrays["sdf"])  # plain files, readable without us
    Store.open(tmp_path / "data", verify=True)
    assert "train 3" in repr(store)
    with pytest.raises(UsageError, match="no split 'val'"):
        store.split("val")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_count_can_be_said(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "data", kind="test", request={}, meta={}) as w:
        w.add("points", np.zeros((9, 2)))
        w.count = 3
    assert len(Store.open(tmp_path / "data")) == 3


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    assert first.fingerprint == write(tmp_path / "b", meta={"licence": "another"}).fingerprint
    assert first.fingerprint != write(tmp_path / "c", value=2.0).fingerprint


def test_an_identical_request_finds_the_store_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    assert find_existing(path, kind="test", request=REQUEST) is None
    write(path)
    found = find_existing(path, kind="test", request=REQUEST)
    assert found is not None and len(found) == 5
    with pytest.raises(UsageError, match="Another data set") as caught:
        find_existing(path, kind="test", request={**REQUEST, "resolution": 8})
    assert "different resolution" in caught.value.cause and "--force" in caught.value.fix and "-o" in caught.value.fix
    with pytest.raises(UsageError, match="Another data set"):
        find_existing(path, kind="other", request=REQUEST)
    with pytest.raises(UsageError, match="already there"):
        write(path)
    assert find_existing(path, kind="test", request=REQUEST, force=True) is None
    assert write(path, force=True, value=3.0).arrays["sdf"][0, 0, 0] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_force_never_replaces_what_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("file", "folder", "mixed", "link"):
        with pytest.raises(UsageError):
            write(tmp_path / name, force=True)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine" and (tmp_path / "mixed" / "notes.txt").exists()


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(write(tmp_path / "empty")) == 5
    assert len(write(tmp_path / "a" / "b" / "c")) == 5


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError("other")])
@pytest.mark.parametrize("before", [False, True])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, error: BaseException, before: bool) -> None:
    if before:
        write(tmp_path / "data")
    with pytest.raises(type(error)), StoreWriter(tmp_path / "data", kind="test", request={}, meta={}, force=True) as w:
        w.create("sdf", (5, 4, 4), np.float32)[:] = 9
        w.stream("points", (2,), np.float32).append(np.zeros((3, 2)))
        raise error
    assert [p.name for p in tmp_path.iterdir()] == (["data"] if before else [])
    if before:
        assert Store.open(tmp_path / "data", verify=True).arrays["sdf"][0, 0, 0] == 1


def test_a_full_disk_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), StoreWriter(tmp_path / "data", kind="test", request={}, meta={}):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_bad_splits_and_empty_stores_leave_nothing(tmp_path: Path) -> None:
    for rows in ([5], [-1], [1, 1], [[0]]):
        with pytest.raises(InputError, match="split train"), StoreWriter(tmp_path / "data", kind="test", request={}, meta={}) as w:
            w.add("labels", np.arange(5))
            w.splits = {"train": rows}
    with pytest.raises(UsageError, match="at least one array"), StoreWriter(tmp_path / "data", kind="test", request={}, meta={}):
        pass
    assert not list(tmp_path.iterdir())


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "data", kind="test", request={}, meta={}) as w:
        w.add("labels", np.arange(5))
        for name in ("labels", "../evil", "a/b", "", "Sdf", "."):
            with pytest.raises(UsageError, match="array name"):
                w.add(name, np.arange(5))
        with pytest.raises(UsageError, match="cannot be stored"):
            w.add("names", np.array(["a"], dtype=object))
        with pytest.raises(UsageError, match="cannot be stored"):
            w.create("text", (3,), "U8")
        with pytest.raises(UsageError, match="another shape"):
            w.stream("points", (2,), np.float32).append(np.zeros((3, 3)))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_in_the_middle(tmp_path: Path, how: signal.Signals) -> None:
    program = ("import signal, sys, time, numpy as np\nfrom metasdf.data.store import StoreWriter\n"
               "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it, and so do their children
               "with StoreWriter(sys.argv[1], kind='test', request={}, meta={}) as w:\n"
               "    w.create('sdf', (99, 4), np.float32)\n    print('ready', flush=True)\n    time.sleep(60)\n")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "data")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) != 0
    process.stdout.close()
    left = [p.name for p in tmp_path.iterdir()]
    assert "data" not in left
    assert left == [] if how == signal.SIGINT else all(name.startswith(".data.partial-") for name in left)
    assert len(write(tmp_path / "data")) == 5  # whatever is left does not stand in the way


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Store.open(tmp_path / "absent")
    with pytest.raises(InputError, match="no data set"):
        Store.open(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("", "cannot be read"), ("{", "cannot be read"), ("\xff", "not one|cannot be read"), ("[]", "not one"),
                                               ("[" * 100_000, "cannot be read"), ('{"format": "other"}', "not one"),
                                               ('{"format": "metasdf-store", "version": 2}', "version 2"),
                                               ('{"format": "metasdf-store", "version": 1}', "damaged")])
def test_damaged_manifests(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "data")
    (tmp_path / "data" / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        Store.open(tmp_path / "data")
    assert MANIFEST in caught.value.where and "--force" in caught.value.fix
    assert len(write(tmp_path / "data", force=True)) == 5  # and --force does help


@pytest.mark.parametrize("change", [
    lambda m: m["arrays"]["sdf"].update(file="../sdf.npy"), lambda m: m["arrays"]["sdf"].update(file="/sdf.npy"),
    lambda m: m["arrays"]["sdf"].update(file="labels.npy"), lambda m: m["arrays"]["sdf"].update(shape=[-1]),
    lambda m: m["arrays"]["sdf"].update(shape="5"), lambda m: m["arrays"]["sdf"].pop("sha256"), lambda m: m["arrays"]["sdf"].pop("bytes"),
    lambda m: m["arrays"].update(sdf=3), lambda m: m["arrays"].update({"..": m["arrays"]["sdf"]}), lambda m: m["splits"].update(train=[0]),
    lambda m: m["splits"].update(train={"array": "absent"}), lambda m: m.update(count=-1), lambda m: m.update(count="5"),
    lambda m: m.pop("kind"), lambda m: m.pop("request"), lambda m: m.update(meta=[]), lambda m: m.update(kind="other"),
    lambda m: m["arrays"]["sdf"].update(sha256="0")])
def test_edited_manifests(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write(tmp_path / "data")
    edit(tmp_path / "data", change)
    with pytest.raises(InputError, match=r"damaged|fingerprint"):
        Store.open(tmp_path / "data")


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "data"
    file = path / "sdf.npy"

    def refused(message: str, *, verify: bool = False) -> None:
        with pytest.raises(InputError, match=message) as caught:
            Store.open(path, verify=verify)
        assert "sdf.npy" in caught.value.where and caught.value.fix

    write(path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused("has 447 bytes instead of 448")
    file.write_bytes(b"x" * len(whole))
    refused("cannot be read")
    file.write_bytes(whole.replace(b"(5, 4, 4)", b"(4, 5, 4)"))
    refused("the manifest says")
    file.write_bytes(whole.replace(b"'fortran_order': False", b"'fortran_order': True "))
    refused("cannot be read")
    file.write_bytes(whole[:-1] + b"x")
    Store.open(path)  # a changed byte is found on request only
    refused("checksum", verify=True)
    file.unlink()
    refused("is missing")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    store = write(tmp_path / "data")
    file = store.path / "labels.npy"
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    edit(store.path, lambda m: m["arrays"]["labels"].update(bytes=file.stat().st_size))
    with pytest.raises(InputError, match="cannot be read"):
        Store.open(store.path)
