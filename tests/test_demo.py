"""The demo from end to end, with small untrained priors on a few digits: the page stands alone, and its commands work."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from test_solid import ball

from metasdf import demo, demo3d
from metasdf.data.mnist import load_slice
from metasdf.errors import UsageError
from metasdf.experiments import mnist_dense, mnist_levelset
from metasdf.fields import FieldSpec
from metasdf.geometry.distance import unsigned_distance
from metasdf.geometry.io import read_mesh, read_mesh_bytes
from metasdf.geometry.mesh import components
from metasdf.prior import Prior, build_conditioner
from metasdf.reconstruct import context_for, read_observations

ROWS = np.array([3, 33, 80])


def small_prior(rule: str, *, card: dict[str, object] | None = None) -> Prior:
    base = mnist_dense() if rule == "dense" else mnist_levelset()
    experiment = replace(base, n_test=64, field=FieldSpec(width=16, hidden_layers=1), inner=replace(base.inner, init_rate=0.01))
    return Prior(experiment, build_conditioner(experiment, generator=torch.Generator().manual_seed(0)), card=card)  # type: ignore[arg-type]


def run(out: Path, *, say: Callable[[str], None] = lambda text: None, **settings: Any) -> Path:
    return demo.run(out, say=say, tables=ball("levelset"), resolution=24, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out, said = tmp_path_factory.mktemp("demo") / "a page", []
    card = {"training": {"steps": 12345, "seconds": 600.0, "device": "cpu <b>"}}
    page = run(out, say=said.append, priors=[small_prior("dense", card=card), small_prior("levelset")], rows=ROWS, shown=[33, 80])
    assert page == out / "index.html"
    return out, said


class Links(HTMLParser):
    """Addresses a page refers to, and its open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "data") or (name == "href" and tag != "a")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_files(finished: tuple[Path, list[str]]) -> None:
    out, _ = finished
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    pictures = {"curve.png", "mnist-dense.png", "mnist-levelset.png", "steps.png"}
    table = {"try/table.xyz", "table.glb", "table.json", "table.png", "table.html"}
    assert names == {"index.html", "try/digit.png", "try/samples.csv", "try/outline.csv", *table} | pictures


def test_the_page_stands_alone(finished: tuple[Path, list[str]]) -> None:
    text = (finished[0] / "index.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.open == [] and len(links.loaded) == 5 and "script" not in links.tags and "link" not in links.tags
    assert links.loaded.pop(3) == "table.html"  # the mesh to turn, a page of its own
    for address in links.loaded:
        assert address.startswith("data:image/png;base64,")
        assert base64.b64decode(address.partition(",")[2], validate=True).startswith(b"\x89PNG")
    assert "url(" not in text and "@import" not in text and str(Path.home()) not in text


def test_the_mesh_to_turn_stands_alone(finished: tuple[Path, list[str]]) -> None:
    text = (finished[0] / "table.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert not links.loaded and "script" in links.tags
    encoded = re.search(r'"([A-Za-z0-9+/]{1000,}=*)"', text)
    assert encoded
    mesh, written = read_mesh_bytes(base64.b64decode(encoded[1]), ".glb"), read_mesh(finished[0] / "table.glb")
    assert mesh.faces.shape == written.faces.shape and np.allclose(np.ptp(mesh.vertices, axis=0), np.ptp(written.vertices, axis=0), rtol=1e-5)


def test_the_scan_is_bare_points_on_the_table(finished: tuple[Path, list[str]]) -> None:
    points = np.loadtxt(finished[0] / demo3d.SCAN)
    assert points.shape == (demo3d.POINTS, 3) and unsigned_distance(demo3d.example_table(), points).max() < 1e-4


def test_points_are_drawn_as_octahedra() -> None:
    mesh = demo3d.dots(np.array([[0.0, 0, 0], [2, 1, 0]]))
    assert len(mesh.faces) == 16 and components(mesh).max() == 1
    np.testing.assert_allclose(np.sort(mesh.vertices[:6].sum(1)), [-0.012] * 3 + [0.012] * 3)
    a, b, c = (mesh.vertices[column] for column in mesh.faces.T)
    volume = np.einsum("ij,ij->", a, np.cross(b, c)) / 6
    assert volume == pytest.approx(2 * 4 / 3 * 0.012**3)  # closed, and its faces look outward


def test_the_page_says_what_it_must(finished: tuple[Path, list[str]]) -> None:
    text = (finished[0] / "index.html").read_text(encoding="utf-8")
    credits = ("arXiv:2006.09662", "NeurIPS 2020", "Yann LeCun", "CC BY-SA 3.0")
    for words in (*credits, "12,345 steps in 10 minutes", "1.54e-05", "5.66e-05", "on 3 test digits"):
        assert words in text
    assert "cpu &lt;b&gt;" in text  # what a card says is text, whatever it holds


def test_what_is_said(finished: tuple[Path, list[str]]) -> None:
    out, said = finished
    text = "\n".join(said)
    assert text.isascii()  # any terminal can print it
    assert re.search(r"mnist-dense\s*\|.*e-\d\d.*%.*\|", text) and str(out / "index.html") in text
    for command in ("prepare", "train", "evaluate", "reconstruct"):
        assert f"metasdf {command}" in text


def test_the_commands_parse(finished: tuple[Path, list[str]]) -> None:
    from metasdf.cli import cli

    for _, line in demo.next_commands(finished[0], [small_prior("dense"), small_prior("levelset")], ball("levelset")):
        program, name, *arguments = shlex.split(line)
        assert program == "metasdf" and name in cli.commands
        cli.commands[name].make_parser(click.Context(cli.commands[name])).parse_args(arguments)


@pytest.mark.parametrize(
    ("name", "kind", "rule"), [("digit.png", "image", "dense"), ("samples.csv", "samples", "dense"), ("outline.csv", "points", "levelset")]
)
def test_the_examples_are_inputs(finished: tuple[Path, list[str]], name: str, kind: str, rule: str) -> None:
    observed = read_observations(finished[0] / "try" / name)
    assert observed.kind == kind
    context = context_for(observed, small_prior(rule))
    assert len(context.x) >= 64 and (context.s is not None) == (rule == "dense")


def test_shown_digits_are_of_different_classes() -> None:
    labels = load_slice()[1]
    assert len({int(labels[i]) for i in demo.SHOWN}) == len(demo.SHOWN) == 6
    assert demo.EXAMPLE in demo.SHOWN


def test_the_picture_is_whole(finished: tuple[Path, list[str]]) -> None:
    for name in ("mnist-dense", "mnist-levelset", "curve"):
        with Image.open(finished[0] / f"{name}.png") as image:
            image.load()
            assert image.width > 600


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError):
        run(tmp_path / "out", priors=[small_prior("dense")], rows=ROWS[:1], shown=[33])
    assert (tmp_path / "out").read_text() == "mine"


def test_a_fit_that_fails_is_counted(tmp_path: Path) -> None:
    prior = small_prior("dense")
    with torch.no_grad():
        next(prior.conditioner.parameters()).fill_(float("inf"))
    page = run(tmp_path / "out", priors=[prior], rows=ROWS[:2], shown=[33])
    assert "2 digits failed" in page.read_text(encoding="utf-8")
