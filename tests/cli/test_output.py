"""What a person sees, rendered 80 columns wide."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from anoscan.cli import output, tables
from anoscan.cli.output import CsvWriter, Lines, Output
from anoscan.core.errors import AnoscanError
from anoscan.core.files import defused, encodable, printable
from anoscan.core.progress import STAGES, Progress
from anoscan.core.results import (
    AtRate,
    AtThreshold,
    BestDice,
    ClassReport,
    ComparedModel,
    Confusion,
    DemoReport,
    DoctorReport,
    EvalImages,
    EvalReport,
    HealthCheck,
    HealthReport,
    ImageScore,
    ModelHealth,
    ModelReference,
    ModelsReport,
    ModelSummary,
    PixelReport,
    Region,
    ScoreReport,
    Skipped,
    Threshold,
    TrainedModel,
    TrainImages,
    TrainReport,
    json_parts,
    to_json,
)

NAME = "queries/part[bold]x\x1b[31m\n" + "long" * 40 + ".png"
SHOWN = "part[bold]x\\x1b[31m\\n"
CHECK = HealthCheck(name="diversity", verdict="warn", value=0.5, message="Words that wrap. " * 9)
REFERENCE = ModelReference(name="bolts", path="models/bolts.safetensors", sha256="0" * 64)
TRAIN = TrainReport(
    model=TrainedModel(
        name="bolts",
        path="models/bolts.safetensors",
        sha256="0" * 64,
        architecture="dcgan",
        objective="nonsaturating",
        encoder="ae",
        mapping="izi_f",
        backbone="none",
        size=64,
        patch_size=None,
        channels=3,
        latent_dim=64,
    ),
    images=TrainImages(found=123_456, trained=111_111, held_out=12_345, patches=None, skipped=()),
    images_shown={"gan": 96_000, "encoder": 48_000},
    seconds={"gan": 1.0, "encoder": 1.0, "calibration": 1.0, "total": 3.0},
    health=HealthReport(verdict="fail", checks=(CHECK,)),
    tracking="models/bolts.training",
    device="cpu",
    precision="float32",
    seed=0,
    anoscan_version="0.1.0",
)
IMAGE = ImageScore(
    rank=1,
    path=NAME,
    score=12345.678901234567,
    p_value=0.0001,
    q_value=0.5,
    verdict="anomalous",
    terms={"pixel": 1.0},
    regions=(Region(x=1, y=2, width=3, height=4, score=5.0, area=20, p_value=0.01),),
    residual=None,
)
THRESHOLD = Threshold(
    score=3.0,
    false_alarm_rate=0.01,
    chosen="auto",
    effective_rate=0.0123,
    calibration_images=12_345,
    uncertainty=(0.008, 0.012),
    warning=None,
    at_other_rates=(
        AtRate(false_alarm_rate=0.02, threshold=2.5, anomalous=2345),
        AtRate(false_alarm_rate=0.1, threshold=1.5, anomalous=9876),
    ),
)
SCORE = ScoreReport(
    model=REFERENCE,
    score="calibrated",
    mapping="encoder",
    threshold=THRESHOLD,
    counts={"scored": 12_345, "anomalous": 1234, "skipped": 123},
    images=(IMAGE,),
    skipped=(),
    health=ModelHealth(verdict="ok", reconstructions="ok", messages=()),
)
AT = AtThreshold(
    score=3.0,
    false_alarm_rate=0.01,
    recall=0.966,
    precision=0.9,
    f1=0.9,
    confusion=Confusion(
        true_positive=1200, false_positive=123, false_negative=34, true_negative=12_222
    ),
)
PIXEL = PixelReport(
    auroc=0.98765,
    average_precision=0.5,
    aupro=0.87654,
    aupro_limit=0.3,
    best_dice=BestDice(dice=0.6, threshold=3.0),
    undefined=None,
    images=13_579,
    regions=2345,
    pixels=10**10,
    anomalous_pixels=10**8,
    without_mask=12,
)
EVAL = EvalReport(
    model=REFERENCE,
    images=EvalImages(normal=12_345, anomalous=1234, skipped=(), unlabelled=123, missing=12),
    auroc=0.98765,
    auroc_ci95=(0.9, 0.99),
    average_precision=0.5,
    undefined=None,
    threshold=THRESHOLD,
    at_threshold=AT,
    baselines={"mean_image": {"auroc": 0.5}, "pca": {"auroc": None}},
    terms={"pixel": {"auroc": 0.9}},
    pixel=PIXEL,
    classes=tuple(
        ClassReport(
            name=name,
            normal=12_345,
            anomalous=1234,
            against="all normals",
            auroc=0.98765,
            average_precision=0.5,
            false_alarm_rate=0.9876,
            recall=0.9876,
            pixel=PIXEL,
        )
        for name in (NAME, None)
    ),
    comparison=tuple(
        ComparedModel(
            model=REFERENCE,
            images=13_579,
            auroc=0.98765,
            auroc_ci95=(0.9, 0.99),
            average_precision=0.5,
            difference=-0.0123,
            difference_ci95=(-0.02, 0.001),
            at_threshold=AT,
            pixel=PIXEL,
            curves=None,
        )
        for _ in range(2)
    ),
)
MODELS = ModelsReport(
    models=(
        ModelSummary(
            name="bolts and nuts of the second shift",
            path="a",
            bytes=1_234_567,
            created_by="0.1.0",
            architecture="dcgan",
            objective="nonsaturating",
            size=128,
            channels=3,
            images=1_234_567,
            trained_at="2026-03-01T12:00:00Z",
        ),
        ModelSummary(name="x\x1b", path="b", bytes=3, created_by=None, problem="is damaged\n."),
    )
)
DOCTOR = DoctorReport(
    verdict="warn",
    machine={"system": "Linux " * 30, "devices": ["cpu", "cuda"], "memory_gb": None},
    versions={"torch": "2.14.1", "rich": None},
    store={"folder": NAME, "writable": True},
    images={"sizes": {"8x8": 120}},
    checks=(CHECK,),
)
DEMO = DemoReport(train=TRAIN, score=SCORE, eval=EVAL, output="my demo")
METADATA = {
    "name": NAME,
    "config": {"size": 16},
    "health": {"checks": [{"name": "a", "message": "b"}]},
}
ALL: dict[str, Any] = {
    type(report).__name__: report for report in (TRAIN, SCORE, EVAL, MODELS, DOCTOR, DEMO)
}


def rendered(report: Any, width: int = 80) -> str:
    """Text of a report; what is meant to be copied must fit, or be unbroken."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    parts = tables.model(report) if isinstance(report, dict) else tables.render(report)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return stream.getvalue()


