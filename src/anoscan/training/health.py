"""Training health in plain words: checks of a folder and of a training, with advice.

The checks of `of_folder` need no training; `examine` adds those that need a finished one.

Some checks concern the default score, which is made of pixels and of the discriminator's features.
Others concern the generator and the encoder alone. These draw pictures, and no default score uses
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anoscan.core.config import TrainConfig
from anoscan.core.progress import OnProgress, Progress
from anoscan.core.results import Health, HealthCheck, HealthReport, ModelHealth
from anoscan.dataset.census import Census, odd_depths, odd_sizes
from anoscan.dataset.inspection import Inspection
from anoscan.training.network_checks import Game, NetworkChecks

WATCHED = 8  # parts of the GAN stage, which is checked between them from its middle on
WATCH_SAMPLES = 64  # images of each kind that such a check compares
WATCHED_FROM = 4000  # images shown in all: a shorter GAN stage ends before a user could act
# Good trainings on 1,000 and more images keep far from these limits. docs/health.md says what they
# mean, and docs/decisions.md has the values of some trainings.
OVERPOWERED = 0.999
COLLAPSED, VARIED, TOO_VARIED = 0.1, 0.4, 2.0
COPIED, GAP, BY_HEART = 0.6, 2.0, 0.5
# Ratio of `Findings.reconstruction` above which reconstructions are unusable. They still miss half
# of what the mean image misses, so most of what they show is no trait of the image.
UNUSABLE = 0.5
SHRUNK = 4.0  # images that become so many times smaller may lose their defects
FEWEST_QUERIES, MOST_ODD = 10, 0.8  # fewest queries that are judged, and share of anomalous ones

_GENERATOR = (
    "Generated images and reconstructions may be worse for it; the default score does not use them."
)
_WHY = "`anoscan models show` says why."
_RANK: dict[Health, int] = {"ok": 0, "warn": 1, "fail": 2}
_PICTURES = frozenset({"reconstruction"})  # checks that never concern the default score
# Checks of the GAN stage. They concern the default score where no rotation stage followed: it
# teaches the discriminator anew.
_GAN_STAGE = frozenset({"diversity", "discriminator"})


@dataclass(frozen=True)
class Findings:
    """What the checks of a finished training are made from.

    `rollbacks` counts how often training went back because losses or weights were not finite.
    `game` is the state at the end of the GAN stage, and `networks` are the checks of what was
    learned; both are None without a GAN. `reconstruction` is the mean squared residual of held-out
    normals, relative to that of the mean image. `twins` is the share of them that are near copies
    of training images. `apart` says whether the encoder had a stage of its own.
    """

    rollbacks: int
    game: Game | None
    networks: NetworkChecks | None
    reconstruction: float
    twins: float
    apart: bool = True


class GameWatch:
    """Reports during the GAN stage that the generator collapses or cannot keep up, once each.

    Only the second half of the stage is checked, because at first every generator makes nearly the
    same image of all latents. `notify` gets every `Progress` of the stage, and additional ones with
    a note. `snapshot` takes a number of images and returns the state of the GAN stage.
    """

    def __init__(self, notify: OnProgress, snapshot: Callable[[int], Game]) -> None:
        self.notify, self.snapshot = notify, snapshot
        self.part, self.noted = WATCHED // 2 - 1, set[str]()

    def __call__(self, progress: Progress) -> None:
        """Pass a report of progress on, and check the networks at the end of each part."""
        self.notify(progress)
        part = WATCHED * progress.images // max(progress.total_images, 1)
        if not self.part < part < WATCHED or progress.total_images < WATCHED_FROM:
            return
        self.part = part
        found = self.snapshot(WATCH_SAMPLES)
        for check in (_diversity(found.diversity), *_discriminator(found)):
            if check.verdict != "ok" and check.name not in self.noted:
                self.noted.add(check.name)
                note = f"so far: {check.message}"
                self.notify(
                    Progress(progress.stage, progress.images, progress.total_images, note=note)
                )


def of_folder(census: Census, trained: int, held_out: int, of: str) -> tuple[HealthCheck, ...]:
    """Check a folder of training images.

    `trained` counts images or patches, as `of` says ('images' or 'patches'). `held_out` counts
    images to calibrate on.
    """
    return (
        _images(trained, of),
        _calibration(held_out),
        _duplicates(census),
        _blank(census),
        _sizes(census),
        _bit_depths(census),
    )


def shrinking(found: Inspection) -> str | None:
    """Return a note where whole images become much smaller for the networks, else None."""
    side, sizes = found.rule.size, found.sizes
    width, height = map(int, max(sizes, key=sizes.__getitem__).split("x"))
    times = max(width, height) / side
    if found.rule.patch is not None or times < SHRUNK:
        return None
    return (
        f"images become {times:.1f} times smaller: {width}x{height} pixels are seen as "
        f"{side}x{side}. Where defects are smaller than {math.ceil(2 * times)} pixels, learn from "
        f"parts at full size instead: --patches 20k, or give a larger --size."
    )


def few_to_calibrate(held_out: int, config: TrainConfig) -> str | None:
    """Return a note where `held_out` images promise no rate of 1 % and folds would help."""
    if held_out >= 99 or config.patches is not None or config.calibration_folds is not None:
        return None
    return (
        f"{held_out} held-out images calibrate the model, which promises no false-alarm rate below "
        f"{1 / (held_out + 1):.1%}. --calibration-folds 5 calibrates on the training images too, "
        "and takes about three times as long."
    )


def examine(folder: tuple[HealthCheck, ...], findings: Findings) -> HealthReport:
    """Return all checks, first the given ones of the folder, and the worst of their verdicts."""
    game, networks = findings.game, findings.networks
    near_copies = _near_copies(findings.twins)
    if game is None or networks is None:
        checks = (*folder, _untrained(findings.reconstruction), near_copies)
        return HealthReport(verdict=worst(checks), checks=checks)
    checks = (
        *folder,
        _stability(findings.rollbacks),
        _diversity(game.diversity),
        *_discriminator(game),
        _reconstruction(findings, networks),
        _memorisation(networks, game),
        near_copies,
    )
    return HealthReport(verdict=worst(checks), checks=checks)


def with_kept(report: HealthReport, before: Mapping[str, Any]) -> HealthReport:
    """Return a report with the checks of the GAN stage that only an earlier training could make."""
    made = {check.name for check in report.checks}
    kept = [HealthCheck(**check) for check in before["checks"] if check["name"] in _GAN_STAGE]
    checks = (*report.checks, *(check for check in kept if check.name not in made))
    return HealthReport(verdict=worst(checks), checks=checks)


def of_scores(scored: int, anomalous: int) -> str | None:
    """Return a warning when nearly all of the `scored` queries are anomalous, else None."""
    if scored < FEWEST_QUERIES or anomalous < MOST_ODD * scored:
        return None
    return (
        f"{anomalous:,} of {scored:,} images are called anomalous. Unless they were picked for "
        f"that, this is the wrong model or the wrong folder. Or the images are made otherwise than "
        f"the training images: another camera, crop, size or brightness, or a new --roi."
    )


def of_model(name: str, metadata: Mapping[str, Any]) -> ModelHealth:
    """Return the health of a model, in words, from its metadata, which may be malformed."""
    checks = _stored(metadata)
    given = [verdict for _, verdict, _ in checks]
    failed = [check for check, verdict, _ in checks if verdict == "fail"]
    return ModelHealth(
        verdict=next((verdict for verdict in reversed(_RANK) if verdict in given), "ok"),
        reconstructions="unusable" if "reconstruction" in failed else "ok",
        messages=(
            *warnings_of(name, metadata),
            *(f"{check}: {message}" for check, verdict, message in checks if verdict == "warn"),
        ),
    )


def warnings_of(name: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence about each thing that failed checks of a model's training affect."""
    failed = [check for check, verdict, _ in _stored(metadata) if verdict == "fail"]
    scores = failed_of_scores(metadata)
    drawing = [check for check in failed if check not in (*scores, "reconstruction")]
    found = []
    if scores:
        found.append(
            f"The training of {name} failed {_named(scores)}: its scores and verdicts may mean "
            f"little. {_WHY}"
        )
    if "reconstruction" in failed:
        found.append(
            f"The reconstructions of {name} are unusable: its pictures do not show them. Nor do "
            f"the terms pixel, feature and latent, or the scores paper and anogan, mean much. "
            f"The default score uses none of these. {_WHY}"
        )
    if drawing:
        found.append(
            f"The training of {name} failed {_named(drawing)}: its generated images may mean "
            f"little. The default score does not use them. {_WHY}"
        )
    return tuple(found)


