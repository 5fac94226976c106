"""The command ``anoscan export``: a model as a file that other programs run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from anoscan.cli.options import Force, Json, Named, Quiet, Rate, Workers, finish, option
from anoscan.cli.settings import rate_named

if TYPE_CHECKING:
    from anoscan.core.results import ExportReport

_SOURCES = {"images": "given", "training": "of the training", "thumbnails": "kept in the model"}


def export(
    model: Named,
    output_folder: Annotated[
        Path, option("--output", "-o", metavar="DIR", help="Write model.onnx and card.json there.")
    ],
    to: Annotated[
        str, option("--format", metavar="onnx", help="Write this format.", default="onnx")
    ] = "onnx",
    images: Annotated[
        list[Path] | None,
        option(
            "--images",
            metavar="PATH",
            help="Check the file with images of this folder or file. May be repeated.",
            default="those of the training",
        ),
    ] = None,
    false_alarm_rate: Rate = None,
    force: Force = False,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as an ONNX file, checked on real images.

    Example: anoscan export bolts --format onnx --output ./bolts-onnx
    """
    from anoscan.cli.output import Output
    from anoscan.export import graph, onnx_file
    from anoscan.scoring.choices import ScoreRequest
    from anoscan.training import health

    onnx_file.check_format(to)
    request = ScoreRequest(false_alarm_rate=rate_named(false_alarm_rate))
    graph.check_installed("export")
    output = Output(as_json=as_json, quiet=quiet)
    judge, reference = onnx_file.read(model, workers)
    for warning in health.warnings_of(reference.name, judge.model.metadata):
        output.caution(warning)
    output.note("recording the graph and checking it, which may take a minute")
    report = onnx_file.export(
        judge, reference, output_folder, request, images=images or (), force=force
    )
    output.emit(report, _render)
    finish(output, report.skipped)


def _render(report: ExportReport) -> Iterator[str]:
    parity = report.parity
    yield f"{report.file} ({report.bytes / 1e6:.1f} MB, opset {report.opset})"
    yield report.card
    largest = ", ".join(f"{name} {value:.1g}" for name, value in parity.largest_difference.items())
    yield (
        f"checked with {parity.images} images {_SOURCES[parity.source]} and "
        f"{parity.with_defects} copies with defects, of which {parity.anomalous} are anomalous: "
        "verdicts and ranks are equal"
    )
    yield f"largest differences: {largest}"