@pytest.mark.parametrize("report", [*ALL.values(), METADATA], ids=[*ALL, "metadata"])
def test_reports_fit_80_columns_without_control_characters(report: Any) -> None:
    text = rendered(report)
    prose = [line for line in text.splitlines() if not line.startswith("  anoscan ")]
    assert max(map(cell_len, prose)) <= 80
    assert all(c.isprintable() or c == "\n" for c in text)
    # Only names are shortened, in the middle: their end can be read.
    cut = [line for line in text.splitlines() if "…" in line]
    assert all(re.search(r"…[\w. ]*(\.png| shift)", line) for line in cut), cut


CELL = {
    "kind": NAME,
    "size": 4,
    "images": 3,
    "auroc": {"anoscan": 0.912345678, NAME: 0.5},
    "pixel_auroc": {"anoscan": 0.712345678, NAME: 0.5},
}
TEST = {
    "defects": "synthetic",
    "normals": 50,
    "side": 16,
    "auroc": {"anoscan": 0.9},
    "pixel_auroc": {"anoscan": 0.7},
    "whole_auroc": {"anoscan": 1.0, NAME: 0.5},
    "sees_from": 4.0,
    "findings": [NAME],
    "cells": [CELL],
}


def test_a_self_test_of_a_model_is_a_table_and_whatever_is_in_the_file_stays_text() -> None:
    text = rendered({"self_test": TEST | {"side": "\x1b[31m"}})
    assert "4 px" in text
    assert "0.91" in text
    assert "0.9123" not in text
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize(
    "change",
    [
        {"cells": [CELL | {"size": [4]}]},
        {"cells": [CELL | {"auroc": {}}]},
        {"cells": [{"kind": "blob"}]},
        {"cells": 3},
        {"normals": "many"},
        {"whole_auroc": {}},
        {"findings": [7]},
        {"of another version": 1},
        {"whole_auroc": {"anoscan": 10**400}},
    ],
)
def test_a_self_test_that_nobody_knows_is_shown_as_it_is(change: dict[str, Any]) -> None:
    text = rendered({"self_test": TEST | change})
    assert "self test side" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_file_names_are_data_in_tables() -> None:
    for report in (SCORE, DOCTOR, METADATA):
        assert SHOWN in rendered(report, 300).replace("\n", "").replace(" ", "")
    assert "x\\x1b: is damaged\\n." in rendered(MODELS)


