"""Rules of the design that no type checker sees: imports point one way, importing is cheap, data never becomes code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

SPEC = importlib.util.find_spec("metasdf")  # finds the package, checkout or wheel, without importing it
assert SPEC is not None and SPEC.origin is not None
PACKAGE = Path(SPEC.origin).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
OPTIONAL = ("tensorboard", "ray", "viser", "scikit-learn", "pymeshlab")  # packages of extras that the code imports where they are

# A unit is a module or a package directly under metasdf. Where a unit is listed, it may import these units of ours and those for ALL, no other.
ALL = {"errors", "files"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "fields": set(),
    "geometry": set(),
    "tasks": set(),
    "conditioning": {"fields", "heads", "tasks"},
    "progress": set(),
    "data": {"geometry", "tasks", "progress"},
    "metrics": {"geometry"},
}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


UNITS = {unit_of(path) for path in SOURCES}


def dotted_imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute names of all that is imported anywhere in the tree, inside functions too; `package` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_units(path: Path) -> set[str]:
    """Other units of ours that a file imports; a public name taken from the package root counts as `__init__`."""
    package = ".".join(["metasdf", *path.relative_to(PACKAGE).parts[:-1]])
    names = [name.split(".") for name in dotted_imports(ast.parse(path.read_text(encoding="utf-8")), package)]
    ours = {name[1] if name[1:] and name[1] in UNITS else "__init__" for name in names if name[0] == "metasdf"}
    return ours - {unit_of(path)}


def unit_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {unit: set() for unit in UNITS}
    for path in SOURCES:
        graph[unit_of(path)] |= imported_units(path)
    return graph


def test_import_resolution() -> None:
    tree = ast.parse("import metasdf.data\nfrom . import base\nfrom ..fields import field\ndef f():\n    from metasdf import tasks")
    found = set(dotted_imports(tree, "metasdf.conditioning"))
    assert found == {"metasdf.data", "metasdf.conditioning.base", "metasdf.fields.field", "metasdf.tasks"}


@pytest.mark.parametrize("unit", MAY_IMPORT)
def test_units_import_only_what_they_may(unit: str) -> None:
    assert unit in UNITS, f"the unit {unit} is gone: change the rule with it"
    assert unit_graph()[unit] <= MAY_IMPORT[unit] | ALL


def test_nobody_imports_the_command_line() -> None:
    assert [unit for unit, imported in unit_graph().items() if "cli" in imported and unit != "__main__"] == []


def test_imports_point_one_way() -> None:
    graph = {unit: imported - {"__init__"} for unit, imported in unit_graph().items() if unit != "__init__"}
    TopologicalSorter(graph).prepare()  # CycleError names the cycle


def test_all_that_is_imported_is_declared() -> None:
    """The demo and the users of the wheel have the declared dependencies only, not those of the tests."""
    lines = [line for line in requires("metasdf") or [] if "extra ==" not in line or line.startswith(OPTIONAL)]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
    modules = {name.split(".")[0] for path in SOURCES for name in dotted_imports(ast.parse(path.read_text(encoding="utf-8")), "metasdf")}
    distributions = packages_distributions()
    others = modules - sys.stdlib_module_names - {"metasdf"}  # a module that is one compiled file has, before Python 3.12, no known distribution
    missing = {m for m in others if not declared & {d.lower() for d in distributions.get(m, [m])}}
    assert missing == set()


HEAVY = {"torch", "numpy", "scipy", "matplotlib", "PIL"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\nprint(); print('modules', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()[1:]}


def test_importing_metasdf_is_cheap() -> None:
    assert modules_after("import metasdf") & (HEAVY | {"click", "rich"}) == set()


def test_help_is_cheap() -> None:
    assert modules_after("sys.argv = ['metasdf', '--help']; from metasdf.cli import main; main()") & HEAVY == set()


def test_measures_need_no_torch() -> None:
    assert "torch" not in modules_after("import metasdf.metrics")


UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Places where data could become code: unpickling, in any of its forms, and evaluated text."""
    for name in dotted_imports(tree, "metasdf"):
        if name.split(".")[0] in UNSAFE_MODULES or name == "torch.load":
            yield f"import of {name}"
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name in {"eval", "exec"} or keywords.get("allow_pickle", "False") != "False":
            yield f"line {call.lineno}: {ast.unparse(call)}"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"line {call.lineno}: torch.load without weights_only=True"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "from torch import load",
        "eval(text)",
        "exec(text)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=flag)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
    ],
)
def test_unsafe_code_is_seen(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


def test_safe_code_is_let_through() -> None:
    assert not list(unsafe(ast.parse("model.eval(); np.load(file, allow_pickle=False); torch.load(file, weights_only=True)")))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_data_never_becomes_code(path: Path) -> None:
    assert list(unsafe(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_trees_are_those_that_bear_flushed_denormals() -> None:
    """`geometry.nearest` says why; the same search elsewhere is a crash that no other test would see."""
    found = {str(path.relative_to(PACKAGE)) for path in SOURCES if re.search(r"\bc?KDTree\b", path.read_text(encoding="utf-8"))}
    assert found == {"geometry/nearest.py"}


def test_the_package_says_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
