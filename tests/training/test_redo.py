"""Training the encoder of a model again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anoscan.core.errors import InputError, UsageError
from anoscan.core.progress import Progress
from anoscan.detector import Detector
from tests.conftest import Digits

SHORT = {"images_shown": 320, "encoder_images_shown": 64, "width": 8}


@pytest.fixture
def model(few: Digits, tmp_path: Path) -> Path:
    path = tmp_path / "bolts.safetensors"
    Detector.train(few.normal, path=path, reconstruction_images_shown=0, **SHORT)
    return path


def test_only_the_encoder_and_the_reconstructions_are_trained_again(
    model: Path, few: Digits
) -> None:
    before, stages = Detector.load(model), []

    def follow(now: Progress) -> None:
        stages.append(now.stage)

    redone = Detector.train(
        few.normal, path=model, redo="encoder", on_progress=follow,
        encoder_images_shown=1600, reconstruction_images_shown=3200,
    )  # fmt: skip
    assert not {"gan", "rotation"} & set(stages)
    after = Detector.load(model)
    assert after.reference.sha256 == redone.reference.sha256 != before.reference.sha256
    for name in ("generator", "discriminator"):
        old, new = (d.model.networks.parts()[name].state_dict() for d in (before, after))
        assert all(torch.equal(value, new[key]) for key, value in old.items()), name
    checks = [
        {check["name"]: check["value"] for check in d.model.metadata["health"]["checks"]}
        for d in (before, after)
    ]
    assert checks[1]["reconstruction"] < 0.7 * checks[0]["reconstruction"]
    assert checks[0].keys() == checks[1].keys()
    # The default score needs neither encoder nor reconstruction.
    scores = [{i.path: i.score for i in d.score(few.queries).images} for d in (before, after)]
    assert scores[0] == pytest.approx(scores[1])


def test_what_cannot_be_trained_again_is_said_and_the_model_stays(
    model: Path, few: Digits, tmp_path: Path
) -> None:
    bytes_before = model.read_bytes()
    with pytest.raises(UsageError, match="--redo must be one of encoder"):
        Detector.train(few.normal, path=model, redo="gan")
    with pytest.raises(UsageError, match="drop --images-shown"):
        Detector.train(few.normal, path=model, redo="encoder", images_shown=64)
    with pytest.raises(UsageError, match="does not go with --resume"):
        Detector.train(few.normal, path=model, redo="encoder", resume=True)
    with pytest.raises(InputError, match="not the images"):
        Detector.train(few.queries, path=model, redo="encoder")
    assert model.read_bytes() == bytes_before


def test_an_encoder_of_pairs_is_not_trained_alone(few: Digits, tmp_path: Path) -> None:
    path = tmp_path / "pairs.safetensors"
    Detector.train(few.normal, path=path, mapping="bigan", images_shown=64, width=8)
    with pytest.raises(UsageError, match="learned with its GAN"):
        Detector.train(few.normal, path=path, redo="encoder")


def test_the_region_of_interest_and_the_dropped_suspects_of_the_model_stay(
    few: Digits, tmp_path: Path
) -> None:
    mask, path = tmp_path / "mask.png", tmp_path / "masked.safetensors"
    Image.fromarray(np.pad(np.full((8, 4), 255, np.uint8), ((0, 0), (2, 2)))).save(mask)
    Detector.train(few.normal, path=path, roi=mask, drop_suspects=True, **SHORT)
    before = Detector.load(path).model
    Detector.train(few.normal, path=path, redo="encoder")
    after = Detector.load(path).model
    assert before.rule.roi is not None
    assert after.rule.roi == before.rule.roi
    facts = [model.metadata["training_data"] for model in (before, after)]
    assert facts[0]["dropped"] == facts[1]["dropped"] > 0
    with pytest.raises(UsageError, match="drop --roi"):
        Detector.train(few.normal, path=path, redo="encoder", roi=mask)
