"""A loaded model is valid: damage of any tensor and of any value is refused with one line."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anoscan.cli.app import main
from anoscan.core.errors import ModelError
from anoscan.core.runtime import Runtime
from anoscan.detector import Detector
from anoscan.evaluation.recalibrate import Target
from anoscan.model import file as modelfile
from anoscan.model.file import Contents
from anoscan.model.model import Model
from tests.conftest import Digits
from tests.model.damage import GONE, at, paths, replaced, sealed, spoiled, tensor_damages

CPU = Runtime.resolve("cpu", "float32", 1)
FUZZED = 300
# Lengths that the training images decide. Any other value of them is as good.
FREE = {
    "baselines/components",
    "calibration/looks",
    "calibration/region_peaks",
    "calibration/terms",
    "neighbours/paths",
    "terms/nearest/means",
    "terms/prototype/prototypes",
}
# Tensors whose length must be that of others, one of which the refusal may name.
GROUPS = {"neighbours/latents": "neighbours", "terms/mixture/centres": "terms/mixture"}
# Texts that are only shown.
SHOWN = {("anoscan_version",), ("torch_version",), ("device",)}


@pytest.fixture(scope="module")
def file(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with everything that a model can hold: thumbnails, a decision and a history."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    settings = {"images_shown": 640, "encoder_images_shown": 320, "width": 8}
    detector = Detector.train(few.normal, path=path, keep_thumbnails=True, **settings)
    detector.calibrate(sorted(few.queries.iterdir())[:12], Target(false_alarm_rate=0.2))
    return path


@pytest.fixture(scope="module")
def contents(file: Path) -> Contents:
    return modelfile.load(file)


def refused(act: Callable[[], object]) -> str | None:
    """The one line of a refusal; None for none. Any other error is a fault."""
    try:
        act()
    except ModelError as error:
        message = error.message
    else:
        return None
    assert "\n" not in message
    assert len(message) < 500
    return message


Refusal = Callable[..., str | None]


@pytest.fixture
def refusal(contents: Contents, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Reads a model with other tensors or metadata, and gives the one line of its refusal."""

    def read(**changes: Any) -> str | None:
        monkeypatch.setattr(modelfile, "load", lambda path: contents._replace(**changes))
        message = refused(lambda: Model.read(Path("m"), CPU))
        assert message is None or "m does not hold a complete anoscan model: " in message
        return message

    return read


def test_every_damage_of_every_tensor_is_refused_and_the_tensor_named(
    contents: Contents, refusal: Refusal
) -> None:
    assert refusal() is None
    for name in contents.tensors:
        for kind, tensors in tensor_damages(contents.tensors, name):
            if not (kind == "longer" and name in FREE):
                named = GROUPS.get(name, name)
                assert named in str(refusal(tensors=tensors)), (name, kind)


def test_numbers_that_would_divide_by_nought_are_refused(
    contents: Contents, refusal: Refusal
) -> None:
    divisors = ("usual", "spread", "expected", "block0")
    found = [name for name in contents.tensors if name.endswith((*divisors, "running_var"))]
    assert len(found) > 8
    for name in found:
        below = -torch.ones_like(contents.tensors[name])
        assert f"{name} has values out of range" in str(
            refusal(tensors=contents.tensors | {name: below})
        )


def test_every_value_of_the_metadata_that_is_missing_or_of_another_kind_is_refused(
    contents: Contents, refusal: Refusal
) -> None:
    metadata = contents.metadata
    optional = {("decision",), ("history",), ("training_data", "patches")}
    for path in paths(metadata):
        if path[0] == "format" or path[:-1][:1] == ("self_test",):
            continue
        for value in (GONE, None, [], {"a": 1}, "text", -1, 1e300, True):
            if harmless(path, value, metadata) or (value is GONE and path in optional):
                continue
            assert refusal(metadata=replaced(metadata, path, value)), (path, value)


def harmless(path: tuple[str | int, ...], value: Any, metadata: Any) -> bool:
    """Whether a change is none, or one that the program cannot know to be wrong."""
    before = at(metadata, path)
    if isinstance(value, bool) and isinstance(before, bool):
        return path[0] == "decision" or path[0] == "history" or value == before
    if type(value) is type(before) and value == before:
        return True
    match path:
        case ("config", _):  # a setting that is missing has its default, or is refused as None is
            return value is GONE
        case ("image_rule", "window") | ("decision", "labelled" | "recall" | "wanted"):
            return value is None
        case ("health", "checks") | ("history",):
            return value == []
        case ("health", "checks", _, "value"):
            return value in (None, -1, 1e300) and value is not True
        case ("health" | "history", *_, 0) | ("training_data", "sizes" | "bit_depths", _):
            return value is GONE
        case ("training_data", "sizes" | "bit_depths") | ("self_test",):
            return value == {"a": 1}
        case ("history", 0, "window"):
            return True
    shown = path in SHOWN or path[-1] in ("message", "name", "by", "set_by") or path[0] == "kinds"
    return shown and value == "text"


