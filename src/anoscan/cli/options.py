"""Options that commands share, the layout of ``--help``, and the end of a command.

Help is plain text in sections. Rich's boxes take longer to import than everything else that
``--help`` does, and they wrap badly in a log.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from anoscan.cli.completion import Complete, choices, models
from anoscan.cli.completion import listed as listed_words
from anoscan.core.config import DEVICES, IMAGES, PRECISIONS
from anoscan.core.errors import AnoscanWarning, ExitCode, UsageError
from anoscan.scoring.choices import (
    DEFAULT_MAP_FORMS,
    DEFAULT_SCORE,
    DISCRIMINATION_LOSSES,
    FEWEST_ABOVE,
    MAP_FORMS,
    MAPPINGS,
    RATES,
    SCORES,
    STEPS,
    map_forms,
)

if TYPE_CHECKING:
    from anoscan.cli.output import Output
    from anoscan.core.results import ScoreReport, Skipped
    from anoscan.detector import Detector
    from anoscan.model.store import Default
    from anoscan.report.map_files import MapFiles


DEFAULT_MODEL = "the one that models use pinned, or else the one trained last"
MACHINE, OUTPUT = "Machine", "Output"

DOCUMENTATION = "docs/cli.md in the repository"
_ALL = "anoscan.help_all"  # in the context: whether --help-all was given
SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}}


class Command(TyperCommand):
    """Command whose plain-text help has a section for each panel of options.

    It names arguments itself, because versions of Typer name them differently.

    Attributes
    ----------
    basic : tuple of str
        The options that ``--help`` shows, where ``--help-all`` shows all; by default all.
    examples : tuple of str
        Command lines to end the help with.
    """

    basic: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """List the arguments after the options; PATH... takes several, [PATH] may be left out."""
        pieces = ["[OPTIONS]"]
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                name = f"{parameter.metavar}{'...' * (parameter.nargs != 1)}"
                pieces.append(name if parameter.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options under the titles of their panels."""
        sections: dict[str, list[tuple[str, str]]] = {}
        left = 0
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                sections.setdefault("Arguments", []).append((parameter.metavar or "", record[1]))
                continue
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            rows = sections.setdefault(title, [])  # in the same order whatever is shown
            if self._shown(parameter, ctx):
                rows.append(record)
            else:
                left += 1
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if left:
            with formatter.section("More"):
                formatter.write_text(f"{left} further options: {ctx.command_path} --help-all")

    def _shown(self, parameter: Any, ctx: Any) -> bool:
        always = {"--help", "--help-all", *self.basic}
        return not self.basic or _ALL in ctx.meta or not always.isdisjoint(parameter.opts)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, one a line, and where the documentation is."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")
            formatter.write(f"\nDocumentation: {DOCUMENTATION}\n")


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit()


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        callback=_show_all,
        is_eager=True,
        expose_value=False,
        help="Show all options and exit.",
    ),
]


def option(
    *names: str,
    help: str,
    default: object = None,
    metavar: str | None = None,
    panel: str = "",
    complete: Complete | None = None,
    parser: Callable[[str], Any] | None = None,
) -> Any:
    """Declare an option whose help ends with its default, which may be given in words.

    `complete` returns what a shell may complete; by default it is the words of the metavar.
    `parser` makes a value of the text, and raises ValueError for a wrong one.
    """
    if default is not None:
        help = f"{help} [default: {default}]"
    return typer.Option(
        *names,
        help=help,
        metavar=metavar,
        show_default=False,
        rich_help_panel=panel or None,
        autocompletion=complete or choices(metavar),
        parser=parser,
    )


def counted(text: str) -> int:
    """Read a number of images, such as 32000, 32k or 1.5M.

    Raises
    ------
    typer.BadParameter
        For anything else, and for a part of an image.
    """
    found = _COUNT.fullmatch(text.strip())
    number = Decimal(found[1]) * _TIMES[found[2].lower()] if found else Decimal("0.5")
    if number != int(number):
        raise typer.BadParameter(f"{text!r} is no number of images, such as 32000, 32k or 1.5M.")
    return int(number)


_COUNT = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)([kKmM]?)")
_TIMES = {"": 1, "k": 1_000, "m": 1_000_000}


def listed(choices: dict[str, str]) -> str:
    """Write choices and their descriptions as sentences."""
    return " ".join(f"{name}: {summary}." for name, summary in choices.items())


