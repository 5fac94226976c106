"""The shape of the package: imports run one way, and --help stays fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anoscan
from anoscan.core import registry

PACKAGE = Path(anoscan.__file__).parent
# A module may import only modules that stand before it.
ORDER = [
    "errors",
    "registry",
    "text",
    "writing",
    "results",
    "upkeep",
    "config",
    "scores",
    "runtime",
    "roi",
    "tiles",
    "resampling",
    "synthetic",
    "mismatch",
    "formats",
    "images",
    "interest",
    "pictures",
    "trainset",
    "census",
    "modelfile",
    "records",
    "store",
    "evaluation",
    "labelled",
    "queries",
    "localisation",
    "plots",
    "augmentation",
    "architectures",
    "encoders",
    "objectives",
    "mappings",
    "terms",
    "maps",
    "latent_search",
    "training",
    "tracking",
    "adversarial",
    "joint",
    "mapping",
    "calibration",
    "scoring",
    "selftest",
    "baselines",
    "neighbours",
    "model",
    "material",
    "checkup",
    "health",
    "regions",
    "atlas",
    "seen",
    "judgement",
    "album",
    "html_report",
    "terminal_pictures",
    "yardstick",
    "sensitivity",
    "suspicion",
    "assessment",
    "recalibration",
    "sampling",
    "keeper",
    "folds",
    "learn",
    "trial",
    "detector",
    "drift",
    "suspects",
    "demo",
    "doctor",
    "reports",
    "output",
    "options",
    "cli_train",
    "cli_models",
    "cli_sample",
    "cli_calibration",
    "cli_report",
    "cli",
    "__main__",
]


def modules() -> dict[str, list[Path]]:
    """Files of each top-level module or sub-package."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    folders = [path.parent for path in PACKAGE.glob("*/__init__.py")]
    return found | {folder.name: sorted(folder.glob("*.py")) for folder in folders}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "anoscan":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anoscan."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("anoscan.")}
    return names & set(ORDER)


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name) + 1])
    for path in modules()[name]:
        assert imported(path) <= allowed, path.name


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


def test_functions_and_modules_stay_readable() -> None:
    for paths in modules().values():
        for path in paths:
            text = path.read_text(encoding="utf-8")
            assert text.count("\n") <= 500, path.name
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    # A command's options are declarations: only the body counts.
                    length = (node.end_lineno or 0) - node.body[0].lineno
                    assert length <= 80, f"{path.name}:{node.name}"