def test_settings_that_the_training_did_not_decide_are_refused(
    contents: Contents, refusal: Refusal
) -> None:
    for name, value in (("images_shown", None), ("learning_rate", None), ("architecture", "auto")):
        changed = replaced(contents.metadata, ("config", name), value)
        assert f"the setting {name} is not decided" in str(refusal(metadata=changed))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("config", "size"), 32, "do not fit each other"),
        (("config", "width"), 10**12, "width"),
        (("config", "unknown\nsetting"), 1, "unknown setting"),
        (("config", "augment"), "x" * 10**6, "augment"),
        (("terms",), ["density", "density"], "named twice"),
        (("terms",), ["secret"], "term"),
        (("maps", "aligned"), False, "only aligned maps are relative|tensor"),
        (("picture_scale",), 0, "picture_scale"),
        (("maps", "level"), 10**9, "level"),
        (("decision", "false_alarm_rate"), 1, "false_alarm_rate"),
        (("history", 0, "action"), "other", "other"),
        (("kind",), "other", "kind"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(
    contents: Contents, refusal: Refusal, path: tuple[str | int, ...], value: Any, why: str
) -> None:
    assert re.search(why, str(refusal(metadata=replaced(contents.metadata, path, value))))


def test_aligned_maps_need_the_terms_that_they_share_tensors_with(
    contents: Contents, refusal: Refusal
) -> None:
    place = contents.metadata["terms"].index("subspace")
    terms = [name for name in contents.metadata["terms"] if name != "subspace"]
    tensors = {k: v for k, v in contents.tensors.items() if not k.startswith("terms/subspace/")}
    others = [column for column in range(len(terms) + 1) if column != place]
    for name in ("calibration/terms", "calibration/trust"):
        tensors[name] = tensors[name][..., others]
    changed = replaced(contents.metadata, ("terms",), terms)
    assert "aligned maps need" in str(refusal(tensors=tensors, metadata=changed))


def test_a_model_is_loaded_from_one_reading_of_its_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, expected = [], modelfile.load(file).sha256
    open_file = modelfile.opened
    monkeypatch.setattr(modelfile, "opened", lambda path: (opened.append(path), open_file(path))[1])
    assert Detector.load(file).reference.sha256 == expected
    assert opened == [file]


# --- the command --------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def score(
    few: Digits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Scores an image with a model file, and gives the exit code and what is on stderr."""
    query = str(next(few.queries.iterdir()))

    def run(path: Path, *more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["anoscan", "score", query, "--model", str(path), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_a_model_whose_calibration_is_no_number_scores_nothing(
    contents: Contents, score: Command, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    broken = torch.full_like(contents.tensors["calibration/terms"], torch.nan)
    modelfile.save(path, contents.tensors | {"calibration/terms": broken}, contents.metadata)
    code, err = score(path, "--json")
    assert code == 1
    assert "calibration/terms holds NaN or infinity" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("what", ["tensors", "config", "kinds", "bytes", "cut"])
def test_a_damaged_model_ends_the_command_with_one_line(
    contents: Contents, file: Path, score: Command, tmp_path: Path, what: str
) -> None:
    path, data = tmp_path / "m.safetensors", bytearray(file.read_bytes())
    tensors, metadata, _ = contents
    if what == "tensors":
        modelfile.save(path, dict(list(tensors.items())[1:]), metadata)
    elif what in metadata:
        modelfile.save(path, tensors, metadata | {what: []})
    else:
        data[-5] ^= 1
        path.write_bytes(data if what == "bytes" else data[:-5])
    code, err = score(path)
    assert code == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_weights_that_give_no_number_give_no_verdict(
    contents: Contents, score: Command, tmp_path: Path
) -> None:
    path, name = tmp_path / "m.safetensors", "terms/density/whiten"
    trust = contents.tensors["calibration/trust"]
    huge = torch.full_like(contents.tensors[name], 3e38)  # finite, but not its products
    weights = {"terms/density/mean": torch.full_like(contents.tensors["terms/density/mean"], 3e38)}
    tensors = contents.tensors | weights | {name: huge, "calibration/trust": torch.ones_like(trust)}
    first = "discriminator/blocks.0.1.weight"
    tensors[first] = torch.full_like(tensors[first], 3e38)
    modelfile.save(path, tensors, contents.metadata)
    code, err = score(path)
    assert code == 1, err
    assert "the model gives no score for" in err


def test_a_model_with_any_changed_bytes_is_refused_or_works(
    file: Path, few: Digits, tmp_path: Path
) -> None:
    """With its checksum mended, as a hostile writer would do it: else all would be refused."""
    data, path, query = file.read_bytes(), tmp_path / "m.safetensors", next(few.queries.iterdir())

    def scored() -> None:
        report = Detector.load(path, device="cpu", workers=1).score(query)
        assert np.isfinite([report.images[0].score, report.threshold.score]).all()

    count = 0
    for seed in range(FUZZED):
        path.write_bytes(sealed(spoiled(data, random.Random(seed))))
        count += refused(scored) is not None
    assert FUZZED / 4 < count < FUZZED


def test_the_metadata_of_a_model_are_json_that_the_schema_takes(contents: Contents) -> None:
    assert {event["action"] for event in contents.metadata["history"]} == {"calibrate", "decide"}
    assert json.loads(json.dumps(contents.metadata)) == contents.metadata