Every = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Take every N-th frame of video files only.",
        rich_help_panel=IMAGES,
    ),
]
Json = Annotated[bool, option("--json", help="Print one JSON document.", panel=OUTPUT)]
Quiet = Annotated[
    bool,
    option(
        "--quiet",
        "-q",
        help="Write no notes, no warnings about the model, and no progress.",
        panel=OUTPUT,
    ),
]
Force = Annotated[bool, option("--force", help="Replace what is there.")]
Device = Annotated[
    str,
    option(
        help="Compute on this device.", metavar="|".join(DEVICES), default="auto", panel=MACHINE
    ),
]
Precision = Annotated[
    str,
    option(
        help="Train in this precision; scoring is always in float32.",
        metavar="|".join(PRECISIONS),
        default="auto",
        panel=MACHINE,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Decode so many images at a time. [default: one a core, at most 8]",
        rich_help_panel=MACHINE,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Measure so many images in one pass; scores do not depend on it.",
        rich_help_panel=MACHINE,
    ),
]
Model = Annotated[
    str | None,
    option(
        help="Use the model of this name or path.",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        complete=models,
    ),
]
Models = Annotated[
    list[str] | None,
    option(
        "--model",
        help="Use the model of this name or path; further ones are compared with the first.",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        complete=models,
    ),
]
Report = Annotated[
    Path | None,
    option(
        "--report",
        metavar="FILE",
        help="Write an HTML page of all images there, to sort, filter and look at.",
        panel=OUTPUT,
    ),
]
ReportAssets = Annotated[
    bool,
    option(
        "--report-assets",
        help="Keep the pictures of the page in a folder beside it, NAME-files; they are larger.",
        panel=OUTPUT,
    ),
]
RoiMask = Annotated[
    Path | None,
    option(
        "--roi",
        help="Leave out what is black in this mask, which is stretched over the images.",
        metavar="MASK",
        panel=IMAGES,
    ),
]
_RATES = ", ".join(f"{100 * rate:g}" for rate in RATES)
Rate = Annotated[
    str | None,
    option(
        help="Call about this share of normal images anomalous, such as 0.01 or 1%. auto: the "
        f"lowest of {_RATES} % above whose threshold at least {FEWEST_ABOVE} held-out normals lie.",
        metavar="auto|SHARE",
        default="the model's own, auto unless calibrate set another",
    ),
]
ScoreName = Annotated[
    str,
    option(
        "--score",
        help="Make the score like this. "
        + listed({score.name: score.summary for score in SCORES.values()}),
        metavar="|".join(SCORES),
        default=DEFAULT_SCORE,
    ),
]
Mapping = Annotated[
    str,
    option(
        help="Find the latent of an image like this: residuals and the scores paper and anogan "
        "depend on it. " + listed(MAPPINGS),
        metavar="|".join(MAPPINGS),
        default="encoder",
    ),
]
DiscriminationLoss = Annotated[
    str,
    option(
        help="Ask this of the discriminator in a search. " + listed(DISCRIMINATION_LOSSES),
        metavar="|".join(DISCRIMINATION_LOSSES),
        default="feature",
    ),
]
SearchSteps = Annotated[
    int | None,
    option(
        help="Take so many steps in a search.",
        metavar="N",
        default=", ".join(f"{steps} for {mapping}" for mapping, steps in STEPS.items()),
    ),
]
Maps = Annotated[Path | None, option(metavar="DIR", help="Write anomaly maps there.", panel=OUTPUT)]
MapsFormat = Annotated[
    str | None,
    option(
        metavar="LIST",
        complete=listed_words(list(MAP_FORMS)),
        help=f"Write maps in these forms, with commas between. {listed(MAP_FORMS)}",
        default=DEFAULT_MAP_FORMS,
        panel=OUTPUT,
    ),
]
SearchSeed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        metavar="N",
        help="Seed of the latent that a search starts from.",
        rich_help_panel=MACHINE,
    ),
]


def load(
    model: str | None,
    device: str,
    workers: int | None,
    roi: Path | None,
    output: Output,
    runtime: str = "torch",
) -> Detector:
    """Load the model; note which and why if `model` is None, and say what failed checks affect."""
    from anoscan.detector import Detector
    from anoscan.model import store
    from anoscan.training import health

    chosen = store.default() if model is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnoscanWarning)  # they are printed below
        path = chosen.path if chosen else model
        detector = Detector.load(path, device=device, workers=workers, roi=roi, runtime=runtime)
    if chosen is not None:
        output.note(_why(chosen))
    for warning in health.warnings_of(detector.reference.name, detector.model.metadata):
        output.caution(warning)
    return detector


def _why(chosen: Default) -> str:
    name = chosen.path.stem
    if chosen.pinned:
        return f"using the model that is pinned: {name}"
    when = f"{chosen.trained:%Y-%m-%d %H:%M} UTC"
    return f"using the model trained last: {name} ({when}; `anoscan models use` pins another)"


def map_files(folder: Path | None, forms: str | None) -> MapFiles | None:
    """Return the writer of the maps that --maps and --maps-format ask for; None for no maps.

    Raises
    ------
    UsageError
        For forms without a folder, or a form that does not exist.
    """
    if folder is None:
        if forms is not None:
            raise UsageError("--maps-format needs --maps DIR.")
        return None
    wanted = map_forms(forms or DEFAULT_MAP_FORMS)
    from anoscan.report.map_files import MapFiles

    return MapFiles(folder, wanted)


def finish(
    output: Output, skipped: Sequence[Skipped], *, alarm: bool = False, listed: bool = False
) -> None:
    """Report skipped files, unless they are `listed`, and exit with the code of docs/cli.md.

    Raises
    ------
    typer.Exit
        With `ExitCode.ANOMALY` for an `alarm`, else `SKIPPED` if files were skipped.
    """
    if not listed:
        output.skipped(skipped)
    if alarm:
        raise typer.Exit(ExitCode.ANOMALY)
    if skipped:
        raise typer.Exit(ExitCode.SKIPPED)


Named = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name or path of a model.", autocompletion=models)
]

TABLE_ROWS, DEMO_ROWS, SHOWN = 20, 10, 5


def first_images(report: ScoreReport, top: int | None, rows: int | None) -> ScoreReport:
    """Keep the first `top` images of a report; by default the first `rows`, or all for None."""
    return dataclasses.replace(report, images=report.images[: rows if top is None else top])


def output_of(as_json: bool, quiet: bool) -> Output:
    """Return both streams of a command; rich is imported only now."""
    from anoscan.cli.output import Output

    return Output(as_json=as_json, quiet=quiet)
