"""The command as a user runs it: `run` calls it in this process, `anoscan` in one of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import anoscan as package
from anoscan import cli, detector
from anoscan.core import registry
from anoscan.core.config import TrainConfig
from anoscan.dataset.image_array import ImageArray
from anoscan.detector import Detector
from anoscan.model import store
from anoscan.scoring.choices import MAPPINGS, SCORES
from tests.conftest import Digits
from tests.documents import check_documents

QUICK = ("--images-shown", "640", "--encoder-images-shown", "320", "--width", "8")
SMALL = ("--images-shown", "64", "--encoder-images-shown", "64", "--width", "4")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["anoscan", *map(str, arguments)])
        # Otherwise help calls the program `python -m pytest` where that started the tests.
        monkeypatch.setattr(sys.modules["__main__"], "__package__", "")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        check_documents(out)
        return Result(int(ended.value.code or 0), out, err)

    return call


def anoscan(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _source()}
    return subprocess.Popen(
        [sys.executable, "-m", "anoscan", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finished(*arguments: object) -> Result:
    process = anoscan(*arguments)
    out, err = process.communicate(timeout=300)
    check_documents(out)
    return Result(process.returncode, out, err)


def _source() -> str:
    return str(Path(package.__file__).parents[1])


@pytest.fixture(scope="module")
def model_file(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a store of its own, good for all but good scores."""
    home = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOSCAN_HOME", str(home))
        shown = {"images_shown": 640, "encoder_images_shown": 320, "width": 8}
        return Path(Detector.train(digits.normal, name="digits", **shown).reference.path)


