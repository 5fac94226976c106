"""The program ``anoscan``: its commands, and the exit code of every failure.

Nothing here imports torch or scikit-learn before a command runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, TextIO

import typer

import anoscan
from anoscan.cli import hints, signals, streams, together
from anoscan.cli.commands import calibrate, drift, models, retrain, sample, suspects, train
from anoscan.cli.commands.demo import demo
from anoscan.cli.commands.doctor import doctor
from anoscan.cli.commands.evaluate import evaluate
from anoscan.cli.commands.export import export
from anoscan.cli.commands.score import score
from anoscan.cli.commands.trend import trend
from anoscan.cli.commands.watch import watch
from anoscan.cli.options import SETTINGS, Command, output_of
from anoscan.core.errors import AnoscanError, AnoscanWarning, ExitCode, ProcessLost, UsageError

app = typer.Typer(
    name="anoscan",
    help="Find the odd image out: learn from a folder of normal images, then rank others.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    **SETTINGS,
)
# Typer has no public name for the base class of its errors about wrong usage.
_WrongUsage: type[Any] = typer.BadParameter.__bases__[0]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"anoscan {anoscan.__version__}\n")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    models.help_without_command(context)
    together.check_command(context.invoked_subcommand)


_COMMANDS: tuple[Callable[..., None], ...] = (
    train.train,
    score,
    watch,
    evaluate,
    sample.sample,
    calibrate.calibrate,
    drift.drift,
    retrain.retrain,
    trend,
    export,
    suspects.suspects,
    demo,
    doctor,
)


class _Train(Command):
    basic = (
        "--name",
        "--size",
        "--patches",
        "--backbone",
        "--images-shown",
        "--calibration-folds",
        "--resume",
        "--force",
        "--device",
        "--json",
    )
    examples = (
        "anoscan train ./normal_imgs --name bolts",
        "anoscan train ./large_photos --patches 20k --images-shown 64k",
        "anoscan train ./few_imgs --backbone efficientnet-lite0 --calibration-folds 5",
    )


class _Score(Command):
    basic = (
        "--model",
        "--false-alarm-rate",
        "--top",
        "--fail-on-anomaly",
        "--residuals",
        "--report",
        "--maps",
        "--device",
        "--json",
        "--output",
    )
    examples = (
        "anoscan score ./queries --top 20 --residuals ./pictures",
        "anoscan score ./queries --model bolts --false-alarm-rate 1% --report page.html",
        "anoscan score ./queries --fail-on-anomaly --json > result.json",
    )


_CLASSES: dict[Callable[..., None], type[Command]] = {train.train: _Train, score: _Score}
for command in _COMMANDS:
    name = "eval" if command is evaluate else None
    app.command(name=name, cls=_CLASSES.get(command, Command))(command)

model_commands = typer.Typer(
    help="List, show and move trained models.",
    rich_markup_mode=None,
    invoke_without_command=True,
    **SETTINGS,
)
model_commands.callback()(models.help_without_command)
app.add_typer(model_commands, name="models")
_MODELS: dict[str, Callable[..., None]] = {
    "list": models.list_models,
    "show": models.show,
    "use": models.use,
    "history": models.history,
    "restore": models.restore,
    "remove": models.remove,
    "rename": models.rename,
    "export": models.export,
    "import": models.import_model,
}
for title, command in _MODELS.items():
    model_commands.command(name=title, cls=Command)(command)


def main() -> NoReturn:
    """Run the command line; `_run` or `typer.Exit` decides every exit code."""
    streams.prepare()
    with signals.end_cleanly(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = _run()
    streams.flush_stdout()
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False) or ExitCode.DONE
        if lost := streams.flush_stdout():
            return _unwritten(lost)
    except _WrongUsage as error:
        command = error.ctx.command_path if error.ctx else "anoscan"
        option = getattr(error, "option_name", None)
        hint = hints.for_option(option, error.ctx.command) if option and error.ctx else None
        # The program's own guess is an option that is spelt alike.
        message = error.message if hint else error.format_message()
        message = message if message.endswith("?") else message.rstrip(".") + "."
        return _fail(UsageError(message, hint=hint or f"See {command} --help."))
    except AnoscanError as error:
        return _fail(error)
    except OSError as error:
        return _refused(error)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception:
        return _bug()
    if code == ExitCode.INTERRUPTED and not together.silent():
        output_of(False, False).note("interrupted")
    return int(code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of anoscan in one line, and any other as Python does."""
    if issubclass(category, AnoscanWarning):
        output_of(False, False).warn(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(error: AnoscanError) -> int:
    if isinstance(error, ProcessLost) or not together.silent():
        output_of(False, False).error(error)
    return error.exit_code


def _bug() -> int:
    traceback.print_exc()
    sys.stderr.write("This is a bug in anoscan: please report it with the lines above.\n")
    return ExitCode.BUG


def _refused(error: OSError) -> int:
    """Report that the system refused, as with a full disk."""
    if error.filename == streams.STDOUT or isinstance(error, BrokenPipeError):
        return _unwritten(error)
    if error.errno is None:  # not an error of the system
        return _bug()
    if error.filename:
        return _fail(AnoscanError(f"{error.filename}: {error.strerror}."))
    return _fail(
        AnoscanError(
            f"the system refused to read or write: {error.strerror}.",
            hint=f"Temporary files are in {tempfile.gettempdir()}: see that it has room.",
        )
    )


def _unwritten(error: OSError) -> int:
    if not isinstance(error, BrokenPipeError):  # a reader that went away, such as head, knows it
        _fail(AnoscanError(f"cannot write to stdout: {streams.reason(error)}."))
    return ExitCode.FAILED
