"""Histories of ``score --append``, and what ``anoscan trend`` says of them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anoscan.core.errors import InputError, UsageError
from anoscan.core.results import PastRun
from anoscan.report import history, plots, trend
from anoscan.scoring import calibration
from tests.cli.test_cli import Run, _source, model_file, odd_folder, run
from tests.cli.test_disk import refuse
from tests.conftest import Digits

__all__ = ["model_file", "odd_folder", "run"]  # fixtures

pytest.importorskip("pyarrow")
FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg
ENDS = (".csv", ".parquet")
COLUMNS = [
    *("time", "model", "sha256", "folder", "threshold", "false_alarm_rate", "calibration_images"),
    *("scored", "anomalous", "skipped", "score_median", "score_q95", "p_value_median"),
]


def past(day: int, scores: np.ndarray, threshold: float = 1.6, **changes: Any) -> PastRun:
    """Run of one night, at a false-alarm rate of 5 % on 199 calibration images."""
    when = datetime.datetime(2026, 1, 1, 3, tzinfo=datetime.UTC) + datetime.timedelta(days=day)
    found = PastRun(
        time=when.isoformat(),
        model="bolts",
        sha256="ab" * 32,
        folder="/data/night",
        threshold=threshold,
        false_alarm_rate=0.05,
        calibration_images=199,
        scored=len(scores),
        anomalous=int((scores > threshold).sum()),
        skipped=1,
        score_median=float(np.median(scores)) if len(scores) else None,
        score_q95=float(np.quantile(scores, 0.95)) if len(scores) else None,
        p_value_median=0.5 if len(scores) else None,
    )
    return dataclasses.replace(found, **changes)


def nights(shifts: list[float], seed: int = 0, images: int = 100) -> list[PastRun]:
    random = np.random.default_rng(seed)
    threshold = calibration.threshold(random.standard_normal(199), 0.05)[0]
    return [
        past(day, random.standard_normal(images) + shift, threshold)
        for day, shift in enumerate(shifts)
    ]


def kept(file: Path, runs: list[PastRun]) -> Path:
    for each in runs:
        history.append(file, each)
    return file


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_a_history_is_read_as_it_was_written(end: str, tmp_path: Path) -> None:
    runs = [*nights([0, 1, 0]), past(3, np.empty(0)), past(4, np.ones(1), model="Größe, \udcff")]
    runs[-1] = dataclasses.replace(runs[-1], model="Größe, \\xff")
    assert history.read(kept(tmp_path / "new" / f"h{end}", runs)) == tuple(runs)


@pytest.mark.parametrize("end", ENDS)
def test_scoring_appends_a_row_that_agrees_with_the_document(
    end: str, run: Run, model_file: Path, digits: Digits, odd_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"h{end}"
    command = ["score", digits.queries, odd_folder / "zero.png", "--model", model_file]
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    document = run(*command, "--json", "--append", file).json
    run(*command, "--append", file, "--jsonl")
    run(*command, "--append", file, "-q", "--top", 1)
    first, *others = history.read(file)
    assert before <= datetime.datetime.fromisoformat(first.time)
    for other in others:
        assert dataclasses.replace(other, time=first.time) == first
    assert len(others) == 2
    scores = [image["score"] for image in document["images"]]
    assert (first.model, first.sha256) == (document["model"]["name"], document["model"]["sha256"])
    assert first.folder == f"{digits.queries}; {odd_folder / 'zero.png'}"
    counts = {"scored": first.scored, "anomalous": first.anomalous, "skipped": first.skipped}
    assert counts == document["counts"]
    assert (first.threshold, first.false_alarm_rate, first.calibration_images) == tuple(
        document["threshold"][name] for name in ("score", "effective_rate", "calibration_images")
    )
    assert first.score_median == np.median(scores)
    assert first.score_q95 == np.quantile(scores, 0.95)
    assert first.p_value_median == np.median([i["p_value"] for i in document["images"]])


def test_other_programs_read_the_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    runs = nights([0, 1])
    table = pandas.read_csv(kept(tmp_path / "h.csv", runs))
    assert list(table.columns) == COLUMNS == list(history.COLUMNS)
    assert table.anomalous.tolist() == [run.anomalous for run in runs]
    table = pandas.read_parquet(kept(tmp_path / "h.parquet", runs))
    assert list(table.columns) == COLUMNS
    assert table.time.dt.day.tolist() == [1, 2]


APPEND = """
import sys
from pathlib import Path
from anoscan.report import history
run = history.read(Path(sys.argv[1]))[0]
for _ in range(10):
    history.append(Path(sys.argv[2]), run)
