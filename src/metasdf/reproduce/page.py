"""Measured cells beside the published numbers: rows to print, and docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metasdf.errors import InputError
from metasdf.files import write_whole
from metasdf.reproduce import digits, solids
from metasdf.reproduce.plan import REFINED, UNTRAINED, label
from metasdf.reproduce.tables import KINDS, Cell, cells


class Line(NamedTuple):
    """What all measured cells tell: test shapes, failed ones, seconds of training."""

    cell: Cell
    n: int
    failed: int
    seconds: float
    preset: str
    commit: str
    hardware: str
    refine: int

    @property
    def label(self) -> str:
        return label(self.cell.method, self.refine)


class Fields(NamedTuple):
    """A cell of digits: MSE x 1e-6 with its standard deviation over runs, MAE x 1e-3, and milliseconds to fit a shape."""

    line: Line
    mse: float
    std: float | None
    mae: float
    fit_ms: float


class Surfaces(NamedTuple):
    """A cell of 3D shapes, means over shapes, chamfer x 1e-3 with its floor in field units; None where no shape has such a value."""

    line: Line
    trained_on: str
    tested_on: str
    context: int
    chamfer: float | None
    median: float | None
    floor: float | None
    iou: float | None
    fscore: float | None
    normals: float | None
    misclassified: float | None
    fit_ms: float | None
    resolution: int
    near_copies: int


class Measured(NamedTuple):
    fields: list[Fields]
    surfaces: list[Surfaces]


def read(results: Path) -> Measured:
    """The comparable cells in a folder of results. Raises InputError for a file that is none of ours."""
    found = Measured([], [])
    for cell in cells(list(KINDS)):
        path = results / f"{cell.name}.json"
        if not path.exists():
            continue
        try:
            r = json.loads(path.read_text())
            if not r["cell"]["comparable"]:
                continue
            refine = r["refine"] if cell.method == REFINED else 0
            line = Line(cell, r["n"], r["failed"], r["training"]["seconds"], r["preset"], r["commit"], r["hardware"], refine)
            if KINDS[cell.asks.table] is digits:
                found.fields.append(_fields(line, r))
            else:
                found.surfaces.append(_surfaces(line, r))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no result of metasdf reproduce ({error})", where=path, cause="another file, or a damaged one",
                             fix="delete it and run the table again") from error  # fmt: skip
    return found


def _fields(line: Line, r: dict[str, Any]) -> Fields:
    m = r["metrics"]
    return Fields(line, m["mse"] * 1e6, m["mse_std"] * 1e6 if "mse_std" in m else None, m["mae"] * 1e3, r["fit_ms"]["batched"])


def _surfaces(line: Line, r: dict[str, Any]) -> Surfaces:
    def of(name: str, which: str = "mean", unit: float = 1.0) -> float | None:
        return None if r["metrics"][name] is None else r["metrics"][name][which] * unit

    return Surfaces(line, r["cell"]["trained_on"], r["cell"]["tested_on"], r["context"]["points"], of("chamfer_field", unit=1e3),
                    of("chamfer_field", "median", 1e3), of("chamfer_field_floor", unit=1e3), of("iou"), of("fscore"), of("normals"),
                    of("misclassified"), r["fit_ms"], r["resolution"], len(r["near_copies"]))  # fmt: skip


HEAD = ("method", "column", "published MSE", "ours MSE", "ratio", "ours MAE", "n", "failed", "minutes", "fit ms")
SURFACE_HEAD = ("column", "method", "published CD", "published IoU", "ours CD", "floor", "IoU", "F-score", "normals", "wrong sign %", "n", "failed",
                "minutes", "fit ms")  # fmt: skip
AGAINST_HEAD = ("column", "method", "over", "published", "ours", "fit ms", "ahead")
OURS = ("metasdf", REFINED)
EVEN = 0.05  # ratios nearer to 1 say nothing of who is ahead, where tens of shapes are tested
RATIO_HEAD = ("column", "method", "over", "published mean", "published median", "ours mean", "ours median")


def comparison(lines: Sequence[Fields]) -> Iterator[tuple[str, ...]]:
    """Rows of HEAD."""
    for line, mse, std, mae, fit_ms in lines:
        cell, n, failed, seconds, *_ = line
        published, deviation = digits.published(*cell) or (None, None)
        ours = f"{mse:.1f}" + (f" ± {std:.1f}" if std is not None else "")
        yield (line.label, cell.asks.title, _or_dash(published, "g") + (f" ± {deviation:g}" if deviation else ""), ours,
               f"{mse / published:.2f}" if published else "-", f"{mae:.2f}", f"{n:,}", f"{failed:,}", f"{seconds / 60:.0f}",
               f"{fit_ms:.1f}")  # fmt: skip


def against(lines: Sequence[Fields]) -> Iterator[tuple[str, ...]]:
    """Rows of AGAINST_HEAD: MSE and time of MetaSDF, as it is and refined, over a baseline's, and which of the two is ahead."""
    found = {each.line.cell: each for each in lines}
    for cell, baseline in found.items():
        for method in OURS if cell.method not in OURS else ():
            if ours := found.get(Cell(cell.column, method)):
                theirs = digits.published(cell.column, method), digits.published(*cell)
                published = f"{theirs[0][0] / theirs[1][0]:.2f}" if theirs[0] and theirs[1] else "-"
                ratio = ours.mse / baseline.mse
                ahead = "neither" if abs(ratio - 1) < EVEN else "MetaSDF" if ratio < 1 else "**the baseline**"
                yield (cell.asks.title, ours.line.label, baseline.line.label, published, f"{ratio:.2f}", f"{ours.fit_ms / baseline.fit_ms:.3g}",
                       ahead)  # fmt: skip


