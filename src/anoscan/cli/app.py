"""The program ``anoscan``: its commands, and the exit code of every failure.

Nothing here imports torch or scikit-learn before a command runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

import anoscan
from anoscan.cli import signals, streams
from anoscan.cli.commands import calibrate, drift, models, sample, suspects, train
from anoscan.cli.commands.demo import demo
from anoscan.cli.commands.doctor import doctor
from anoscan.cli.commands.evaluate import evaluate
from anoscan.cli.commands.score import score
from anoscan.cli.commands.watch import watch
from anoscan.cli.options import SETTINGS, Command, output_of
from anoscan.core.errors import AnoscanError, ExitCode, UsageError

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


_COMMANDS: tuple[Callable[..., None], ...] = (
    train.train,
    score,
    watch,
    evaluate,
    sample.sample,
    calibrate.calibrate,
    drift.drift,
    suspects.suspects,
    demo,
    doctor,
)
for command in _COMMANDS:
    app.command(name="eval" if command is evaluate else None, cls=Command)(command)

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
    "remove": models.remove,
    "rename": models.rename,
    "export": models.export,
    "import": models.import_model,
}
for name, command in _MODELS.items():
    model_commands.command(name=name, cls=Command)(command)


def main() -> NoReturn:
    """Run the command line; `_run` or `typer.Exit` decides every exit code."""
    streams.prepare()
    with signals.end_cleanly():
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
        message = error.format_message()
        message = message if message.endswith("?") else message.rstrip(".") + "."
        return _fail(UsageError(message, hint=f"See {command} --help."))
    except AnoscanError as error:
        return _fail(error)
    except OSError as error:
        return _refused(error)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception:
        return _bug()
    if code == ExitCode.INTERRUPTED:
        output_of(False, False).note("interrupted")
    return int(code)


def _fail(error: AnoscanError) -> int:
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
