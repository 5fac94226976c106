"""Bad trainings get the right warning, a good one gets none."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anoscan.core.config import TrainConfig
from anoscan.core.errors import InputError
from anoscan.core.progress import Progress
from anoscan.core.results import Health, HealthReport, ModelHealth
from anoscan.dataset import census
from anoscan.dataset.census import Census
from anoscan.dataset.inspection import Inspection
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule
from anoscan.model.model import fresh_networks
from anoscan.scoring.baselines import Baselines
from anoscan.training import health, network_checks
from anoscan.training.health import Findings, GameWatch
from anoscan.training.network_checks import Game, NetworkChecks
from tests.conftest import Digits

GOOD_FOLDER = Census(
    images=1000,
    copies=0,
    views=1000,
    blank=0,
    sizes={"28x28": 512},
    bit_depths={"8-bit grey": 512},
    patched=False,
)
GOOD = Findings(
    rollbacks=0,
    game=Game(diversity=0.9, separated=0.9, by_heart=0.1),
    networks=NetworkChecks(pca=0.2, copied=0.1, gap=1.1, inversion=0.2),
    reconstruction=0.3,
    twins=0.0,
)


def verdicts(report: HealthReport) -> dict[str, Health]:
    """What is not ok."""
    return {check.name: check.verdict for check in report.checks if check.verdict != "ok"}


def of(folder: Census = GOOD_FOLDER, findings: Findings = GOOD) -> HealthReport:
    return health.examine(health.of_folder(folder, 900, 100, "images"), findings)


def test_a_good_training_gets_no_warning() -> None:
    assert of().verdict == "ok"


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "words"),
    [
        ({"copies": 300}, "duplicates", "warn", "copies"),
        ({"copies": 600}, "duplicates", "fail", "copies"),
        ({"blank": 100}, "constant", "warn", "nothing to learn"),
        ({"blank": 1000}, "constant", "fail", "nothing to learn"),
        ({"sizes": {"28x28": 90, "56x28": 10}}, "sizes", "warn", "--patches"),
        ({"sizes": {"28x28": 90, "84x84": 10}}, "sizes", "warn", "--patches"),
        ({"bit_depths": {"8-bit grey": 90, "16-bit grey": 1}}, "bit_depths", "warn", "Convert"),
        ({"bit_depths": {"8-bit grey": 90, "8-bit colour": 1}}, "bit_depths", "warn", "Convert"),
    ],
)
def test_a_bad_folder_is_named_for_what_is_wrong(
    changes: dict[str, object], name: str, verdict: Health, words: str
) -> None:
    report = of(dataclasses.replace(GOOD_FOLDER, **changes))  # type: ignore[arg-type]
    assert verdicts(report) == {name: verdict}
    assert words in next(check.message for check in report.checks if check.name == name)


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": {"28x28": 50, "30x28": 50}},
        {"sizes": {"280x28": 50, "28x280": 50}, "patched": True},
        {"bit_depths": {"8-bit grey": 5, "8-bit colour": 95}},
        {"copies": 20, "blank": 5},
        {"views": 100, "blank": 10, "patched": True},
    ],
)
def test_a_folder_of_ordinary_variety_gets_no_warning(changes: dict[str, object]) -> None:
    assert of(dataclasses.replace(GOOD_FOLDER, **changes)).verdict == "ok"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("findings", "name", "verdict", "words"),
    [
        ({"rollbacks": 2}, "stability", "warn", "2 times"),
        ({"game": Game(0.02, 0.9, 0.1)}, "diversity", "fail", "mode collapse"),
        ({"game": Game(0.9, 0.5, 0.1, still=True)}, "discriminator", "fail", "wgan-gp"),
        ({"game": Game(0.9, 0.9, 0.8)}, "memorisation", "warn", "by heart"),
        ({"reconstruction": 1.2}, "reconstruction", "fail", "--images-shown"),
        ({"reconstruction": 0.51}, "reconstruction", "fail", "pictures do not show them"),
        ({"reconstruction": float("nan")}, "reconstruction", "fail", "unusable"),
        (
            {"reconstruction": 1.2, "networks": NetworkChecks(0.2, 0.1, 1.1, inversion=1.0)},
            "reconstruction",
            "fail",
            "--encoder-images-shown",
        ),
        (
            {
                "reconstruction": 1.2,
                "networks": NetworkChecks(0.2, 0.1, 1.1, inversion=1.0),
                "apart": False,
            },
            "reconstruction",
            "fail",
            "The encoder failed: train it longer (--images-shown)",
        ),
        ({"networks": NetworkChecks(0.2, 0.9, 1.1, 0.2)}, "memorisation", "warn", "copies"),
        ({"networks": NetworkChecks(0.2, 0.1, 5.0, 0.2)}, "memorisation", "warn", "5.0 times"),
        ({"twins": 0.3}, "near_copies", "warn", "30%"),
    ],
)
def test_a_bad_training_is_named_for_what_went_wrong(
    findings: dict[str, object], name: str, verdict: Health, words: str
) -> None:
    report = of(findings=dataclasses.replace(GOOD, **findings))  # type: ignore[arg-type]
    assert verdicts(report) == {name: verdict}
    assert words in next(check.message for check in report.checks if check.name == name)


@pytest.mark.parametrize(
    ("scored", "odd", "doubted"), [(50, 49, True), (50, 25, False), (3, 3, False)]
)
def test_only_a_batch_that_is_nearly_all_odd_is_doubted(
    scored: int, odd: int, doubted: bool
) -> None:
    assert (health.of_scores(scored, odd) is not None) == doubted


def test_reconstructions_are_usable_up_to_half_of_what_the_mean_image_misses() -> None:
    assert health.UNUSABLE == 0.5
    usable = dataclasses.replace(GOOD, reconstruction=health.UNUSABLE)
    assert of(findings=usable).verdict == "ok"


def stored(*checks: tuple[str, Health], rotated: bool = True) -> dict[str, Any]:
    """Return metadata of a model with these checks."""
    found = [{"name": name, "verdict": v, "value": 0, "message": f"{name}!"} for name, v in checks]
    return {"health": {"checks": found}, "terms": ["density", *["rotation"] * rotated]}


LITTLE = "its scores and verdicts may mean little"


@pytest.mark.parametrize(
    ("failed", "rotated", "words", "others"),
    [
        ("images", True, LITTLE, "default score"),
        ("duplicates", True, LITTLE, "default score"),
        ("constant", True, LITTLE, "default score"),
        ("reconstruction", True, "The default score uses none of these", LITTLE),
        ("reconstruction", False, "The default score uses none of these", LITTLE),
        ("diversity", True, "its generated images may mean little. The default score", LITTLE),
        ("discriminator", True, "its generated images may mean little. The default score", LITTLE),
        # Without a rotation stage, scores use the discriminator as the GAN stage left it.
        ("diversity", False, LITTLE, "default score"),
        ("discriminator", False, LITTLE, "default score"),
    ],
)
def test_a_failed_check_says_what_it_affects_and_no_more(
    failed: str, rotated: bool, words: str, others: str
) -> None:
    metadata = stored((failed, "fail"), ("sizes", "ok"), rotated=rotated)
    (warning,) = health.warnings_of("cells", metadata)
    assert "cells" in warning
    assert words in warning
    assert others not in warning
    found = health.of_model("cells", metadata)
    assert found.verdict == "fail"
    assert found.messages == (warning,)
    assert found.reconstructions == ("unusable" if failed == "reconstruction" else "ok")


def test_each_thing_that_failed_checks_affect_has_a_warning_of_its_own() -> None:
    failed: list[tuple[str, Health]] = [
        (name, "fail") for name in ("images", "reconstruction", "constant", "diversity")
    ]
    scores, pictures, generated = health.warnings_of("cells", stored(*failed))
    assert "the checks of images and constant" in scores
    assert "reconstructions of cells are unusable" in pictures
    assert "the check of diversity" in generated


def test_the_health_of_a_model_tells_of_warnings_which_nobody_is_warned_of() -> None:
    metadata = stored(("images", "warn"), ("sizes", "ok"))
    assert health.warnings_of("cells", metadata) == ()
    found = health.of_model("cells", metadata)
    assert found == ModelHealth(verdict="warn", reconstructions="ok", messages=("images: images!",))
    sound = health.of_model("cells", stored(("sizes", "ok")))
    assert sound == ModelHealth(verdict="ok", reconstructions="ok", messages=())


def test_no_sentence_of_the_health_report_is_long() -> None:
    bad = dataclasses.replace(
        GOOD, rollbacks=2, reconstruction=1.2, networks=NetworkChecks(0.2, 0.9, 1.1, 0.2), twins=0.3
    )
    odd = {"sizes": {"28x28": 90, "56x28": 10}, "bit_depths": {"8-bit grey": 9, "16-bit grey": 1}}
    folder = dataclasses.replace(GOOD_FOLDER, copies=300, blank=300, **odd)  # type: ignore[arg-type]
    games = [Game(0.02, 0.9, 0.1), Game(0.3, 1.0, 0.1), Game(9.0, 0.9, 0.8), Game(0.9, 0, 0, True)]
    copying = dataclasses.replace(bad, networks=NetworkChecks(0.2, 0.1, 1.1, 1.0))
    reports = [
        health.examine(
            health.of_folder(folder, n, 20, "images"), dataclasses.replace(findings, game=game)
        )
        for game in games
        for findings in (bad, copying)
        for n in (20, 200)
    ]
    messages = [check.message for report in reports for check in report.checks]
    can_fail = ("images", "duplicates", "constant", "diversity", "discriminator", "reconstruction")
    failed = stored(*((name, "fail") for name in can_fail), rotated=False)
    messages += [*health.warnings_of("cells", failed), str(health.of_scores(50, 50))]
    sentences = [part for message in messages for part in re.split(r"[.?] ", message)]
    assert len(set(sentences)) > 40
    assert [s for s in sentences if len(s.split()) > 25] == []


def test_a_discriminator_that_has_won_is_only_bad_when_the_generator_does_not_follow() -> None:
    assert of(findings=dataclasses.replace(GOOD, game=Game(0.7, 1.0, 0.1))).verdict == "ok"
    lost = verdicts(of(findings=dataclasses.replace(GOOD, game=Game(0.3, 1.0, 0.1))))
    assert lost == {"diversity": "warn", "discriminator": "warn"}


def test_a_game_of_pairs_has_no_discriminator_to_speak_of() -> None:
    names = {check.name for check in of(findings=dataclasses.replace(GOOD, game=PAIRS)).checks}
    assert "discriminator" not in names


PAIRS = Game(diversity=0.9, separated=None, by_heart=None)


def test_an_image_is_blank_when_no_channel_has_anything_in_it() -> None:
    noise = np.random.default_rng(0).uniform(-0.004, 0.004, (3, 16, 16)).astype(np.float32)
    image = noise + np.array([0.5, -0.5, 0], np.float32)[:, None, None]
    assert census.is_blank(image)
    image[2, 3, 3] = 0.5
    assert not census.is_blank(image)


def test_generated_copies_are_told_from_new_images() -> None:
    draw = np.random.default_rng(0).normal
    known, unknown = draw(size=(900, 8)), draw(size=(100, 8))
    assert network_checks.copied(draw(size=(512, 8)), known, unknown) < 0.4
    assert network_checks.copied(known[:512] + draw(size=(512, 8)) / 100, known, unknown) > 0.9
    far = 40 + draw(size=(512, 8))  # the outermost image is the nearest of them all
    assert network_checks.copied(far, known, unknown) == 0


def test_one_image_or_noise_is_not_called_a_copy_of_training_images() -> None:
    copying = dataclasses.replace(GOOD.networks, copied=1.0)
    assert "memorisation" in verdicts(of(findings=dataclasses.replace(GOOD, networks=copying)))
    one_image = dataclasses.replace(GOOD, networks=copying, game=Game(0.02, 0.9, 0.1))
    assert verdicts(of(findings=one_image)) == {"diversity": "fail"}
    noise = of(findings=dataclasses.replace(GOOD, game=Game(17.0, 0.9, 0.1)))
    assert verdicts(noise) == {"diversity": "warn"}


def test_the_nearest_point_is_found() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    apart, which = network_checks.nearest(points + 1e-3, points)
    assert which.tolist() == list(range(20))
    assert apart == pytest.approx(np.full(20, 3e-6))


class Told:
    """A watch, and all that it passed on."""

    def __init__(self, *games: Game, total: int = 10_000) -> None:
        self.seen: list[Progress] = []
        self.games = iter(games)
        self.watch = GameWatch(self.seen.append, lambda images: next(self.games))
        for images in range(0, total + 1, total // 50):
            self.watch(Progress("gan", images, total, {"generator": 1.0}, 100.0))

    @property
    def notes(self) -> list[str]:
        return [progress.note for progress in self.seen if progress.note]


def test_a_collapse_is_said_once_while_the_game_is_on() -> None:
    told = Told(*[Game(0.01, 0.9, 0.1)] * 4)
    assert len(told.notes) == 1
    assert "mode collapse" in told.notes[0]
    assert len(told.seen) == 51 + 1
    assert next(told.games, None) is None, "the second half is looked at in four places"


def test_a_game_of_a_second_is_not_watched() -> None:
    assert Told(*[Game(0.01, 0.9, 0.1)] * 4, total=1000).notes == []


def test_a_good_game_is_not_talked_about() -> None:
    assert Told(*[Game(0.9, 0.9, 0.1)] * 4).notes == []


class Blob(nn.Module):
    """A generator of one image, and a discriminator that knows it.

    `told` is how much of that the discriminator tells.
    """

    def __init__(self, told: float = 1.0) -> None:
        super().__init__()
        self.told = told
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return torch.zeros(len(x), 1, 16, 16) + self.weight
        return 0.01 + self.told * x.flatten(1).abs().sum(1)


def write(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    return folder


def train(folder: Path, quick: dict[str, int], **settings: float) -> HealthReport:
    path = folder.parent / "model.safetensors"
    detector = Detector.train(folder, path=path, workers=1, **{**quick, **settings})
    assert detector.report is not None
    return detector.report.health


def scans(digits: Digits, n: int) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(digits.normal.iterdir())[:n]]


def test_a_trained_detector_of_many_good_images_is_in_good_health(trained: Detector) -> None:
    assert trained.report is not None
    assert verdicts(trained.report.health) == {}


def test_a_folder_in_which_nearly_all_is_odd_is_doubted(
    trained: Detector, digits: Digits, tmp_path: Path
) -> None:
    wrong = write(tmp_path / "wrong", [255 - scan for scan in scans(digits, 30)])
    warning = trained.score(wrong, false_alarm_rate=0.05).warning
    assert warning is not None
    assert "wrong folder" in warning
    assert trained.score(digits.queries, false_alarm_rate=0.05).warning is None


def test_twenty_images_are_too_few(few: Digits, tmp_path: Path, quick: dict[str, int]) -> None:
    found = verdicts(train(write(tmp_path / "n", scans(few, 20)), quick))
    assert found["images"] == "fail"
    assert found["calibration"] == "warn"


def test_copies_are_found_before_training_starts(
    few: Digits, tmp_path: Path, quick: dict[str, int]
) -> None:
    images = scans(few, 70)
    folder, notes = write(tmp_path / "n", images + images[:30]), list[str]()
    detector = Detector.train(
        folder,
        path=tmp_path / "model.safetensors",
        workers=1,
        on_progress=lambda progress: notes.append(progress.note or ""),
        **quick,
    )
    assert detector.report is not None
    check = {check.name: check for check in detector.report.health.checks}["duplicates"]
    assert (check.verdict, check.value) == ("warn", pytest.approx(0.3))
    assert check.message in notes


def test_blank_images_fail(tmp_path: Path, quick: dict[str, int]) -> None:
    images = [np.full((16, 16), grey, np.uint8) for grey in range(50, 170)]
    assert verdicts(train(write(tmp_path / "n", images), quick))["constant"] == "fail"


def test_one_picture_many_times_is_refused(tmp_path: Path, quick: dict[str, int]) -> None:
    with pytest.raises(InputError, match="same picture"):
        train(write(tmp_path / "n", [np.zeros((16, 16), np.uint8)] * 40), quick)


def test_a_huge_learning_rate_ruins_the_gan_and_is_told(few: Digits, quick: dict[str, int]) -> None:
    report = train(few.normal, quick, learning_rate=0.5)
    assert report.verdict == "fail"
    # One image or noise: that depends on how the processor rounds.
    failed = {name for name, verdict in verdicts(report).items() if verdict == "fail"}
    assert failed & {"diversity", "reconstruction"}


def test_a_generator_of_one_image_has_no_diversity_and_loses_the_game() -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (100, 1, 16, 16)).astype(np.float32)
    material: Any = SimpleNamespace(pixels=pixels, rows=np.arange(80), unseen=np.arange(80, 100))
    found = network_checks.game(Blob(), Blob(), material, TrainConfig(latent_dim=4), images=64)
    assert found.diversity == 0
    assert found.separated == 1
    assert not found.still
    mute = network_checks.game(
        Blob(), Blob(told=1e-9), material, TrainConfig(latent_dim=4), images=64
    )
    assert mute.still


class Guess(torch.nn.Module):
    """A critic that knows nothing: a random direction."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.way = torch.nn.Parameter(
            torch.randn(256, generator=torch.Generator().manual_seed(seed))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.way