"""


@pytest.mark.parametrize("end", ENDS)
def test_runs_that_append_at_once_lose_no_row(end: str, tmp_path: Path) -> None:
    first, file = kept(tmp_path / "first.csv", nights([0])), tmp_path / f"h{end}"
    environment = {**os.environ, "PYTHONPATH": _source()}
    running = [
        subprocess.Popen([sys.executable, "-c", APPEND, first, file], env=environment)
        for _ in range(4)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0, 0]
    assert len(history.read(file)) == 40


def test_a_history_that_a_spreadsheet_saved_can_be_continued(tmp_path: Path) -> None:
    runs = nights([0, 0])
    file = kept(tmp_path / "h.csv", runs)
    text = file.read_text(encoding="utf-8").rstrip("\n").replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # no newline at the end
    assert history.read(kept(file, runs[:1])) == (*runs, runs[0])


def test_a_link_to_a_history_stays_a_link(tmp_path: Path) -> None:
    file, link = kept(tmp_path / "a" / "h.csv", nights([0])), tmp_path / "h.csv"
    link.symlink_to(file)
    kept(link, nights([0]))
    assert link.is_symlink()
    assert len(history.read(file)) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("h.csv", b"path,score\na,1\n", "h.csv is no history of runs, or a row of it is damaged"),
        ("h.csv", ",".join(COLUMNS).encode() + b"\n2026,x\n", "is no history of runs"),
        ("h.csv", b"\xff\xfe\x00", "is no history of runs"),
        ("h.parquet", b"no parquet at all", "is no history of runs"),
    ],
)
def test_a_file_that_is_no_history_is_refused_and_kept(
    name: str, content: bytes, said: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="history"):
        history.append(tmp_path / name, nights([0])[0])
    for command in (["score", "none", "--append"], ["trend"]):
        result = run(*command, tmp_path / name)
        assert result.code == 1
        (line,) = result.err.splitlines()
        assert said in line
    assert (tmp_path / name).read_bytes() == content


def test_an_impossible_history_is_refused_before_anything_is_scored(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, said in (("h.txt", "is named .csv or .parquet"), (".", "is named .csv")):
        result = run("score", "none", "--append", name)
        assert result.code == 2
        assert said in result.err
    monkeypatch.setattr(history, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pyarrow is not installed"):
        history.check(Path("h.parquet"))
    history.check(Path("h.csv"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(tmp_path / "h.csv", nights([0]))
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        refuse(patch, lambda path: path.suffix == ".tmp", room=20)
        with pytest.raises(InputError, match=r"cannot write .*h\.csv: No space left on device"):
            history.append(file, nights([0])[0])
    assert file.read_bytes() == before
    monkeypatch.setattr(history, "_PATIENCE", 0.1)
    with (
        history.FileLock(tmp_path / ".h.csv.lock"),
        pytest.raises(InputError, match="another run holds its lock"),
    ):
        history.append(file, nights([0])[0])


# --- what it shows ------------------------------------------------------------------------------


def test_no_drift_is_said_of_nights_that_are_alike(tmp_path: Path) -> None:
    report = trend.report(kept(tmp_path / "h.csv", nights([0.0] * 20)))
    assert (report.verdict, report.recent, report.earlier) == ("steady", 7, 13)
    assert report.message.startswith("Steady: ")
    assert "their share has not changed" in report.message
    assert [check.drifted for check in report.checks] == [False, False, False]


@pytest.mark.parametrize(("shift", "word"), [(0.8, "risen"), (-0.8, "fallen")])
def test_scores_that_shift_drift(shift: float, word: str, tmp_path: Path) -> None:
    report = trend.report(kept(tmp_path / "h.csv", nights([0.0] * 14 + [shift] * 7)))
    assert report.verdict == "drift"
    assert f"their median score has {word} (p" in report.message
    assert report.checks[0].drifted == (shift > 0)
    assert ("more than a false-alarm rate of 5 % explains (p < 0.0001)" in report.message) == (
        shift > 0
    )


def test_a_steady_share_of_anomalies_is_above_the_promise_and_no_drift(tmp_path: Path) -> None:
    report = trend.report(kept(tmp_path / "h.csv", nights([1.0] * 20)))
    assert report.checks[0].drifted
    assert report.verdict == "steady"
    report = trend.report(kept(tmp_path / "few.csv", nights([1.0] * 3)))
    assert report.verdict == "drift"  # there is nothing else to compare with


def test_few_runs_are_not_compared_with_earlier_ones(tmp_path: Path) -> None:
    report = trend.report(kept(tmp_path / "h.csv", nights([0.0] * 11)))
    assert (report.verdict, report.recent, report.earlier) == ("unknown", 7, 4)
    assert "5 earlier runs are needed, and there are 4" in report.message
    assert [check.p_value is None for check in report.checks] == [False, True, True]
    assert trend.report(tmp_path / "h.csv", 5).verdict == "steady"


def test_runs_of_other_models_and_thresholds_and_empty_ones_are_not_compared(
    tmp_path: Path,
) -> None:
    runs = nights([0.0] * 12)
    for place, change in enumerate(({"sha256": "cd" * 32}, {"threshold": 9.0}, {"scored": 0})):
        runs[place] = dataclasses.replace(runs[place], anomalous=0, **change)
    report = trend.report(kept(tmp_path / "h.csv", runs))
    assert (report.recent, report.earlier, len(report.runs)) == (7, 2, 12)
    empty = [past(20, np.empty(0), sha256="ef" * 32)]
    report = trend.report(kept(tmp_path / "h.csv", empty))
    assert (report.verdict, report.recent, report.checks) == ("unknown", 0, ())
    assert report.message == "Unknown: no run of the last model has scored an image."


def test_nights_without_any_alarm_are_alike(tmp_path: Path) -> None:
    runs = [dataclasses.replace(run, anomalous=0) for run in nights([0.0] * 20)]
    report = trend.report(kept(tmp_path / "h.csv", runs))
    assert report.checks[1].p_value == 1
    assert report.verdict == "steady"


def test_drift_is_claimed_of_at_most_one_of_a_hundred_steady_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, tried = 0, 600
    for seed in range(tried):
        runs = tuple(nights([0.0] * 20, seed, images=60))
        monkeypatch.setattr(history, "read", lambda path, runs=runs: runs)
        claimed += trend.report(tmp_path).verdict == "drift"
    assert claimed <= tried * 0.01 + 3 * (tried * 0.01) ** 0.5


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def drifted(tmp_path: Path) -> Path:
    runs = nights([0.0] * 20 + [0.8] * 7)
    old = [dataclasses.replace(run, model="a " + 60 * "long ", threshold=3.0) for run in runs[:10]]
    return kept(tmp_path / "h.csv", [*old, *runs[10:]])


def test_the_table_fits_eighty_columns(
    drifted: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("trend", drifted)
    assert result.code == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("2026-") for line in lines) == 20
    assert "7 earlier runs are not listed: --json has all" in lines
    assert sum(line.startswith("model ") for line in lines) == 2
    assert "Drift: " in result.out
    last = history.read(drifted)[-1]
    (shown,) = [line for line in lines if line.startswith(last.time[:10])]
    assert shown.split()[2:5] == ["100", str(last.anomalous), f"{last.anomalous:.1f}"]


def test_the_document_has_all_runs(drifted: Path, run: Run) -> None:
    document = run("trend", drifted, "--json", "--last", 5).json
    assert document["schema"] == "anoscan.trend/1"
    assert set(document) == {
        *("schema", "history", "verdict", "message", "recent", "earlier", "checks", "runs"),
    }
    assert [list(item) for item in document["runs"]] == [COLUMNS] * 27
    assert (document["recent"], document["earlier"]) == (5, 12)
    assert json.dumps(document).isascii()


def test_the_picture_is_drawn(drifted: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "new" / "trend.png"
    result = run("trend", drifted, "--plot", file)
    assert result.code == 0
    assert f"plot: {file}" in result.err
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colours  # alarms and medians
    for number, scores in enumerate((np.empty(0), np.zeros(3))):  # nothing to draw, and one run
        few = kept(tmp_path / f"{number}.csv", [past(0, scores)])
        assert run("trend", few, "--plot", file).code == 0


def test_the_date_below_a_plot_does_not_cover_its_label(tmp_path: Path) -> None:
    minutes = [f"2026-01-01T03:0{minute}:00+00:00" for minute in (1, 2)]
    runs = [past(0, np.zeros(3), time=when) for when in minutes]
    drawn = plots._trend(trend.report(kept(tmp_path / "h.csv", runs), 7))
    axis = drawn.axes[1].xaxis
    FigureCanvasAgg(drawn).draw()
    assert axis.get_offset_text().get_text()
    date, label = (text.get_window_extent() for text in (axis.get_offset_text(), axis.label))
    assert not date.overlaps(label)


def test_a_plot_without_matplotlib_is_refused(
    drifted: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anoscan.report.plots.find_spec", lambda name: None)
    result = run("trend", drifted, "--plot", tmp_path / "trend.png")
    assert result.code == 2
    assert "--plot: Matplotlib is not installed." in result.err


def test_a_missing_history_is_named(run: Run, tmp_path: Path) -> None:
    result = run("trend", tmp_path / "none.csv")
    assert result.code == 1
    assert "none.csv: No such file or directory" in result.err
