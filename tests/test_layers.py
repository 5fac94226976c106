"""The shape of the package: imports run one way, and --help stays fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import anoscan
from anoscan.core import registry

PACKAGE = Path(anoscan.__file__).parent
# A package may import only packages that stand before it.
ORDER = [
    "core",
    "images",
    "networks",
    "dataset",
    "scoring",
    "model",
    "training",
    "evaluation",
    "report",
    "export",
    "scale",
    "trainer",
    "detector",
    "sklearn",
    "cli",
]
# Beside the order of the packages: rooms that need not know of each other.
APART = [("images", "networks"), ("dataset", "scoring"), ("evaluation", "report")]


def files(name: str) -> list[Path]:
    """Files of one entry of the order: a module, or a package with what lies below it."""
    single = PACKAGE / f"{name}.py"
    return [single] if single.exists() else sorted((PACKAGE / name).rglob("*.py"))


def module(path: Path) -> str:
    """Dotted name below ``anoscan``: ``images.formats`` for ``images/formats/__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for name in ORDER for path in files(name)}


def imported(path: Path, *, lazily: bool = True) -> set[str]:
    """Modules below ``anoscan`` that a file imports; without `lazily`, when it is imported itself.

    Imports under ``TYPE_CHECKING`` are for readers and type checkers alone: they count as lazy.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "anoscan":
            base = str(node.module).removeprefix("anoscan").removeprefix(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".removeprefix(".")
                names.add(whole if whole in MODULES else base)
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("anoscan.") for a in node.names if "anoscan." in a.name}
    return names - {""}


def test_every_entry_of_the_package_has_its_place_in_the_order() -> None:
    entries = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    entries |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert entries == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name) + 1])
    for one, other in APART:
        allowed -= {one} if name == other else {other} if name == one else set()
    for path in files(name):
        assert {found.split(".")[0] for found in imported(path)} <= allowed, path


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imported(path, lazily=False) & MODULES.keys() for name, path in MODULES.items()}
    # The package of the commands hands on what its module `app` defines, and imports it for that.
    graph = {name: found for name, found in graph.items() if name != "cli"}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {error.args[1]}")


def test_commands_do_not_import_the_application() -> None:
    for path in files("cli"):
        if path.name not in ("__init__.py", "app.py"):
            assert "cli.app" not in imported(path), path


EXPORTING = {"cli", "core.results"}


def test_packages_are_empty_but_for_those_that_hand_on_names_or_define_a_family() -> None:
    for name, path in MODULES.items():
        family = name.split(".")[-1] in {*registry.FAMILIES, "formats"}
        if path.name == "__init__.py" and name not in EXPORTING and not family:
            assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1, path


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["score"],
        ["eval"],
        ["models"],
        ["sample"],
        ["calibrate"],
        ["drift"],
        ["retrain"],
        ["export"],
        ["train", "--help-all"],
    ],
)
def test_help_imports_neither_torch_nor_scikit_learn(command: list[str]) -> None:
    program = (
        "import sys\n"
        "from anoscan.cli import app\n"
        f"try:\n    app({[*command, '--help']!r})\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'numpy', 'PIL', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_choice_describes_itself(family: str) -> None:
    assert registry.names(family)
    for name in registry.names(family):
        assert len(registry.summary(family, name)) > 20
        assert registry.load(family, name).paper


LONGEST_FUNCTION, LONGEST_CLASS, LONGEST_MODULE, MOST_PARAMETERS = 70, 250, 500, 8
# Commands, the one method whose keywords are the options of a command, and the estimator whose
# parameters are those: scikit-learn reads them from the signature.
MANY_OPTIONS = ("cli.commands", "detector", "sklearn")


def code_lines(node: ast.ClassDef | ast.FunctionDef) -> int:
    """Lines of a body without docstrings: those are as long as they have to be."""
    total = (node.end_lineno or 0) - node.body[0].lineno + 1
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner):
            total -= (inner.body[0].end_lineno or 0) - inner.body[0].lineno + 1
    return total


@pytest.mark.parametrize("name", MODULES)
def test_functions_classes_and_modules_stay_readable(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert max((getattr(node, "end_lineno", 0) for node in tree.body), default=0) <= LONGEST_MODULE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node) <= LONGEST_FUNCTION, node.name
            arguments = [a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)]
            counted = [name for name in arguments if name not in ("self", "cls")]
            assert len(counted) <= MOST_PARAMETERS or name.startswith(MANY_OPTIONS), node.name
        elif isinstance(node, ast.ClassDef):
            assert code_lines(node) <= LONGEST_CLASS, node.name
