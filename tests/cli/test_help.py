"""Help, hints at the right option, numbers such as 32k, and what a shell completes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from anoscan.cli.app import app
from anoscan.cli.hints import for_option
from anoscan.cli.options import counted
from anoscan.core import registry
from anoscan.model import store
from anoscan.scoring.choices import MAP_FORMS, SCORES
from tests.cli.test_cli import Run, _source, run
from tests.conftest import Digits
from tests.model.test_store import add

__all__ = ["run"]  # a fixture

COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def options(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE))


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "score"])
def test_help_shows_the_basic_options_and_help_all_shows_all(run: Run, command: str) -> None:
    found = COMMANDS[command]
    basic, every = options(run(command, "--help").out), run(command, "--help-all").out
    assert len(found.basic) == 10
    assert basic == {*found.basic, "--help", "--help-all"}
    assert options(every) == {name for p in found.params for name in p.opts if name[:2] == "--"} | {
        "--help"
    }
    left = len(options(every)) - len(basic)
    assert f"{left} further options: anoscan {command} --help-all" in " ".join(
        run(command, "--help").out.split()
    )
    assert "further options" not in every
    # The order and the panels of what --help shows are those of --help-all.
    shown = [line for line in every.splitlines() if re.match(r"  --|\w+:$", line)]
    short = run(command, "--help").out.splitlines()
    kept = [line for line in short if re.match(r"  --\w", line)]
    names = [line.split()[0] for line in shown if line.startswith("  --")]
    assert [line.split()[0] for line in kept] == [
        name for name in names if name in {*found.basic, "--help-all"}
    ]


@pytest.mark.parametrize("command", ["train", "score"])
def test_help_ends_with_three_examples_whose_options_exist(run: Run, command: str) -> None:
    text = run(command, "--help").out
    examples = COMMANDS[command].examples
    assert len(examples) == 3
    known = options(run(command, "--help-all").out)
    for example in examples:
        assert f"  {example}\n" in text
        assert set(re.findall(r"--[a-z-]+", example)) <= known
    assert text.rstrip().splitlines()[-1] == "Documentation: docs/cli.md in the repository"


def test_help_all_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("train", "score"):
        shown = CliRunner().invoke(app, [command, "--help-all"], prog_name="anoscan")
        assert shown.exit_code == 0
        assert max(map(len, shown.output.splitlines())) <= 80


# --- hints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "x", "--epochs", "5"), "--images-shown N: the length is counted in images"),
        (("drift", "m", "x", "--epochs", "5"), "anoscan train --images-shown N"),
        (("score", "x", "--threshold", "2"), "--false-alarm-rate auto|SHARE: the threshold"),
        (("eval", "x", "--threshold=2"), "--false-alarm-rate auto|SHARE: the threshold"),
        (("calibrate", "m", "--threshold", "2"), "--false-alarm-rate auto|SHARE: the threshold"),
        (("train", "x", "--threshold", "2"), "anoscan calibrate MODEL --false-alarm-rate SHARE"),
        (("score", "x", "--output-dir", "d"), "--residuals DIR, --maps DIR or --report FILE."),
        (("eval", "x", "--output", "d"), "You may mean --report FILE or --plots DIR."),
        (("sample", "--output-dir", "d"), "You may mean --output DIR."),
        (("train", "x", "--output", "d"), "--name NAME. Models are kept in the store"),
        (("drift", "m", "x", "--output", "d"), "--json > FILE keeps them."),
    ],
)
def test_an_option_of_other_programs_brings_the_right_one(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert said in result.err
    assert "Possible options" not in result.err
    assert result.err.count("\n") == 1


def test_options_that_hints_name_elsewhere_exist() -> None:
    for given in ("--epochs", "--threshold"):
        hint = for_option(given, COMMANDS["doctor"])
        assert hint is not None
        command, option = re.findall(r"anoscan (\w+).*?(--[a-z-]+)", hint)[0]
        assert option in {name for p in COMMANDS[command].params for name in p.opts}


def test_other_unknown_options_are_said_as_before(run: Run) -> None:
    result = run("score", "x", "--modle", "m")
    assert result.code == 2
    assert "--model" in result.err
    assert "See anoscan score --help." in result.err


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("32000", 32_000), ("32k", 32_000), ("1.5M", 1_500_000), ("1.5m", 1_500_000), ("2K", 2_000),
     ("0.5k", 500), ("0", 0), ("-5", -5), (" 7 ", 7)],
)  # fmt: skip
def test_numbers_of_images_may_be_in_thousands_and_millions(text: str, number: int) -> None:
    assert counted(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "1.00001k", "1e5", "3G", "1,000", "nan", "٣k"])
def test_what_is_no_number_of_images_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="32k"):
        counted(text)


def test_every_number_of_images_of_a_training_may_be_so(run: Run, few: Digits) -> None:
    names = ("images_shown", "rotation_images_shown", "encoder_images_shown",
             "reconstruction_images_shown", "ema_images")  # fmt: skip
    given = [(f"--{name.replace('_', '-')}", f"{n}k") for n, name in enumerate(names, 1)]
    arguments = [part for pair in given for part in pair]
    config = run("train", few.normal, *arguments, "--dry-run").json["config"]
    assert [config[name] for name in names] == [1000, 2000, 3000, 4000, 5000]
    refused = run("train", few.normal, "--images-shown", "many")
    assert refused.code == 2
    assert "32k or 1.5M" in refused.err
    assert run("suspects", few.normal, "--images-shown", "1.5").code == 2


# --- completion -----------------------------------------------------------------------------------


def completed(shell: str, typed: str) -> set[str]:
    """What a shell is given for a line that ends where the user presses the tabulator."""
    words = typed.split(" ")
    asking = {
        "bash": {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": typed},
        "fish": {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        "powershell": {
            "_TYPER_COMPLETE_ARGS": typed,
            "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1],
        },
    }[shell]
    program = (
        "import sys; sys.argv = ['anoscan']\n"
        "from anoscan import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": _source(), "_ANOSCAN_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment | asking,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout
    if shell == "zsh":
        return set(re.findall(r'^(?:_arguments \'\*: :\(\()?"([^"]*)"', text, re.MULTILINE))
    return {re.split(r"\t|:::", line)[0] for line in text.splitlines() if line}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_completes_models_choices_and_formats(shell: str) -> None:
    for name in ("bolts", "bottles", "nuts"):
        add(name)
    store.remove("bottles")
    assert completed(shell, "anoscan score x --model bo") == {"bolts"}
    assert completed(shell, "anoscan models restore bo") == {"bolts", "bottles"}
    assert completed(shell, "anoscan train x --architecture ") == {
        "auto",
        *registry.names("architectures"),
    }


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("calibrate ", {"bolts"}),
        ("drift b", {"bolts"}),
        ("eval --model b", {"bolts"}),
        ("suspects x --model b", {"bolts"}),
        ("sample b", {"bolts"}),
        ("models show b", {"bolts"}),
        ("models use b", {"bolts"}),
        ("models export b", {"bolts"}),
        ("models rename b", {"bolts"}),
        ("score --score ", set(SCORES)),
        ("score --device c", {"cpu", "cuda"}),
        ("score --maps-format ", set(MAP_FORMS)),
        ("score --maps-format npy,t", {"npy,tiff"}),
        ("train --objective w", {"wgan", "wgan-gp"}),
        ("train --encoder ", set(registry.names("encoders"))),
        ("train --mapping iz", {"izi", "izi_f"}),
        ("train --backbone e", {"efficientnet-lite0"}),
        ("train --augment shift,b", {"shift,brightness"}),
        ("train --channels ", {"auto", "1", "3"}),
        ("train --precision b", {"bfloat16"}),
        ("train --redo ", {"encoder"}),
        ("train --help-", {"--help-all"}),
        ("score --roi ", set()),
    ],
)
def test_what_is_completed(typed: str, expected: set[str]) -> None:
    add("bolts")
    assert completed("bash", f"anoscan {typed}") == expected


def test_a_store_that_cannot_be_read_completes_nothing() -> None:
    folder = store.models_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file in the way")
    assert completed("bash", "anoscan score --model b") == set()


def test_bash_itself_completes_a_model(tmp_path: Path) -> None:
    """The script that --show-completion prints, in the shell it is for."""
    add("bolts")
    program, start = tmp_path / "anoscan", "from anoscan.cli import main; main()"
    start = f"import sys; sys.argv = ['anoscan']; {start}"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}"\n')
    program.chmod(0o755)
    from typer._completion_shared import get_completion_script

    script = get_completion_script(
        prog_name="anoscan", complete_var="_ANOSCAN_COMPLETE", shell="bash"
    )
    ask = 'COMP_WORDS=(anoscan score --model b); COMP_CWORD=3; _anoscan_completion anoscan; echo "${COMPREPLY[@]}"'  # noqa: E501
    environment = os.environ | {
        "PYTHONPATH": _source(),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.strip() == "bolts"
