from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anoscan.cli.app import main
from anoscan.cli.commands.suspects import train_and_rank
from anoscan.core.errors import InputError, UsageError
from anoscan.core.runtime import random_stream
from anoscan.dataset.split import dealt
from anoscan.detector import Detector
from anoscan.images.decode import decode
from anoscan.images.files import ImageFile, find
from anoscan.model.judge import Judge, Wanted
from anoscan.model.score_of_terms import Scorer
from anoscan.scoring.measure import fit_sums, fit_terms, term_sums
from anoscan.training import suspects
from tests.conftest import Digits

STRANGERS = 10


@pytest.fixture(scope="module")
def mixed(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal digits, and a few that something happened to."""
    folder = tmp_path_factory.mktemp("mixed")
    for file in sorted(digits.normal.iterdir())[:190]:
        shutil.copy(file, folder)
    rng = np.random.default_rng(0)
    for number, file in enumerate(sorted(digits.normal.iterdir())[200 : 200 + STRANGERS]):
        with Image.open(file) as image:
            pixels = np.asarray(image)
        changed = (
            255 - pixels,
            rng.permutation(pixels),
            pixels // 4 + 128,
            np.roll(pixels, 4, axis=1),
            np.where(rng.random(pixels.shape) < 0.3, 255, pixels).astype(np.uint8),
        )[number % 5]
        Image.fromarray(changed).save(folder / f"stranger-{file.name}")
    return folder


def test_strangers_are_among_the_first_tenth(trained: Detector, mixed: Path) -> None:
    found = suspects.rank(
        trained.model, trained.reference, trained.runtime, [mixed], lambda progress: None
    ).images
    assert len(found) == 190 + STRANGERS
    assert sum("stranger" in image.path for image in found[:20]) >= 7
    assert [image.rank for image in found] == list(range(1, 201))
    assert [image.score for image in found] == sorted((i.score for i in found), reverse=True)
    # Of 199 others none is as odd as the first, and all are as odd as the last.
    assert found[0].p_value == pytest.approx(1 / 200)
    assert found[-1].p_value == pytest.approx(1)


def test_parts_added_up_give_the_fit_of_the_whole(trained: Detector, mixed: Path) -> None:
    model = trained.model
    pixels = [decode(image, model.rule).pixels for image in find([mixed])[:60]]
    x = torch.from_numpy(np.stack(pixels))
    whole = fit_terms(model.networks, ["density"], [x])
    parts = [term_sums(model.networks, ["density"], [x[i::3]]) for i in range(3)]
    summed = fit_sums(parts)
    for key, value in whole["density"].items():
        np.testing.assert_allclose(summed["density"][key], value, rtol=2e-3, atol=1e-4)
    rest = fit_sums(parts[:2])
    assert not np.allclose(rest["density"]["mean"], whole["density"]["mean"], atol=1e-6)


def test_suspects_on_the_command_line_list_all_images(
    trained: Detector,
    mixed: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["anoscan", "suspects", str(mixed), "--model", trained.reference.path]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "anoscan.suspects/1"
    assert set(document["images"][0]) == {"rank", "path", "score", "p_value"}
    assert len(document["images"]) == 200
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "stranger" in out
    assert "look at them" in out


def test_suspects_are_left_out_of_what_counts_as_usual_alone(
    few: Digits, tmp_path: Path, quick: dict[str, int]
) -> None:
    options = quick | {"rotation_images_shown": 64, "calibration_folds": 2, "workers": 1}
    with_all = Detector.train(few.normal, path=tmp_path / "all.safetensors", **options)
    detector, report = train_and_rank(
        [few.normal],
        drop=True,
        on_progress=lambda progress: None,
        path=tmp_path / "clean.safetensors",
        **options,
    )
    trained, found = detector.report, detector.suspicion
    assert trained is not None
    assert found is not None
    assert len(found.worst) == 24
    assert [image.path for image in report.images] == [
        found.images[row].path for row in found.order
    ]
    kept = trained.images
    assert 24 >= kept.dropped >= 10
    assert (kept.trained + kept.dropped, kept.held_out) == (90, 30)
    # The networks learned from all images, and all calibrate, whatever they are suspected of.
    for key, value in detector.model.networks.discriminator.state_dict().items():
        assert value.equal(with_all.model.networks.discriminator.state_dict()[key])
    assert len(detector.model.calibration.terms) == len(with_all.model.calibration.terms) == 120
    mean, mean_of_all = (
        model.fitted["density"]["mean"] for model in (detector.model, with_all.model)
    )
    assert not mean.equal(mean_of_all)
    usual = [
        image
        for image, digest in zip(found.images, found.digests, strict=True)
        if digest not in found.worst
    ]
    odd = [image for image in found.images if image not in usual]
    density = list(detector.model.fitted).index("density")
    judges = [Judge(model, detector.runtime) for model in (detector.model, with_all.model)]

    def median(judge: Judge, some: list[ImageFile]) -> float:
        batches = judge.measured(some, 64, wanted=Wanted(pictures=False))
        return float(np.median([outcome[1][density] for batch in batches for outcome in batch]))

    contrast, contrast_of_all = (median(j, odd) / median(j, usual) for j in judges)
    assert contrast > contrast_of_all


def test_of_a_root_like_mvtec_only_train_good_is_suspected(
    trained: Detector, mixed: Path, tmp_path: Path
) -> None:
    shutil.copytree(mixed, tmp_path / "train" / "good")
    shutil.copytree(mixed, tmp_path / "test" / "scratch")
    notes = []
    report = suspects.rank(
        trained.model,
        trained.reference,
        trained.runtime,
        [tmp_path],
        lambda progress: notes.append(progress.note),
    )
    assert {"train/good" in image.path for image in report.images} == {True}
    assert len(report.images) == 190 + STRANGERS
    assert any("train/good is used" in (note or "") for note in notes)


def test_a_fold_of_suspects_alone_and_copies_of_one_image_are_borne(
    trained: Detector, mixed: Path
) -> None:
    model = trained.model
    scorer = Scorer(model.fitted, model.calibration)
    pixels = np.stack([decode(file, model.rule).pixels for file in find([mixed])[:30]])
    folds = [np.arange(6 * number, 6 * number + 6) for number in range(5)]
    usual = np.ones(30, dtype=bool)
    usual[folds[2]] = False
    for some in (usual, np.arange(30) < 6):  # of the other folds, one lacks witnesses, or all do
        terms = suspects._cross_fitted(trained.model.measurer, 0, pixels, folds, some)
        assert np.isfinite(terms).all()
    with pytest.raises(InputError, match="same picture"):
        suspects.scores(model.measurer, scorer, 0, pixels, [b"one"] * 30)


def test_a_copy_does_not_vouch_for_a_stranger(trained: Detector, mixed: Path) -> None:
    model, seed = trained.model, trained.model.config.seed
    scorer = Scorer(model.fitted, model.calibration)
    pixels = np.stack([decode(file, model.rule).pixels for file in find([mixed])])
    twice, groups = np.concatenate([pixels, pixels]), [b"%d" % row for row in range(len(pixels))]
    scores = suspects.scores(model.measurer, scorer, seed, twice, groups + groups)
    folds = dealt(groups + groups, suspects.FOLDS, random_stream(seed, "suspects"))
    assert all(set(fold) == {(row + len(groups)) % len(twice) for row in fold} for fold in folds)
    np.testing.assert_allclose(scores[: len(groups)], scores[len(groups) :], atol=1e-4)


def test_what_cannot_be_done_is_said(trained: Detector, few: Digits, tmp_path: Path) -> None:
    some = sorted(few.normal.iterdir())[:10]
    with pytest.raises(InputError, match="too few"):
        suspects.rank(
            trained.model, trained.reference, trained.runtime, some, lambda progress: None
        )
    with pytest.raises(InputError, match="10 readable images are too few"):
        Detector.train(some, path=tmp_path / "few.safetensors", drop_suspects=True)
    with pytest.raises(UsageError, match="not with --patches"):
        suspects.check(1000, patches=True)