class Noise(torch.nn.Module):
    """A generator of exactly what the images are."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        seed = int(z.abs().sum() * 1e4)
        some = torch.rand(len(z), 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        return 2 * some - 1 + self.nothing


def test_a_discriminator_that_tells_nothing_apart_has_learned_nothing_by_heart() -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (400, 1, 16, 16)).astype(np.float32)
    material: Any = SimpleNamespace(pixels=pixels, rows=np.arange(300), unseen=np.arange(300, 400))
    config = TrainConfig(latent_dim=4)
    found = [
        network_checks.game(Noise(), Guess(n), material, config, images=300) for n in range(20)
    ]
    assert sum((game.by_heart or 0) > health.BY_HEART for game in found) <= 1


class Pixels:
    """Pixels of a training that count how many are read at a time."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape, self.most = pixels, pixels.shape, 0

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(rows))
        found: np.ndarray = self.pixels[rows]
        return found


def checked_up(side: int, monkeypatch: pytest.MonkeyPatch, most_pixels: int) -> tuple[Any, int]:
    """A checkup of untrained networks on noise, and how many images it read at a time."""
    monkeypatch.setattr(network_checks, "MOST_PIXELS", most_pixels)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (300, 1, side, side)).astype(np.float32)
    counting = Pixels(pixels)
    material: Any = SimpleNamespace(
        pixels=counting, rows=np.arange(200), unseen=np.arange(200, 300)
    )
    config = TrainConfig(latent_dim=4, width=4, architecture="dcgan", size=side, channels=1)
    networks = fresh_networks(config, ImageRule(size=side, channels=1, window=None)).frozen()
    baselines = Baselines.fit(pixels, np.arange(200), 0)
    return network_checks.examine(networks, baselines, material, config), counting.most