def failed_of_scores(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names of failed checks that concern the default score of a model."""
    terms = metadata.get("terms")
    rotated = isinstance(terms, list) and "rotation" in terms
    others = _PICTURES | _GAN_STAGE if rotated else _PICTURES
    return [
        name for name, verdict, _ in _stored(metadata) if verdict == "fail" and name not in others
    ]


def _stored(metadata: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, verdict and message of the well-formed checks in a model's metadata."""
    health = metadata.get("health")
    checks = health.get("checks") if isinstance(health, Mapping) else None
    return [
        (str(check.get("name")), str(check.get("verdict")), str(check.get("message")))
        for check in (checks if isinstance(checks, list) else [])
        if isinstance(check, Mapping)
    ]


def _named(checks: Sequence[str]) -> str:
    *others, last = checks
    return f"the checks of {', '.join(others)} and {last}" if others else f"the check of {last}"


def worst(checks: tuple[HealthCheck, ...]) -> Health:
    """Return the worst verdict of some checks, and 'ok' where there are none."""
    return max((check.verdict for check in checks), key=_RANK.__getitem__, default="ok")


def _check(name: str, verdict: Health, value: float, message: str) -> HealthCheck:
    return HealthCheck(name=name, verdict=verdict, value=float(value), message=message)


def _images(n: int, of: str) -> HealthCheck:
    if n < 50:
        advice = (
            f"{n} training {of} are far too few for a GAN: scores may mean little. Compare "
            f"--score pca."
        )
        return _check("images", "fail", n, advice)
    if n < 500:
        advice = (
            f"{n} training {of} are few: the networks may memorise them, and scores are less sure. "
            f"1,000 are better."
        )
        return _check("images", "warn", n, advice)
    return _check("images", "ok", n, f"{n:,} training {of}.")


def _calibration(n: int) -> HealthCheck:
    smallest = 1 / (n + 1)
    if n < 99:
        advice = (
            f"{n} calibration images: false-alarm rates below {smallest:.2g} cannot be promised "
            f"(1 % needs 99)."
        )
        return _check("calibration", "warn", n, advice)
    return _check("calibration", "ok", n, f"{n:,} normals set the threshold.")


def _duplicates(census: Census) -> HealthCheck:
    share = census.copies / max(census.images, 1)
    different = census.images - census.copies
    if share < 0.05:
        return _check("duplicates", "ok", share, f"{different:,} different images.")
    advice = (
        f"{census.copies:,} of {census.images:,} images ({share:.0%}) are copies of others. Scores "
        f"and promises about false alarms rest on fewer images than it seems. Remove them."
    )
    return _check("duplicates", "warn" if share < 0.5 else "fail", share, advice)


def _blank(census: Census) -> HealthCheck:
    share = census.blank / max(census.views, 1)
    # Some parts of a large image are background.
    if share < (0.2 if census.patched else 0.01):
        return _check("constant", "ok", share, "Images have something in them.")
    of = "patches" if census.patched else "images"
    advice = (
        f"{census.blank:,} of {census.views:,} {of} ({share:.0%}) are of one grey or colour all "
        f"over. There is nothing to learn from them, and scores mean less. Remove them, and look "
        f"at how they were made."
    )
    return _check("constant", "warn" if share < 0.5 else "fail", share, advice)


def _sizes(census: Census) -> HealthCheck:
    if len(census.sizes) == 1:
        return _check("sizes", "ok", 0, f"All images are {next(iter(census.sizes))}.")
    share, n = odd_sizes(census), len(census.sizes)
    if share < 0.05 or census.patched:
        return _check("sizes", "ok", share, f"{n:,} sizes, most of them alike.")
    advice = (
        f"{n:,} sizes; {share:.0%} of the images differ from most in shape or scale. All are "
        f"stretched to one square, so an unusual size raises the score. Crop them alike, or learn "
        f"from parts of them (--patches)."
    )
    return _check("sizes", "warn", share, advice)


def _bit_depths(census: Census) -> HealthCheck:
    mixed = odd_depths(census)
    if not mixed:
        kinds = ", ".join(census.bit_depths)
        return _check("bit_depths", "ok", 0, f"All images are alike: {kinds}.")
    share = 1 - max(mixed.values()) / sum(mixed.values())
    counts = ", ".join(f"{count:,} {kind}" for kind, count in mixed.items())
    advice = (
        f"Mixed kinds of image ({counts}): scores depend on how a file was stored. Convert them "
        f"all to one kind, or train a model for each."
    )
    return _check("bit_depths", "warn", share, advice)


def _stability(rollbacks: int) -> HealthCheck:
    if rollbacks:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        advice = (
            f"Losses were not finite {times}: training went back and on at a quarter of the "
            f"learning rate. Scores and pictures may be worse for it. Give a lower "
            f"--learning-rate, or --precision float32."
        )
        return _check("stability", "warn", rollbacks, advice)
    return _check("stability", "ok", 0, "All losses stayed finite.")


def _diversity(ratio: float) -> HealthCheck:
    facts = f"Generated images vary {ratio:.0%} as much as the training images"
    if not ratio > COLLAPSED:
        advice = (
            f"{facts}: mode collapse, or too short a training. {_GENERATOR} Raise --images-shown "
            f"first, then lower --learning-rate."
        )
        return _check("diversity", "fail", ratio, advice)
    if ratio < VARIED:
        advice = (
            f"{facts}: the generator covers part of what is normal. {_GENERATOR} Train longer "
            f"(--images-shown)."
        )
        return _check("diversity", "warn", ratio, advice)
    if ratio > TOO_VARIED:
        advice = f"{facts}: they are noise still. {_GENERATOR} Train longer (--images-shown)."
        return _check("diversity", "warn", ratio, advice)
    return _check("diversity", "ok", ratio, f"{facts}.")


def _discriminator(game: Game) -> list[HealthCheck]:
    if game.separated is None:
        return []
    if game.still:
        advice = (
            "The discriminator gives all images the same realness: its gradients vanished, and the "
            "generator learned nothing. Pictures mean little. Scores do too, unless a rotation "
            "stage taught the discriminator anew. Use --objective wgan-gp, or a smaller --size."
        )
        return [_check("discriminator", "fail", game.separated, advice)]
    facts = (
        f"The discriminator tells real from generated images with an AUROC of {game.separated:.2f}"
    )
    # A high AUROC alone does no harm: a generator whose images vary enough still learns.
    if game.separated < OVERPOWERED or game.diversity > VARIED:
        return [_check("discriminator", "ok", game.separated, f"{facts}.")]
    advice = (
        f"{facts}, and the generator does not follow: it is overpowered. {_GENERATOR} Use more "
        f"images, a lower --learning-rate, or --objective wgan-gp."
    )
    return [_check("discriminator", "warn", game.separated, advice)]


def _untrained(ratio: float) -> HealthCheck:
    message = (
        "No GAN was trained (--images-shown 0), so there are no reconstructions, residuals or "
        "generated images. The default score and the maps use the pretrained network and pixels."
    )
    return _check("reconstruction", "fail", ratio, message)


def _reconstruction(findings: Findings, networks: NetworkChecks) -> HealthCheck:
    ratio = findings.reconstruction
    facts = (
        f"Reconstructions of held-out normals miss {ratio:.0%} of what the mean image misses "
        f"(PCA: {networks.pca:.0%})"
    )
    if ratio <= UNUSABLE:
        return _check("reconstruction", "ok", ratio, f"{facts}.")
    # An encoder inverts generated images most easily. If it misses those too, it has failed.
    if networks.inversion > 0.9:
        longer = "--redo encoder --encoder-images-shown N" if findings.apart else "--images-shown"
        cause = f"The encoder failed: train it longer ({longer})."
    else:
        cause = "The generator does not know them: train longer (--images-shown)."
    message = (
        f"{facts}. Above {UNUSABLE:.0%} they are unusable, and pictures do not show them. The "
        f"default score does not use them. {cause}"
    )
    return _check("reconstruction", "fail", ratio, message)


def _memorisation(networks: NetworkChecks, game: Game) -> HealthCheck:
    by_heart = game.by_heart or 0.0
    pictures = (
        "Reconstructions of other images may be worse for it; the default score does not use them."
    )
    # A collapsed generator makes one image, whose nearest neighbour says nothing about copies.
    if networks.copied > COPIED and game.diversity > COLLAPSED:
        found = f"About {networks.copied:.0%} of the generated images are copies of training images"
        affected = pictures
    elif networks.gap > GAP:
        found = (
            f"Reconstructions of held-out normals miss {networks.gap:.1f} times as much as those "
            f"of training images"
        )
        affected = pictures
    elif by_heart > BY_HEART:
        found = "The discriminator takes held-out normals for generated ones"
        affected = "Scores of other normal images may be higher for it, and find fewer anomalies."
    else:
        message = "Training images were not learned by heart."
        return _check("memorisation", "ok", networks.copied, message)
    advice = (
        f"{found}: these were learned by heart. {affected} Use more images, or a shorter training "
        f"(--images-shown)."
    )
    return _check("memorisation", "warn", networks.copied, advice)


def _near_copies(share: float) -> HealthCheck:
    if share < 0.05:
        return _check("near_copies", "ok", share, "Held-out normals differ from training images.")
    advice = (
        f"{share:.0%} of the held-out normals are all but copies of training images. Frames of a "
        f"video and files saved twice cause more false alarms than promised: keep one of each. "
        f"Images of one simple shape are similar by nature, and need nothing."
    )
    return _check("near_copies", "warn", share, advice)