def surface_comparison(lines: Sequence[Surfaces]) -> Iterator[tuple[str, ...]]:
    """Rows of SURFACE_HEAD, column by column. No ratio of ours to the published: the shapes are others."""
    for s in _by_column(lines):
        published = solids.published(*s.line.cell)
        yield (s.line.cell.asks.title, s.line.label, f"{published.mean:g} / {published.median:g}" if published else "-",
               _or_dash(published and published.iou, ".2f"), f"{_or_dash(s.chamfer, '.3g')} / {_or_dash(s.median, '.3g')}", _or_dash(s.floor, ".3g"),
               _or_dash(s.iou, ".3f"), _or_dash(s.fscore, ".3f"), _or_dash(s.normals, ".3f"), _or_dash(s.misclassified, ".2f"), f"{s.line.n:,}",
               f"{s.line.failed:,}", f"{s.line.seconds / 60:.0f}", _or_dash(s.fit_ms, ".0f"))  # fmt: skip


def ratios(lines: Sequence[Surfaces]) -> Iterator[tuple[str, ...]]:
    """Rows of RATIO_HEAD: MetaSDF's chamfer, as it is and refined, over the baseline's, where both are known."""
    found = {s.line.cell: s for s in lines}
    for cell, baseline in found.items():
        for method in OURS if cell.method not in OURS else ():
            if ours := found.get(Cell(cell.column, method)):
                theirs, their_baseline = (solids.published(*each) for each in (ours.line.cell, cell))
                both = zip(theirs[:2], their_baseline[:2], strict=True) if theirs and their_baseline else [(None, None)] * 2
                pairs = [*both, (ours.chamfer, baseline.chamfer), (ours.median, baseline.median)]
                yield (cell.asks.title, ours.line.label, baseline.line.label, *(f"{a / b:.2f}" if a is not None and b else "-" for a, b in pairs))


def _by_column(lines: Sequence[Surfaces]) -> list[Surfaces]:
    columns = list(solids.COLUMNS)
    return sorted(lines, key=lambda s: columns.index(s.line.cell.column))


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