def test_near_twins_are_counted() -> None:
    rng = np.random.default_rng(0)
    known = rng.uniform(-1, 1, (200, 1, 16, 16)).astype(np.float32)
    other = rng.uniform(-1, 1, (75, 1, 16, 16)).astype(np.float32)
    pixels = np.concatenate([known, other, known[:25] + np.float32(0.001)])
    material: Any = SimpleNamespace(pixels=pixels, rows=np.arange(200), unseen=np.arange(200, 300))
    assert network_checks.twins(material, 0) == 0.25


def test_of_large_images_few_are_looked_at_in_full_and_as_many_as_ever_in_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side = 16
    whole, most = checked_up(side, monkeypatch, network_checks.SAMPLES * side**2)
    assert most == 200
    sparing, most = checked_up(side, monkeypatch, 40 * side**2)
    assert most == 64, "thumbnails are made of a chunk at a time"
    assert sparing.copied == whole.copied
    assert sparing.gap != whole.gap
    assert sparing.gap == pytest.approx(whole.gap, rel=0.1)
    assert sparing.pca == pytest.approx(whole.pca, rel=0.1)
    assert sparing.inversion == pytest.approx(whole.inversion, rel=0.1)


@pytest.mark.parametrize(("side", "images"), [(16, 512), (128, 512), (256, 128), (512, 32)])
def test_up_to_128_pixels_as_many_images_are_looked_at_as_ever(side: int, images: int) -> None:
    assert network_checks.in_full(network_checks.SAMPLES, side) == images


