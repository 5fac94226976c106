"""What the documents promise, the program has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import anoscan
from anoscan.cli.app import app
from anoscan.core import registry
from anoscan.core.errors import ExitCode
from anoscan.scoring.choices import SCORES

ROOT = Path(__file__).parent.parent
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [name for family in registry.FAMILIES for name in registry.names(family)]
)
def test_every_choice_is_described_in_methods(name: str) -> None:
    assert f"`{name}`" in METHODS


def test_every_score_is_described_in_methods() -> None:
    for name in SCORES:
        assert f"`--score {name}`" in METHODS


def commands() -> list[tuple[str, set[str]]]:
    """Full command names and their long options."""
    found = []
    group = typer.main.get_command(app)

    def walk(command: object, name: str) -> None:
        children = getattr(command, "commands", {})
        for child, below in children.items():
            walk(below, f"{name} {child}")
        if not children:
            options = {o for p in command.params for o in p.opts if o.startswith("--")}  # type: ignore[attr-defined]
            found.append((name, options - {"--help"}))

    walk(group, "anoscan")
    return found


@pytest.mark.parametrize(("name", "options"), commands())
def test_every_command_and_option_is_documented(name: str, options: set[str]) -> None:
    assert f"`{name}" in CLI
    missing = {option for option in options if not re.search(rf"`{option}\b", CLI)}
    assert not missing


def test_option_tables_are_what_the_commands_say() -> None:
    run = [sys.executable, str(ROOT / "docs" / "option_tables.py"), "--check"]
    assert subprocess.run(run, check=False).returncode == 0


OTHERS = {"--help", "--version", "--install-completion", "--show-completion", "--logdir"}
OTHERS |= {"--runtime-env-json"}  # of `ray job submit`
# Options of torchrun and Slurm.
OTHERS |= {"--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port"}
OTHERS |= {"--rdzv-backend", "--nodes", "--ntasks-per-node", "--gpus-per-node"}
OTHERS |= {"--cpus-per-task", "--signal"}


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))
def test_no_document_names_an_option_that_there_is_not(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text(encoding="utf-8")))
    named -= set().union(*(options for _, options in commands()), OTHERS, {"--no-existing"})
    others = "python -m benchmarks" in page.read_text(encoding="utf-8")
    assert not {option for option in named if not (others and _of_benchmarks(option))}


def _of_benchmarks(option: str) -> bool:
    files = (ROOT / "benchmarks").glob("*.py")
    return any(f'"{option}"' in file.read_text(encoding="utf-8") for file in files)


@pytest.mark.parametrize("name", ["anoscan", *(name for name, _ in commands())])
def test_help_fits_eighty_columns_and_names_arguments_as_they_are_typed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], prog_name="anoscan")
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: {name} [OPTIONS]")
    assert max(map(len, shown.output.splitlines())) <= 80
    # What Typer would write of types, and of summaries that are too long for their line.
    assert not re.search(r"(?<!q)<|\{|\[\[|\w\.\.\.$", shown.output.split("\n", 1)[1], re.MULTILINE)


def test_every_exit_code_is_documented() -> None:
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", CLI, re.MULTILINE), code


def test_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", anoscan.__version__)