def test_a_row_is_one_line_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    Output().emit(SCORE)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[3:] == ["anomalous", "2,4", printable(NAME)] for line in lines)


def test_no_line_in_a_pipe_ends_in_spaces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    for report in (TRAIN, SCORE, EVAL):
        Output().emit(report)
    lines = capsys.readouterr().out.splitlines()
    assert any("12,345" in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []


def test_figures_of_an_evaluation_are_shown() -> None:
    text = rendered(EVAL)
    for figure in ("0.9877", "0.9000 to 0.9900", "96.6 %", "1.0 %", "12,345"):
        assert figure in text
    for figure in ("0.8765", "0.6000", "-0.0123", "-0.0200 to +0.0010", "12 anomalous images have"):
        assert figure in text
    assert "baseline: pca" in text


def test_hidden_rows_are_counted() -> None:
    assert "12,344 not listed" in rendered(SCORE)


def test_the_table_says_where_and_marks_what_is_below_the_level() -> None:
    text = rendered(SCORE)
    assert re.search(r"anomalous +2,4 ", text)
    assert "~" not in text
    below = dataclasses.replace(IMAGE.regions[0], below_level=True)
    normal = dataclasses.replace(IMAGE, verdict="normal", regions=())
    images = (dataclasses.replace(IMAGE, regions=(below,)), normal)
    text = rendered(dataclasses.replace(SCORE, images=images))
    assert re.search(r"anomalous +~2,4 ", text)
    assert "~ is the hottest place" in " ".join(text.split())
    assert "where" not in rendered(dataclasses.replace(SCORE, images=(normal,)))


def test_commands_of_the_demo_can_be_copied() -> None:
    text = rendered(DEMO)
    assert "anoscan score 'my demo'/queries --model models/bolts.safetensors" in text
    assert "--false-alarm-rate" not in text, "the rate is chosen as in the demo"


def test_the_foot_of_the_table_says_how_the_rate_was_chosen_and_what_others_would_call() -> None:
    text = " ".join(rendered(SCORE).split())
    assert "a false-alarm rate of 1.2 % (chosen automatically) on 12,345" in text
    assert text.endswith("At 2 %: 2,345 anomalous. At 10 %: 9,876.")
    given = dataclasses.replace(THRESHOLD, chosen="given", at_other_rates=None)
    text = " ".join(rendered(dataclasses.replace(SCORE, threshold=given)).split())
    assert "a false-alarm rate of 1.2 % on 12,345" in text
    assert "At " not in text


def test_an_empty_store_says_how_to_fill_it() -> None:
    assert "anoscan train FOLDER" in rendered(ModelsReport())


@pytest.mark.parametrize("report", ALL.values(), ids=ALL)
def test_every_report_is_one_strict_json_document(
    report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(as_json=True).emit(report)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["schema"] == report.schema
    assert captured.out.isascii()
    assert captured.err == ""


@pytest.mark.parametrize("report", ALL.values(), ids=ALL)
def test_a_document_in_parts_is_the_document(report: Any, tmp_path: Path) -> None:
    whole = json.dumps(to_json(report), indent=2, allow_nan=False, ensure_ascii=True) + "\n"
    assert "".join(json_parts(report)) == whole
    Output().save(report, tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="ascii") == whole


@given(st.text())
def test_printable_text_holds_nothing_that_a_terminal_obeys(name: str) -> None:
    assert printable(name).isprintable()


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"])))
def test_printable_keeps_what_can_be_shown(name: str) -> None:
    assert printable(name) == name


def test_bytes_that_are_not_utf8_are_shown_as_bytes() -> None:
    assert printable(b"\xff\xc3\xa4.png".decode("utf-8", "surrogateescape")) == "\\xffä.png"
    assert encodable("a\nb\udcff") == "a\nb\\xff"
    assert printable("a\nb\ud800") == "a\\nb\\ud800"


@given(st.text(min_size=1))
def test_no_csv_cell_is_a_formula(cell: str) -> None:
    assert defused(cell)[0] not in "=+-@\t\r\n"
    assert defused(cell).endswith(cell)


def test_csv_to_a_terminal_holds_no_control_characters() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        CsvWriter(["pixel"], stream).write(IMAGE)
    assert "\x1b" not in terminal.getvalue()
    assert NAME in pipe.getvalue()
    assert repr(IMAGE.score) in pipe.getvalue()


def test_errors_warnings_and_notes_go_to_stderr_in_one_line_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = Output()
    shown.error(AnoscanError("a [b]\x1b is\nwrong.", hint="Do c."))
    shown.warn("d\n" + "e" * 100)
    shown.note("f [red]g[/red] :smile:")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Error: a [b]\\x1b is\\nwrong. Do c.",
        "Warning: d\\n" + "e" * 100,
        "f [red]g[/red] :smile:",
    ]


def test_quiet_leaves_warnings_and_errors_but_says_nothing_of_the_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet = Output(quiet=True)
    quiet.note("note")
    quiet.caution("of the model")
    quiet.warn("warning")
    with quiet.progress() as report:
        report(Progress("gan", 5, 10, {}, 1.0, "went back"))
        report(Progress("gan", 10, 10, {}, 1.0))
    assert capsys.readouterr().err == "Warning: warning\n"


def test_many_skipped_files_are_cut_to_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    Output().skipped([Skipped(path=f"{i}\n.png", reason="empty file") for i in range(9)])
    err = capsys.readouterr().err
    assert "9 images could not be read" in err
    assert "4\\n.png: empty file" in err
    assert "5\\n.png" not in err
    assert "4 more" in err


def lines_of(reports_: list[tuple[float, Progress]]) -> list[str]:
    """Log lines for progress reports at given seconds."""
    now = [0.0]
    said: list[str] = []
    lines = Lines(said.append, lambda: now[0])
    for seconds, report in reports_:
        now[0] = seconds
        lines(report)
    return said


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end_of_a_stage() -> None:
    def at(images: int) -> Progress:
        return Progress("gan", images, 300, {"discriminator": 0.5, "generator": 1.25}, 1000.0)

    said = lines_of([(seconds / 10, at(seconds)) for seconds in range(1, 301)])
    assert [line.split(" images")[0] for line in said] == [
        "learning normal: 100 of 300",
        "learning normal: 200 of 300",
        "learning normal: 300 of 300",
    ]
    assert said[0].endswith("1,000/s discriminator 0.5 generator 1.25")


def test_what_follows_the_training_is_told_in_parts() -> None:
    report = Progress("calibration", 5, 5, {}, 0.0)
    assert lines_of([(0.1, report)]) == ["calibrating: 5 of 5 parts"]


def test_small_losses_are_not_shown_as_zero() -> None:
    report = Progress("gan", 5, 10, {"discriminator": -0.000412, "generator": 0.00123}, 0.0)
    assert lines_of([(11.0, report)])[0].endswith("discriminator -0.000412 generator 0.00123")


def test_a_note_of_training_is_always_logged() -> None:
    report = Progress("gan", 5, 10, {}, 0.0, "losses were not finite: went back")
    assert lines_of([(0.1, report)]) == ["learning normal: losses were not finite: went back"]


def test_bars_fit_80_columns() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    report: Callable[[Progress], None]
    with output._bars(console) as bars:
        report = output._Bars(bars, lambda note: None)
        for stage in STAGES:
            losses = {"discriminator": -12345.678, "generator": 12345.678, "encoder": 0.5}
            report(Progress(stage, 5_000_000, 10_000_000, losses, 12_345.0))
        bars.refresh()
        text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    assert max(map(cell_len, lines)) <= 80
    assert "discriminator -1.23e+04 generator 1.23e+04" in text
    assert "loss" not in text
    assert "learning to map" in text


def test_results_do_not_leave_by_stderr_while_bars_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = Output()
    with shown.progress(streams=True) as report:
        report(Progress("scoring", 1, 2, {}, 0.0))
        shown.line(IMAGE)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["path"] == NAME
    assert NAME not in captured.err


def test_stages_of_training_have_names() -> None:
    from anoscan.networks import encoder_stage, rotation_stage

    names = {
        value.name
        for module in (rotation_stage, encoder_stage)
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and hasattr(value, "name")
    }
    assert names
    assert names <= set(STAGES)