@pytest.mark.parametrize(
    ("sizes", "side", "said"),
    [
        ({"1600x1200": 9, "64x64": 1}, 128, "12.5 times smaller: 1600x1200 pixels are seen as"),
        ({"128x512": 3}, 128, "4.0 times smaller"),
        ({"500x500": 3}, 128, None),
        ({"16x16": 3}, 64, None),
    ],
)
def test_much_smaller_images_are_said_with_the_way_out(
    sizes: dict[str, int], side: int, said: str | None
) -> None:
    rule = ImageRule(size=side, channels=1, window=None)
    found = Inspection(rule=rule, sizes=sizes, bit_depths={}, inspected=1)
    note = health.shrinking(found)
    parts = dataclasses.replace(found, rule=dataclasses.replace(rule, patch=side))
    assert health.shrinking(parts) is None
    assert (note is None) == (said is None)
    if note is not None and said is not None:
        assert said in note
        assert "--patches" in note


def test_few_calibration_images_are_said_with_the_way_out() -> None:
    note = health.few_to_calibrate(30, TrainConfig())
    assert note is not None
    assert "below 3.2%" in note
    assert "--calibration-folds 5" in note
    assert health.few_to_calibrate(99, TrainConfig()) is None
    assert health.few_to_calibrate(30, TrainConfig(calibration_folds=5)) is None
    assert health.few_to_calibrate(30, TrainConfig(patches=100)) is None


def test_both_are_said_before_any_network_is_trained(few: Digits, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for file in sorted(few.normal.iterdir())[:40]:
        with Image.open(file) as image:
            image.resize((640, 480)).save(folder / file.name)
    seen: list[Progress] = []
    Detector.train(
        folder, path=tmp_path / "m.safetensors", images_shown=64, encoder_images_shown=64, width=4,
        workers=1, on_progress=seen.append, size=16,
    )  # fmt: skip
    first = next(index for index, progress in enumerate(seen) if progress.stage == "gan")
    notes = [progress.note for progress in seen[:first] if progress.note]
    assert any("40.0 times smaller: 640x480 pixels are seen as 16x16" in note for note in notes)
    assert any("--calibration-folds 5" in note for note in notes)
