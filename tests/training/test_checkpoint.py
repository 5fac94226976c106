"""A checkpoint is valid, or ``train --resume`` refuses it with one line that says the way out."""

from __future__ import annotations

import copy
import itertools
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
from anoscan.core.config import TrainConfig
from anoscan.core.errors import ModelError, TrainingInterrupted
from anoscan.core.runtime import Runtime
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule
from anoscan.model import file as modelfile
from anoscan.model import store
from anoscan.model.file import Contents
from anoscan.model.model import fresh_networks
from anoscan.networks.loop import Position, Stage, run
from anoscan.networks.stages import Stages
from anoscan.training.checkpoint import Checkpoint
from tests.conftest import Digits
from tests.model.damage import GONE, paths, replaced, sealed, spoiled, tensor_damages

FUZZED = 300
SETTINGS = {
    "images_shown": 96,
    "encoder_images_shown": 96,
    "batch_size": 32,
    "width": 4,
    "size": 16,
}
OPTIONS = [
    text for name, value in SETTINGS.items() for text in (f"--{name.replace('_', '-')}", str(value))
]


@pytest.fixture(scope="module")
def file(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that was stopped after one step of its last stage."""

    def stop_early(stage: Stage, **arguments: Any) -> None:
        position: Position = arguments["position"]
        stopping = lambda: stage.name == "encoder" and position.step == 1  # noqa: E731
        run(stage, **arguments | {"stopping": stopping})

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOSCAN_HOME", str(home))
        patch.setattr("anoscan.networks.stages.run", stop_early)
        with pytest.raises(TrainingInterrupted):
            Detector.train(few.normal, name="run", device="cpu", precision="float32", **SETTINGS)
        return store.checkpoint_path("run")


@pytest.fixture(scope="module")
def contents(file: Path) -> Contents:
    return modelfile.load(file)


@pytest.fixture
def resume(contents: Contents) -> Callable[[Path], Position]:
    """Reads a checkpoint and restores all its stages, as a training does; takes one step."""
    identity = contents.metadata["identity"]
    config = TrainConfig.from_dict(identity["config"])
    networks = fresh_networks(config, ImageRule(size=16, channels=1, window=None))
    pixels, runtime = np.zeros((32, 1, 16, 16), np.float32), Runtime.resolve("cpu", "float32", 1)
    stages = Stages(pixels, np.arange(32), config, runtime, few=True)
    gan = stages.gan(networks)
    rotation = stages.rotation(copy.deepcopy(networks.discriminator))
    encoder = stages.encoder(networks)
    assert rotation is not None
    assert encoder is not None

    def restore(path: Path) -> Position:
        checkpoint = Checkpoint(path, identity, resume=True)
        for planned in (gan, rotation):
            if checkpoint.has_finished(planned.stage):
                checkpoint.restore_finished(planned.stage)
        position = checkpoint.restore(encoder.stage)
        encoder.stage.step(position.step)
        return position

    return restore


def refused(act: Callable[[], object]) -> str | None:
    """The one line of a refusal; None for none. Any other error is a fault."""
    try:
        act()
    except ModelError as error:
        message, hint = error.message, error.hint or ""
    else:
        return None
    assert message.startswith("--resume: the checkpoint ")
    assert "\n" not in message
    assert len(message) < 500
    assert "--resume" in hint
    return message


Refusal = Callable[..., str | None]


@pytest.fixture
def refusal(
    contents: Contents,
    resume: Callable[[Path], Position],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Refusal:
    """Resumes from a checkpoint with other tensors or metadata, and gives the refusal."""

    def read(**changes: Any) -> str | None:
        monkeypatch.setattr(modelfile, "load", lambda path: contents._replace(**changes))
        return refused(lambda: resume(file))

    return read


def test_a_checkpoint_that_is_whole_is_resumed_where_it_stopped(
    resume: Callable[[Path], Position], file: Path
) -> None:
    assert resume(file) == Position(step=1, rollbacks=0)


def test_every_tensor_that_is_damaged_is_refused_by_name(
    contents: Contents, refusal: Refusal
) -> None:
    kinds = itertools.count()
    assert len(contents.tensors) > 150
    for name in sorted(contents.tensors):
        damages = list(tensor_damages(contents.tensors, name))
        kind, tensors = damages[next(kinds) % len(damages)]
        # Nothing says which weights have moments. But none has some of its moments only.
        assert name.partition("|")[2] in str(refusal(tensors=tensors)), (name, kind)


@pytest.mark.parametrize("part", ["now|encoder/", "now|optimizer", "finished-gan|slow-down"])
def test_every_kind_of_damage_of_a_tensor_is_refused(
    contents: Contents, refusal: Refusal, part: str
) -> None:
    name = min(name for name in contents.tensors if name.startswith(part))
    for kind, tensors in tensor_damages(contents.tensors, name):
        assert refusal(tensors=tensors), kind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("now|optimizer-encoder/0/step", torch.tensor(-1.0)),  # then Adam would divide by nought
        ("now|optimizer-encoder/0/exp_avg_sq", None),
        ("now|slow-down", torch.tensor(-1.0, dtype=torch.float64)),
        ("now|slow-down", torch.tensor(2.0, dtype=torch.float64)),
        ("now|optimizer-encoder/x/step", torch.tensor(1.0)),
        ("now|optimizer-encoder/0/0/0", torch.tensor(1.0)),
        ("now|optimizer-encoder/999/step", torch.tensor(1.0)),
        ("now|", torch.tensor(1.0)),
        ("finished-other|slow-down", torch.tensor(1.0, dtype=torch.float64)),
        ("loose", torch.tensor(1.0)),
    ],
)
def test_states_that_no_optimiser_has_are_refused(
    contents: Contents, refusal: Refusal, name: str, value: torch.Tensor | None
) -> None:
    value = -torch.ones_like(contents.tensors[name]) if value is None else value
    assert "is damaged" in str(refusal(tensors=contents.tensors | {name: value}))


def test_every_value_of_the_metadata_that_is_missing_or_of_another_kind_is_refused(
    contents: Contents, refusal: Refusal
) -> None:
    metadata = contents.metadata
    for path in paths(metadata):
        if path[0] != "format":
            for value in (GONE, None, [], {}, "text", -1, 2**63, True):
                changed = replaced(metadata, path, value)
                assert changed == metadata or refusal(metadata=changed), (path, value)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("step",), 10**9, "beyond the end"),
        (("stage",), "other", "matching"),
        (("stage",), "gan", "stages"),
        (("stage",), None, "'now'"),
        (("rollbacks",), 4, "rollbacks"),
        (("finished",), {"gan": 0}, "'finished-rotation'"),
        (("finished",), {"rotation": 0}, "stages"),
        (("identity", "config", "seed"), 7, "--seed"),
        (("identity", "images"), "0" * 64, "What differs: images"),
        (("kind",), "model", "kind"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(
    contents: Contents, refusal: Refusal, path: tuple[str | int, ...], value: Any, why: str
) -> None:
    assert re.search(why, str(refusal(metadata=replaced(contents.metadata, path, value))))


def test_a_checkpoint_with_any_changed_bytes_is_refused_or_resumed(
    file: Path, resume: Callable[[Path], Position], tmp_path: Path
) -> None:
    """With its checksum mended, as a hostile writer would do it: else all would be refused."""
    data, path, count = file.read_bytes(), tmp_path / "run.safetensors", 0
    for seed in range(FUZZED):
        path.write_bytes(sealed(spoiled(data, random.Random(seed))))
        count += refused(lambda: resume(path)) is not None
    assert FUZZED / 4 < count < FUZZED


@pytest.mark.parametrize("what", ["tensor", "not a number", "finished", "identity", "bytes"])
def test_a_damaged_checkpoint_ends_the_command_with_one_line(
    contents: Contents,
    few: Digits,
    file: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, (tensors, metadata, _) = store.checkpoint_path("run"), contents
    first = "finished-gan|generator/0.weight"
    if what == "tensor":
        tensors = {name: value for name, value in tensors.items() if name != first}
    elif what == "not a number":
        tensors = tensors | {first: torch.full_like(tensors[first], torch.nan)}
    elif what in metadata:
        metadata = metadata | {what: 5}
    modelfile.save(path, tensors, metadata)
    if what == "bytes":
        path.write_bytes(file.read_bytes()[:-9] + bytes(9))
    command = ["train", str(few.normal), "--name", "run", "--resume", "--quiet", *OPTIONS]
    monkeypatch.setattr(sys, "argv", ["anoscan", *command, "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert error.startswith("Error: --resume: the checkpoint cannot be used: ")
    assert error.endswith("Train without --resume.\n")
    assert error.count("\n") == 1