@pytest.fixture(scope="module")
def odd_folder(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Readable images, among them hostile names, and four files that cannot be used."""
    folder = tmp_path_factory.mktemp("odd")
    good = sorted(digits.queries.iterdir())
    names = ["plain.png", "a [bold]b\nc.png", "[red]x.png", "esc\x1b[31m.png", "=1+1.png"]
    for image, name in zip(good, names, strict=False):
        shutil.copy(image, folder / name)
    (folder / "truncated.png").write_bytes(good[0].read_bytes()[:60])
    (folder / "text.jpg").write_text("not an image")
    (folder / "zero.png").touch()
    Image.new("L", (1, 1), 9).save(folder / "one.png")
    return folder


BAD = {"truncated.png", "text.jpg", "zero.png", "one.png"}

# --- JSON: what stands in the contract, field by field ------------------------------------------

REFERENCE = {"name", "path", "sha256"}
SKIPPED = {"path", "reason"}
TRAIN = {
    "schema", "model", "images", "images_shown", "seconds", "health", "self_test", "tracking",
    "device",
    "precision", "seed", "anoscan_version",
}  # fmt: skip
TRAINED_MODEL = REFERENCE | {
    "architecture", "objective", "encoder", "mapping", "backbone", "size", "patch_size",
    "channels", "latent_dim",
}  # fmt: skip
SCORE = {
    "schema", "model", "score", "mapping", "search", "threshold", "counts", "images", "skipped",
    "warning", "health", "alarms",
}  # fmt: skip
REGION = {"x", "y", "width", "height", "score", "area", "p_value", "below_level"}
THRESHOLD = {
    "score", "false_alarm_rate", "effective_rate", "calibration_images", "uncertainty",
    "uses_labels", "warning", "chosen", "at_other_rates",
}  # fmt: skip
IMAGE = {
    "rank", "path", "score", "p_value", "q_value", "verdict", "terms", "percentiles", "mismatch",
    "nearest", "regions", "residual", "maps",
}  # fmt: skip
EVAL = {
    "schema", "model", "images", "auroc", "auroc_ci95", "average_precision", "undefined",
    "threshold", "at_threshold", "threshold_uses_labels", "baselines", "terms", "pixel",
    "classes", "curves", "comparison", "mapping", "search", "warning",
}  # fmt: skip


def check_train(document: Any) -> None:
    assert document["schema"] == "anoscan.train/1"
    assert set(document) == TRAIN
    assert set(document["model"]) == TRAINED_MODEL
    assert set(document["images"]) == {
        "found", "trained", "held_out", "patches", "dropped", "skipped",
    }  # fmt: skip
    assert {"gan", "encoder"} <= set(document["images_shown"])
    assert {"gan", "encoder", "calibration", "total"} <= set(document["seconds"])
    assert set(document["health"]) == {"verdict", "checks"}
    assert document["health"]["verdict"] in ("ok", "warn", "fail")
    for check in document["health"]["checks"]:
        assert set(check) == {"name", "verdict", "value", "message"}


def check_score(document: Any) -> None:
    assert document["schema"] == "anoscan.score/1"
    assert set(document) == SCORE
    assert set(document["model"]) == REFERENCE
    assert set(document["threshold"]) == THRESHOLD
    low, high = document["threshold"]["uncertainty"]
    assert 0 < low < document["threshold"]["effective_rate"] < high < 1
    assert set(document["health"]) == {"verdict", "reconstructions", "messages"}
    assert document["health"]["verdict"] in ("ok", "warn", "fail")
    assert document["health"]["reconstructions"] in ("ok", "unusable")
    assert set(document["counts"]) == {"scored", "anomalous", "skipped"}
    for image in document["images"]:
        assert set(image) == IMAGE
        assert image["verdict"] in ("normal", "anomalous")
        for region in image["regions"]:
            assert set(region) == REGION
    assert all(set(item) == SKIPPED for item in document["skipped"])
    ranks = [image["rank"] for image in document["images"]]
    assert ranks == list(range(1, len(ranks) + 1))
    scores = [image["score"] for image in document["images"]]
    assert scores == sorted(scores, reverse=True)


def check_eval(document: Any) -> None:
    assert document["schema"] == "anoscan.eval/1"
    assert set(document) == EVAL
    assert set(document["model"]) == REFERENCE
    assert set(document["images"]) == {"normal", "anomalous", "skipped", "unlabelled", "missing"}
    assert set(document["threshold"]) == THRESHOLD
    at = document["at_threshold"]
    assert set(at) == {"score", "false_alarm_rate", "recall", "precision", "f1", "confusion"}
    assert set(document["baselines"]) == {"mean_image", "pca"}
    assert all(set(baseline) == {"auroc"} for baseline in document["baselines"].values())


def test_train_score_and_eval_find_the_odd_digit_better_than_the_baselines(digits: Digits) -> None:
    trained = finished("train", digits.normal, "--images-shown", "4000", "--json")
    assert trained.code == 0, trained.err
    check_train(trained.json)
    assert trained.json["model"]["name"] == "normal"
    assert Path(trained.json["model"]["path"]).is_file()
    scored = finished("score", digits.queries, "--json")
    assert scored.code == 0, scored.err
    check_score(scored.json)
    assert "using the model trained last: normal" in scored.err
    assert scored.json["counts"]["scored"] == len(scored.json["images"]) == 300
    evaluated = finished("eval", "--labels", digits.labels, "--json")
    assert evaluated.code == 0, evaluated.err
    check_eval(evaluated.json)
    auroc = evaluated.json["auroc"]
    assert auroc > 0.9
    assert auroc > max(baseline["auroc"] for baseline in evaluated.json["baselines"].values())


# --- train --------------------------------------------------------------------------------------


def test_a_report_of_suspects_that_cannot_be_written_is_refused_before_the_training(
    run: Run, few: Digits, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "suspects.json"):
        result = run("train", few.normal, "--clean-report", place)
        assert result.code == 2
        assert f"--clean-report {place} cannot be written" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", [["--clean-report", "s.json"], ["--drop-suspects"]])
def test_suspects_among_patches_are_refused_before_any_image_is_read(
    run: Run, option: list[str]
) -> None:
    result = run("train", "no-such-folder", "--patches", 100, *option)
    assert result.code == 2
    assert f"{option[0]} does not go with --patches" in result.err


def test_options_come_before_the_config_file_and_that_before_the_defaults(
    run: Run, few: Digits, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"size": 32, "width": 16, "seed": 5, "batch_size": 8}')
    result = run("train", few.normal, "--config", file, "--width", 4, "--size", "auto", "--dry-run")
    config = result.json["config"]
    assert (config["width"], config["size"]) == (4, 16)
    assert (config["seed"], config["batch_size"]) == (5, 8)
    assert config["latent_dim"] == TrainConfig().latent_dim


def test_another_choice_decides_anew_what_the_one_in_a_models_file_had_decided(
    run: Run, few: Digits, tmp_path: Path
) -> None:
    file = tmp_path / "c.json"

    def after(first: list[str], second: list[str]) -> Any:
        file.write_text(run("train", few.normal, *first, "--dry-run").out, encoding="utf-8")
        return run("train", few.normal, "--config", file, *second, "--dry-run").json["config"]

    assert after(["--mapping", "bigan"], ["--mapping", "izi_f"])["encoder_images_shown"] == 4_000
    assert after([], ["--mapping", "bigan"])["encoder_images_shown"] == 0
    assert after([], ["--objective", "wgan-gp"])["learning_rate"] == 2e-4
    same = after(["--learning-rate", "1e-3"], ["--objective", "nonsaturating"])
    assert same["learning_rate"] == 1e-3
    longer = after(["--images-shown", "64"], ["--images-shown", "5000"])
    assert (longer["rotation_images_shown"], longer["encoder_images_shown"]) == (15_000, 1667)
    none = after(["--rotation-images-shown", "0"], ["--images-shown", "5000"])
    assert none["rotation_images_shown"] == 0
    critic = after([], ["--objective", "wgan-gp"])
    assert (critic["images_shown"], critic["rotation_images_shown"]) == (36_000, 36_000)
    assert after(["--objective", "wgan-gp"], ["--objective", "bce"])["images_shown"] == 12_000
    shorter = after(["--objective", "wgan-gp"], ["--images-shown", "6000"])
    assert (shorter["rotation_images_shown"], shorter["encoder_images_shown"]) == (6000, 667)
    given = after(["--images-shown", "6000"], ["--objective", "wgan-gp"])
    assert (given["images_shown"], given["rotation_images_shown"]) == (6000, 6000)


def test_another_choice_leaves_what_somebody_wrote_into_the_config_file(
    run: Run, few: Digits, tmp_path: Path
) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"learning_rate": 0.001, "encoder_images_shown": 500, "images_shown": 5000}')
    other = ["--objective", "hinge", "--mapping", "izi", "--images-shown", "64"]
    config = run("train", few.normal, "--config", file, *other, "--dry-run").json["config"]
    assert (config["learning_rate"], config["encoder_images_shown"]) == (0.001, 500)
    assert (config["objective"], config["mapping"]) == ("hinge", "izi")
    config = run("train", few.normal, "--config", file, *other[:2], "--dry-run").json["config"]
    assert (config["objective"], config["images_shown"]) == ("hinge", 5000)


def test_help_says_which_games_are_longer(run: Run) -> None:
    # Lines may be broken after a hyphen.
    text = " ".join(run("train", "--help-all").out.split()).replace("- ", "-")
    for name in registry.names("objectives"):
        longer = registry.load("objectives", name).times_as_long
        said = {1: "", 3: f"three times that for {name}"}[longer]
        assert said in text
        assert (f"for {name}]" in text) == (longer > 1)


def test_a_default_value_given_by_hand_comes_before_the_config_file(
    run: Run, few: Digits, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"seed": 5}')
    assert (
        run("train", few.normal, "--config", file, "--seed", 0, "--dry-run").json["config"]["seed"]
        == TrainConfig().seed
    )


def test_a_dry_run_prints_settings_that_config_takes_back_and_writes_nothing(
    run: Run, few: Digits, tmp_path: Path
) -> None:
    first = run("train", few.normal, *QUICK, "--learning-rate", 0.001, "--seed", 3, "--dry-run")
    assert first.code == 0
    file = tmp_path / "dry.json"
    file.write_text(first.out)
    second = run("train", few.normal, "--config", file, "--dry-run")
    assert second.json == first.json
    assert first.json["config"]["learning_rate"] == 0.001
    assert list(Path(os.environ["ANOSCAN_HOME"]).iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "dcgan"),
        (["--size", 255], "dcgan"),
        (["--size", 256, "--architecture", "auto"], "progressive"),
        (["--size", 256, "--architecture", "mlp"], "mlp"),
    ],
)
def test_auto_becomes_the_architecture_that_suits_the_size(
    run: Run, few: Digits, options: list[object], named: str
) -> None:
    found = run("train", few.normal, *options, "--dry-run").json["config"]
    assert found["architecture"] == named


def test_settings_of_a_model_train_another_like_it(run: Run, few: Digits, tmp_path: Path) -> None:
    assert run("train", few.normal, *SMALL, "--seed", 7).code == 0
    shown = run("models", "show", "--json")
    file = tmp_path / "model.json"
    file.write_text(shown.out)
    assert (
        run("train", few.normal, "--config", file, "--dry-run").json["config"]
        == (shown.json["config"])
    )


def test_every_setting_has_an_option(run: Run) -> None:
    text = run("train", "--help-all").out
    for name in TrainConfig().to_dict():
        assert f"--{name.replace('_', '-')}" in text, name


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--size", "7"], 2, "--size must be from 16 to 512. Got 7."),
        (["--size", "big"], 2, "--size must be auto or a number. Got 'big'."),
        (["--channels", "17"], 2, "--channels must be from 1 to 16. Got 17."),
        (["--objective", "none"], 2, "--objective must be one of"),
        (["--batch-size", "1"], 2, "--batch-size must be at least 2. Got 1."),
        (["--workers", "0"], 2, "--workers"),
        (["--device", "abacus"], 2, "--device must be one of"),
        (["--name", "a/b"], 2, "'a/b' cannot name a model"),
        (["--frobnicate"], 2, "No such option: --frobnicate"),
        (["--architecture", "vgg"], 2, "--architecture must be one of auto, dcgan, "),
        (["--resume"], 1, "no checkpoint"),
        (["--config", "missing.json"], 1, "--config missing.json: No such file"),
        (["--roi", "missing.png"], 1, "missing.png"),
        (["--drop-suspects", "--patches", "20"], 2, "does not go with --patches"),
        (["--patches", "20", "--patch-size", "64"], 1, "Give a smaller --patch-size."),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_wrong_train_options_are_one_line_on_stderr(
    run: Run, few: Digits, arguments: list[str], code: int, said: str, dry: list[str]
) -> None:
    result = run("train", few.normal, *arguments, *dry, "--json")
    assert result.code == code
    assert result.out == ""
    assert said in result.err
    assert "Traceback" not in result.err
    progress = ("reading images", "losses and pictures while")
    errors = [line for line in result.err.splitlines() if not line.startswith(progress)]
    assert len(errors) == 1, result.err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_too_few_images_are_refused_even_by_a_dry_run(
    run: Run, few: Digits, tmp_path: Path, dry: list[str]
) -> None:
    for file in sorted(few.normal.iterdir())[:7]:
        shutil.copy(file, tmp_path)
    result = run("train", tmp_path, *dry, "--json")
    assert (result.code, result.out) == (1, "")
    assert "7 readable images are too few to learn from" in result.err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("{", 1, "is not JSON"),
        ("[" * 100_000, 1, "is not JSON"),
        ("[1]", 1, "one JSON object"),
        ('{"depth": 3}', 2, "unknown setting 'depth'"),
        ('{"width": "wide"}', 2, "setting 'width' must be a whole number."),
        ('{"size": "auto"}', 2, "must be a whole number or null (which is auto). Got 'auto'."),
        ('{"size": 4}', 2, "--size must be from 16 to 512"),
    ],
)
def test_a_bad_config_file_is_named(
    run: Run, few: Digits, tmp_path: Path, text: str, code: int, said: str
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    result = run("train", few.normal, "--config", file, "--dry-run")
    assert result.code == code
    assert said in result.err
    assert "bad.json" in result.err


def test_a_model_is_not_replaced_without_force(run: Run, few: Digits) -> None:
    assert run("train", few.normal, *SMALL).code == 0
    again = run("train", few.normal, *SMALL)
    assert again.code == 1
    assert "--force" in again.err
    assert run("train", few.normal, *SMALL, "--force").code == 0


def test_training_says_little_in_a_log_and_nothing_when_quiet(run: Run, few: Digits) -> None:
    loud = run("train", few.normal, *SMALL)
    # A line a stage, a note on few images, and three more lines for each time that reconstructions
    # are learned again.
    assert len(loud.err.splitlines()) <= 16
    assert "\x1b" not in loud.err + loud.out
    assert run("train", few.normal, *SMALL, "--force", "--quiet").err == ""


def test_an_interrupted_training_keeps_a_checkpoint_and_says_how_to_go_on(
    run: Run, few: Digits
) -> None:
    process = anoscan("train", few.normal, "--images-shown", 10**7, "--name", "two words")
    assert process.stderr is not None
    for line in process.stderr:
        if "reading images" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert f"anoscan train {few.normal} --images-shown 10000000 --name 'two words' --resume" in err
    checkpoint = Path(os.environ["ANOSCAN_HOME"]) / "checkpoints" / "two words.safetensors"
    assert checkpoint.is_file()
    anew = run("train", few.normal, *SMALL, "--name", "two words")
    assert anew.code == 0
    assert "an unfinished training of 'two words' starts anew" in anew.err
    assert not checkpoint.exists()


def test_a_mistyped_command_is_answered_with_the_one_it_looks_like(run: Run) -> None:
    assert "Did you mean 'train', 'retrain', 'trend'? See " in run("trian").err
    assert "Did you mean 'score'? See " in run("scroe").err


# --- score --------------------------------------------------------------------------------------


def test_unreadable_files_are_listed_and_all_others_scored(
    run: Run, model_file: Path, odd_folder: Path
) -> None:
    result = run("score", odd_folder, "--model", model_file, "--json")
    assert result.code == 3
    check_score(result.json)
    skipped = result.json["skipped"]
    assert {Path(item["path"]).name for item in skipped} == BAD
    assert all(item["reason"] for item in skipped)
    paths = {image["path"] for image in result.json["images"]}
    every = {f"{odd_folder}/{file.name}" for file in odd_folder.iterdir()}
    assert paths == {path for path in every if Path(path).name not in BAD}
    assert result.json["counts"] == {
        "scored": 5,
        "anomalous": sum(i["verdict"] == "anomalous" for i in result.json["images"]),
        "skipped": 4,
    }


def test_hostile_names_are_shown_in_the_table_and_never_obeyed(
    run: Run, model_file: Path, odd_folder: Path
) -> None:
    result = run("score", odd_folder, "--model", model_file)
    assert result.code == 3
    assert "\x1b" not in result.out + result.err
    unfolded = "".join(result.out.split())  # the column folds where the folder's name is long
    for shown in ("a[bold]b\\nc.png", "[red]x.png", "esc\\x1b[31m.png", "=1+1.png"):
        assert shown in unfolded
    for name in BAD:
        assert name in result.err


def test_names_that_are_not_utf8_are_scored_and_shown(
    run: Run, model_file: Path, digits: Digits, tmp_path: Path
) -> None:
    folder = tmp_path / "bytes"
    folder.mkdir()
    try:
        shutil.copy(next(digits.queries.iterdir()), os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert "\\xff.png" in run("score", folder, "--model", model_file).out
    assert "\\xff.png" in run("score", folder, "--model", model_file, "--csv").out
    path = run("score", folder, "--model", model_file, "--json").json["images"][0]["path"]
    assert os.fsencode(path) == os.fsencode(folder) + b"/\xff.png"


def test_nothing_readable_is_a_failure(run: Run, model_file: Path, odd_folder: Path) -> None:
    for form in ("--json", "--csv", "--jsonl", "--quiet"):
        result = run("score", odd_folder / "zero.png", "--model", model_file, form)
        assert result.code == 1, form
        assert result.out == "", form
        assert "zero.png" in result.err, form


def test_jsonl_has_an_object_an_image_in_input_order(
    run: Run, model_file: Path, digits: Digits
) -> None:
    files = sorted(digits.queries.iterdir(), reverse=True)[:70]
    listed = "\n".join(map(str, files)).encode()
    result = run("score", "-", "--model", model_file, "--jsonl", "--batch-size", 16, stdin=listed)
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["path"] for line in lines] == [str(file) for file in files]
    for line in lines:
        assert set(line) == IMAGE | {"schema"}
        assert line["schema"] == "anoscan.image/1"
        assert line["rank"] is None
        assert line["q_value"] is None


def test_csv_is_defused_and_at_full_precision(
    run: Run, model_file: Path, odd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(odd_folder)
    result = run("score", "=1+1.png", "plain.png", "--model", model_file, "--csv")
    assert result.code == 0
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["path"] for row in rows] == ["'=1+1.png", "plain.png"]
    images = run("score", "=1+1.png", "plain.png", "--model", model_file, "--json").json["images"]
    exact = next(image for image in images if image["path"] == "=1+1.png")
    assert float(rows[0]["score"]) == exact["score"]
    assert {name: float(rows[0][name]) for name in exact["terms"]} == exact["terms"]
    assert rows[0]["rank"] == ""


def test_a_list_on_stdin_goes_on_after_a_path_that_is_not_there(
    run: Run, model_file: Path, odd_folder: Path
) -> None:
    listed = f"{odd_folder}/plain.png\r\n\nmissing.png\n{'x' * 5000}\n".encode()
    result = run("score", "-", "--model", model_file, "--json", stdin=listed)
    assert result.code == 3
    assert result.json["counts"]["scored"] == 1
    assert result.json["skipped"][0]["path"] == "missing.png"


def test_a_list_with_nuls_carries_names_with_newlines_and_raw_bytes(
    run: Run, model_file: Path, odd_folder: Path
) -> None:
    listed = f"{odd_folder}/a [bold]b\nc.png\0".encode() + b"\xff.png\0"
    result = run("score", "-", "--model", model_file, "--json", stdin=listed)
    assert result.json["images"][0]["path"] == f"{odd_folder}/a [bold]b\nc.png"
    assert result.json["skipped"][0]["path"] == "\udcff.png"


def test_an_empty_list_on_stdin_is_a_failure(run: Run, model_file: Path) -> None:
    result = run("score", "-", "--model", model_file, stdin=b"\n")
    assert result.code == 1
    assert "stdin is empty" in result.err


def test_an_empty_list_on_stdin_is_no_failure_where_that_is_allowed(
    run: Run, model_file: Path, odd_folder: Path
) -> None:
    command = ["score", "-", "--model", model_file, "--allow-empty", "-q"]
    result = run(*command, "--json", stdin=b"")
    assert result.code == 0
    assert result.json["images"] == []
    assert result.json["counts"] == {"scored": 0, "anomalous": 0, "skipped": 0}
    for more, lines in ([], None), (["--jsonl"], 0), (["--csv"], 1):
        result = run(*command, *more, stdin=b"\n")
        assert result.code == 0
        assert lines is None or len(result.out.splitlines()) == lines
    assert run(*command, stdin=f"{odd_folder}/zero.png\n".encode()).code == 1


def test_top_cuts_the_list_and_not_the_counts(run: Run, model_file: Path, digits: Digits) -> None:
    result = run("score", digits.queries, "--model", model_file, "--top", 3, "--json")
    assert [image["rank"] for image in result.json["images"]] == [1, 2, 3]
    assert result.json["counts"]["scored"] == 300


def test_rates_are_shares_or_percent_and_other_rates_are_counted_over_all_images(
    run: Run, model_file: Path, digits: Digits
) -> None:
    always = ("score", digits.queries, "--model", model_file)
    auto = run(*always, "--top", 3, "--json").json["threshold"]
    assert (auto["chosen"], auto["false_alarm_rate"]) == ("auto", 0.05)  # 120 held-out normals
    assert [at["false_alarm_rate"] for at in auto["at_other_rates"]] == [0.01, 0.02, 0.1]
    for at in auto["at_other_rates"]:
        percent = f"{100 * at['false_alarm_rate']:g}%"
        given = run(*always, "--false-alarm-rate", percent, "--json").json
        assert given["threshold"]["chosen"] == "given"
        assert given["threshold"]["false_alarm_rate"] == at["false_alarm_rate"]
        assert given["threshold"]["score"] == at["threshold"]
        assert given["counts"]["anomalous"] == at["anomalous"]
    table = run(*always, "--top", 3)
    first, last = (auto["at_other_rates"][place]["anomalous"] for place in (0, -1))
    assert first < last
    assert f"At 1 %: {first} anomalous." in table.out
    assert f"At 10 %: {last}." in table.out
    assert "At 5 %" not in table.out


def test_fail_on_anomaly_exits_with_four_even_when_files_were_skipped(
    run: Run, model_file: Path, digits: Digits, odd_folder: Path
) -> None:
    paths = [digits.queries, odd_folder / "zero.png"]
    always = ("--model", model_file, "--false-alarm-rate", 0.5)
    assert run("score", *paths, *always).code == 3
    assert run("score", *paths, *always, "--fail-on-anomaly").code == 4
    assert run("score", *paths, *always, "--fail-on-anomaly", "--jsonl").code == 4
    normal = next(
        image["path"]
        for image in run("score", digits.queries, *always, "--json").json["images"]
        if image["verdict"] == "normal"
    )
    assert run("score", normal, *always, "--fail-on-anomaly").code == 0


def test_residuals_are_written_and_named(
    run: Run, model_file: Path, digits: Digits, tmp_path: Path
) -> None:
    image = next(digits.queries.iterdir())
    result = run("score", image, "--model", model_file, "--residuals", tmp_path / "r", "--json")
    assert Path(result.json["images"][0]["residual"]).is_file()
    assert f"pictures: {tmp_path / 'r'}" in result.err


def test_pictures_of_an_earlier_run_below_the_queries_are_no_queries(
    run: Run, model_file: Path, digits: Digits, tmp_path: Path
) -> None:
    for image in sorted(digits.queries.iterdir())[:3]:
        (tmp_path / image.name).write_bytes(image.read_bytes())
    pictures, maps = tmp_path / "pictures", tmp_path / "deep" / "maps"
    command = ["score", tmp_path, "--model", model_file, "--json"]
    command += ["--residuals", pictures, "--maps", maps]
    command += ["--report", tmp_path / "page.html", "--report-assets"]
    first, second = run(*command), run(*command)
    assert len(first.json["images"]) == 3
    assert second.json["images"] == first.json["images"]
    assert "not looked into" not in first.err
    for folder in (pictures, maps, tmp_path / "page-files"):
        assert f"not looked into, as pictures are written there: {folder}" in second.err
    among = run(*command[:1], pictures, *command[2:])
    assert len(among.json["images"]) == 3
    assert f"pictures are written among the queries, where a later run ranks them: {pictures}" in (
        among.err
    )


def test_a_folder_that_leads_to_itself_is_bad_input(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for more in ([], ["--residuals", tmp_path / "out"]):
        result = run("score", loop, "--model", model_file, *more)
        assert result.code == 1
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing"], 1, "missing does not exist."),
        (["mis\x1b[31msing\n"], 1, "no file matches mis\\x1b[31msing\\n."),
        ([".", "--score", "x"], 2, "--score must be one of"),
        ([".", "--false-alarm-rate", "2"], 2, "--false-alarm-rate must lie between 0 and 1"),
        ([".", "--false-alarm-rate", "100%"], 2, "--false-alarm-rate must lie between 0 and 1"),
        ([".", "--false-alarm-rate", "nan"], 2, "--false-alarm-rate must lie between 0 and 1"),
        ([".", "--false-alarm-rate", "few"], 2, "must be auto, a share such as 0.01, or 1%."),
        ([".", "--top", "0"], 2, "--top"),
        ([".", "--json", "--csv"], 2, "exclude each other"),
        ([".", "--top", "3", "--csv"], 2, "--top needs all images"),
        ([".", "--top", "3", "--csv"], 2, "-o FILE.csv"),
        (["--\x1b[31m"], 2, "No such option: --\\x1b[31m"),
    ],
)
def test_wrong_score_arguments_are_one_line_without_control_characters(
    run: Run, arguments: list[str], code: int, said: str
) -> None:
    result = run("score", *arguments)
    assert result.code == code
    assert result.out == ""
    assert said in result.err
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err


def test_scoring_without_a_model_says_how_to_train_one(run: Run, few: Digits) -> None:
    result = run("score", few.queries)
    assert result.code == 1
    assert "anoscan train FOLDER" in result.err


def test_an_interrupted_scoring_ends_with_130(
    run: Run, few: Digits, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(detector.Detector, "score_files", interrupted)
    result = run("score", few.queries, "--model", model_file, "--json")
    assert result.code == 130
    assert result.out == ""
    assert "Traceback" not in result.err


def test_a_bug_ends_with_70_and_keeps_its_traceback(
    run: Run, few: Digits, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(detector.Detector, "score_files", broken)
    result = run("score", few.queries, "--model", model_file, "--json")
    assert result.code == 70
    assert result.out == ""
    assert "Traceback" in result.err
    assert "ZeroDivisionError: a bug" in result.err
    assert "please report" in result.err


def test_a_full_disk_is_a_failure_and_no_bug(
    run: Run, few: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(ImageArray, "load", full)
    result = run("train", few.normal, *SMALL)
    assert result.code == 1
    assert result.err.splitlines()[-1] == "Error: /tmp/x: No space left on device."


def test_a_reader_that_goes_away_is_no_error(digits: Digits, model_file: Path) -> None:
    process = anoscan("score", digits.queries, "--model", model_file, "--jsonl", "--batch-size", 1)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["rank"] is None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


# --- eval, models, doctor, help -----------------------------------------------------------------


def test_labels_are_relative_to_the_csv_or_to_images_when_given(
    run: Run, model_file: Path, digits: Digits, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "labels.csv"
    rows = list(csv.DictReader(digits.labels.read_text().splitlines()))
    lines = [f"{Path(row['path']).name},{row['label']},m.png" for row in rows]
    elsewhere.write_text("\n".join(["path,label,mask", *lines]))
    beside = run("eval", "--labels", digits.labels, "--model", model_file, "--json")
    given = run("eval", digits.queries, "--labels", elsewhere, "--model", model_file, "--json")
    assert beside.code == given.code == 0
    check_eval(given.json)
    assert given.json["auroc"] == beside.json["auroc"]
    assert given.json["images"]["unlabelled"] == 0
    assert beside.json["pixel"] is None
    assert given.json["pixel"]["without_mask"] == given.json["images"]["anomalous"]
    lost = run("eval", "--labels", elsewhere, "--model", model_file)
    assert lost.code == 1
    assert "relative to the CSV" in lost.err


def test_eval_reports_skipped_images_and_undefined_metrics(
    run: Run, model_file: Path, odd_folder: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nplain.png,0\nzero.png,1\n")
    result = run("eval", odd_folder, "--labels", labels, "--model", model_file, "--json")
    assert result.code == 3
    assert result.json["auroc"] is None
    assert result.json["undefined"]
    assert len(result.json["images"]["skipped"]) == 1
    assert "undefined" in run("eval", odd_folder, "--labels", labels, "--model", model_file).out


def test_eval_needs_labels(run: Run) -> None:
    result = run("eval")
    assert result.code == 2
    assert "--labels" in result.err


def test_the_store_lists_shows_renames_exports_imports_and_removes(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    assert "no models yet" in run("models", "list").out
    assert run("models", "import", model_file, "--name", "a").code == 0
    assert run("models", "rename", "a", "b").code == 0
    listed = run("models", "list", "--json").json
    assert listed["schema"] == "anoscan.models/1"
    assert [model["name"] for model in listed["models"]] == ["b"]
    assert run("models", "import", model_file, "--name", "a").code == 0
    os.utime(store.path_for("a"), (0, 0))
    listed = run("models", "list", "--json").json
    assert [(m["name"], m["default"]) for m in listed["models"]] == [("a", False), ("b", True)]
    assert re.findall(r"\b[ab](?: \*)?(?= )", run("models", "list").out)[:2] == ["a", "b *"]
    assert run("models", "remove", "a").code == 0
    shown = run("models", "show", "b", "--json").json
    assert shown["schema"] == "anoscan.model/1"
    assert shown["config"]["architecture"] == "dcgan"
    exported = run("models", "export", "b", tmp_path / "c.safetensors")
    assert exported.out == f"{tmp_path / 'c.safetensors'}\n"
    assert (tmp_path / "c.safetensors").read_bytes() == model_file.read_bytes()
    assert run("models", "remove", "b").code == 0
    assert run("models", "remove", "b").code == 1
    assert run("models", "list", "--json").json["models"] == []


def test_showing_a_model_is_a_table_without_json(run: Run, model_file: Path) -> None:
    result = run("models", "show", model_file)
    assert "config architecture" in result.out
    assert "{" not in result.out
    assert "health: " in result.out
    assert "all, by PCA" in result.out
    assert not re.search(r"\d\.\d{7}", result.out)


def test_the_doctor_reports_and_fails_when_nothing_can_be_written(
    run: Run, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = run("doctor", few.normal, "--json")
    assert good.code == 0
    assert good.json["schema"] == "anoscan.doctor/1"
    assert good.json["images"]["readable"] == 120
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("ANOSCAN_HOME", str(file))
    bad = run("doctor", "--json")
    assert bad.code == 1
    assert bad.json["verdict"] == "fail"
    assert "ANOSCAN_HOME" in bad.err


def test_help_names_every_choice(run: Run) -> None:
    train, score = run("train", "--help-all").out, run("score", "--help-all").out
    for family in ("architectures", "objectives", "encoders", "mappings"):
        assert all(f"{name}:" in train for name in registry.names(family))
    assert all(f"{name}:" in score for name in SCORES)
    assert all(mapping in score for mapping in MAPPINGS)
    assert "[default: (" not in train + score


def test_no_command_is_wrong_usage_and_prints_help(run: Run) -> None:
    for arguments in ((), ("models",)):
        result = run(*arguments)
        assert result.code == 2
        assert "Commands:" in result.err
        assert result.out == ""


def test_the_version_is_printed(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("anoscan ")


@pytest.mark.parametrize("arguments", [("--help",), ("models", "list"), ("models", "show")])
def test_light_commands_do_not_import_heavy_libraries(
    arguments: tuple[str, ...], model_file: Path
) -> None:
    heavy = {"torch", "sklearn", "scipy", "rich.progress", "torchvision"}
    if arguments[0] == "--help":
        heavy |= {"numpy", "PIL", "platformdirs", "rich.console"}
    code = (
        f"import sys; sys.argv[1:] = {list(arguments)!r}\n"
        "import anoscan.cli as cli\n"
        "try: cli.main()\n"
        f"except SystemExit: print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": _source()}
    environment["ANOSCAN_HOME"] = str(model_file.parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stderr.splitlines()[-1] == "[]"


def test_help_takes_about_the_time_of_importing_its_libraries() -> None:
    resource = pytest.importorskip("resource")

    def seconds(*arguments: str) -> float:
        # Of the processor, and the least of several: what else the machine does must not count.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "PYTHONPATH": _source()}
        subprocess.run(
            [sys.executable, *arguments], capture_output=True, check=True, env=environment
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    both = [
        (seconds("-c", "import typer, rich"), seconds("-m", "anoscan", "--help")) for _ in range(9)
    ]
    imports, helped = map(min, zip(*both, strict=True))
    assert helped < 2.5 * imports  # 1.5 to 2; torch alone would make it 20