DEPARTURES = """\
- The published column is called l1-error; it is read as the mean squared error (docs/metrics.md says why). MSE x 1e-6, MAE x 1e-3, field units.
- ± is the standard deviation over evaluation runs with other contexts; a cell without it was measured once.
- Every method of a column has the same wall-clock budget on one CPU core instead of the paper's epochs on a GPU; preset `cpu`: Muon, l1 outer
  loss, averaged weights, bfloat16 products where they are faster, fewer shapes and points a step, larger and decaying learning rates
  (docs/method.md).
- MetaSDF is trained from scratch in that budget here; the shipped priors, trained for hours, are in README.md.
- n: shapes that a cell is tested on, spread evenly over the test split. Auto-decoders and refined fits, tens to hundreds of Adam steps for each,
  1,000 at most.
  Preset `cpu`: they train on 4,000 shapes drawn by the seed (hypernetworks, whose steps take longer, 1,500), 16 a step, and each step of a fit
  sees 256 points of the context; a fit makes 800 steps (hypernetworks 400, at twice the learning rate).
- The auto-decoder of the level-set column is the one of the dense column: training sees no context. Only what its codes are fitted to differs.
- Codes: Adam counts the visits of each shape by itself, and codes that a step does not see stay (with a shared count, rare visits would hardly
  move them). Sizes that are not published (256 numbers of code; how set encoders count layers) are in docs/method.md.
- Rotation: angles uniform in [0, 360), the range is not published.
- MetaSDF, then steps of Adam: not in the paper. What the five steps found is refined on the same context (docs/method.md); an auto-decoder's fit
  takes 400 to 800 such steps, on a code.
"""
SURFACE_DEPARTURES = """\
- **Not ShapeNet**: the data sets are named below each table. Published numbers are there for orientation, and no ratio to them is taken; what can be
  set side by side is how MetaSDF stands to the baseline. Ours are far smaller: tens of real shapes to train on, and 5 to 25 to test.
- CD: chamfer x 1e-3, mean / median over shapes. Published: in ShapeNet's own units. Ours: in field units (the shape fills the cube [-1, 1]^3), since
  our files have all kinds of units; results/tables holds chamfer in these, too. The floor is what a perfect reconstruction has (docs/metrics.md).
- As in the paper, each shape is reconstructed twice, from contexts of their own, and the better one by chamfer counts, for all measures. IoU: of
  points all over the cube; how the published one was measured is not said. Means are over shapes that have a surface; the others count as failed.
- Every method of a column has the same wall-clock budget on one CPU core instead of days on GPUs. Preset `cpu`: one smaller
  network for all (five layers of 128 ReLUs that see three Fourier frequencies; MetaSDF's from distances see seven, DeepSDF does better with three,
  docs/performance.md), fewer points and shapes a step, cosine decay, averaged weights, Muon; and shapes reflected at their planes of symmetry, but
  for DeepSDF, whose codes stand for shapes as they are (docs/method.md).
- Points with normals are not in the paper. Screened Poisson, the classical way from these to a surface, is MeshLab's, octree depth 8, without any
  training; its signs are those of its mesh. MetaSDF takes each point, moved along its normal by up to 0.02 to either side, for a signed distance.
- MetaSDF, then steps of Adam: not in the paper. What the five steps found is refined on the same context (docs/method.md); DeepSDF's fit takes 800
  such steps, on a code.
- From distances, meshes of all methods are without the pieces where the context says that no surface can be (docs/extraction.md). Signs and IoU
  are of the fields as they are.
- Surfaces from a grid of {resolution} points a side (the paper: 256).
- The paper calls its numbers of chairs preliminary; MetaSDF's from the level set is missing there.
"""


def write_page(measured: Measured, path: Path) -> None:
    """docs/results.md from the cells that were measured."""
    text = ["# Results against the paper\n", "Written by `metasdf reproduce compare`; each line is a file of results/tables.\n"]
    for table, title in (("table1", "2D, in distribution"), ("table2", "2D, out of distribution")):
        if own := [each for each in measured.fields if each.line.cell.asks.table == table]:
            text += [f"## {title}\n", *_table(HEAD, comparison(own)), *_table(AGAINST_HEAD, against(own))]
    for table, title in (("table3", "3D, in distribution"), ("table4", "3D, out of distribution")):
        if surfaces := [each for each in measured.surfaces if each.line.cell.asks.table == table]:
            text += [f"## {title}\n", *_table(SURFACE_HEAD, surface_comparison(surfaces))]
            text += [*_table(RATIO_HEAD, ratios(surfaces)), *_data(surfaces), ""]
    lines = [each.line for each in measured.fields] + [each.line for each in measured.surfaces]
    where = sorted({f"{line.hardware} (commit {line.commit}, preset {line.preset})" for line in lines})
    text += ["Measured on " + "; ".join(where) + "."]
    if measured.fields:
        text += ["\n## Departures from the paper, 2D\n", DEPARTURES.rstrip()]
    if measured.surfaces:
        resolution = " or ".join(f"{n:,}" for n in sorted({s.resolution for s in measured.surfaces if s.line.cell.method != UNTRAINED}))
        text += ["\n## Departures from the paper, 3D\n", SURFACE_DEPARTURES.format(resolution=resolution).rstrip()]
    write_whole(path, ("\n".join(text) + "\n").encode())


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    """No table where there is no row."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""] if lines else []


def _data(lines: Sequence[Surfaces]) -> Iterator[str]:
    """On what each column was trained and tested."""
    seen = set()
    for s in _by_column([s for s in lines if s.line.cell.method != UNTRAINED]):
        leaks = f"; **{s.near_copies:,} near-copies of test shapes are in training**" if s.near_copies else ""
        fact = (f"- {s.line.cell.asks.title}: trained on {s.trained_on}, tested on {s.tested_on}, from {s.context:,} points, "
                f"{s.line.seconds / 60:.0f} minutes of training{leaks}.")  # fmt: skip
        if fact not in seen:
            seen.add(fact)
            yield fact
