"""Training health in plain words: checks of a folder and of a training, with advice.

The checks of `of_folder` need no training; `examine` adds those that need a finished one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anoscan.core.progress import OnProgress, Progress
from anoscan.core.results import Health, HealthCheck, HealthReport
from anoscan.dataset.census import Census, odd_depths, odd_sizes
from anoscan.training.network_checks import Game, NetworkChecks

WATCHED = 8  # parts of the GAN stage, which is checked between them from its middle on
WATCH_SAMPLES = 64  # images of each kind that such a check compares
WATCHED_FROM = 4000  # images shown in all: a shorter GAN stage ends before a user could act
# Good trainings on 1,000 and more images keep far from these limits. docs/health.md says what they
# mean, and docs/decisions.md has the values of some trainings.
OVERPOWERED = 0.999
COLLAPSED, VARIED, TOO_VARIED = 0.1, 0.4, 2.0
COPIED, GAP, BY_HEART = 0.6, 2.0, 0.5
UNUSABLE = 0.5  # error of reconstructions, relative to the mean image, from which they fail
FEWEST_QUERIES, MOST_ODD = 10, 0.8  # fewest queries that are judged, and share of anomalous ones

_RANK: dict[Health, int] = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True)
class Findings:
    """What the checks of a finished training are made from.

    `rollbacks` counts how often training went back because losses or weights were not finite.
    `game` is the state at the end of the GAN stage. `reconstruction` is the mean squared residual
    of held-out normals, relative to that of the mean image. `apart` says whether the encoder had a
    stage of its own.
    """

    rollbacks: int
    game: Game
    networks: NetworkChecks
    reconstruction: float
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


def examine(folder: tuple[HealthCheck, ...], findings: Findings) -> HealthReport:
    """Return all checks, first the given ones of the folder, and the worst of their verdicts."""
    checks = (
        *folder,
        _stability(findings.rollbacks),
        _diversity(findings.game.diversity),
        *_discriminator(findings.game),
        _reconstruction(findings),
        _memorisation(findings.networks, findings.game),
        _near_copies(findings.networks.twins),
    )
    return HealthReport(verdict=worst(checks), checks=checks)


def of_scores(scored: int, anomalous: int) -> str | None:
    """Return a warning when nearly all of the `scored` queries are anomalous, else None."""
    if scored < FEWEST_QUERIES or anomalous < MOST_ODD * scored:
        return None
    return (
        f"{anomalous:,} of {scored:,} images are called anomalous. Unless they were picked for "
        f"that, this is the wrong model or the wrong folder, or the images are made otherwise than "
        f"the training images were (another camera, crop, size or brightness, or a --roi that "
        f"was not there in training)."
    )


def of_model(name: str, metadata: Mapping[str, Any]) -> str | None:
    """Return a warning when the metadata of a model hold a failed training check, else None."""
    found = metadata.get("health")
    checks = found.get("checks") if isinstance(found, Mapping) else None
    failed = [
        str(check.get("name"))
        for check in (checks if isinstance(checks, list) else [])
        if isinstance(check, Mapping) and check.get("verdict") == "fail"
    ]
    if not failed:
        return None
    return (
        f"the training of {name} failed the check of {' and '.join(failed)}: its scores may mean "
        f"little (`anoscan models show` says why)."
    )


def worst(checks: tuple[HealthCheck, ...]) -> Health:
    """Return the worst verdict of some checks, and 'ok' where there are none."""
    return max((check.verdict for check in checks), key=_RANK.__getitem__, default="ok")


def _check(name: str, verdict: Health, value: float, message: str) -> HealthCheck:
    return HealthCheck(name=name, verdict=verdict, value=float(value), message=message)


def _images(n: int, of: str) -> HealthCheck:
    if n < 50:
        advice = f"{n} training {of}: far too few for a GAN; trust the PCA baseline more."
        return _check("images", "fail", n, advice)
    if n < 500:
        advice = f"{n} training {of} are few: the networks may memorise them. 1,000 are better."
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
        f"{census.copies:,} of {census.images:,} images ({share:.0%}) are copies of others: they "
        f"count several times over, and promises about false alarms hold for fewer images than "
        f"it seems. Remove them."
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
        f"over: there is nothing to learn from them. Remove them, and look at how they were made."
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
        f"stretched to one square, so that size itself will look odd. Crop them alike, or learn "
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
        f"Mixed kinds of image ({counts}): how a file was stored will look odd. Convert them all "
        f"to one kind, or train a model for each."
    )
    return _check("bit_depths", "warn", share, advice)


def _stability(rollbacks: int) -> HealthCheck:
    if rollbacks:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        advice = (
            f"Losses were not finite {times}: training went back and on at a quarter of the "
            f"learning rate. Give a lower --learning-rate, or --precision float32."
        )
        return _check("stability", "warn", rollbacks, advice)
    return _check("stability", "ok", 0, "All losses stayed finite.")


def _diversity(ratio: float) -> HealthCheck:
    facts = f"Generated images vary {ratio:.0%} as much as the training images"
    if not ratio > COLLAPSED:
        advice = (
            f"{facts}: mode collapse, or too short a training. Raise --images-shown first, then "
            f"lower --learning-rate."
        )
        return _check("diversity", "fail", ratio, advice)
    if ratio < VARIED:
        advice = f"{facts}: the generator covers part of what is normal. Train longer."
        return _check("diversity", "warn", ratio, advice)
    if ratio > TOO_VARIED:
        advice = f"{facts}: they are noise still. Train longer (--images-shown)."
        return _check("diversity", "warn", ratio, advice)
    return _check("diversity", "ok", ratio, f"{facts}.")


def _discriminator(game: Game) -> list[HealthCheck]:
    if game.separated is None:
        return []
    if game.still:
        advice = (
            "The discriminator gives all images the same realness: its gradients vanished, and the "
            "generator learned nothing. Use --objective wgan-gp, or a smaller --size."
        )
        return [_check("discriminator", "fail", game.separated, advice)]
    facts = (
        f"The discriminator tells real from generated images with an AUROC of {game.separated:.2f}"
    )
    # A high AUROC alone does no harm: a generator whose images vary enough still learns.
    if game.separated < OVERPOWERED or game.diversity > VARIED:
        return [_check("discriminator", "ok", game.separated, f"{facts}.")]
    advice = (
        f"{facts}, and the generator does not follow: it is overpowered. Use more images, a lower "
        f"--learning-rate, or --objective wgan-gp."
    )
    return [_check("discriminator", "warn", game.separated, advice)]


def _reconstruction(findings: Findings) -> HealthCheck:
    ratio, networks = findings.reconstruction, findings.networks
    facts = (
        f"Reconstructions of held-out normals miss {ratio:.0%} of what the mean image misses "
        f"(PCA: {networks.pca:.0%})"
    )
    if ratio <= 0.9:
        return _check("reconstruction", "ok", ratio, f"{facts}.")
    # An encoder inverts generated images most easily. If it misses those too, it has failed.
    if networks.inversion > 0.9:
        length = "--encoder-images-shown" if findings.apart else "--images-shown"
        cause = f"The encoder failed: train it longer ({length})."
    else:
        cause = "The generator does not know them: train longer (--images-shown)."
    if not ratio < 1:
        message = f"{facts}: pictures are worthless. {cause}"
        return _check("reconstruction", "fail", ratio, message)
    return _check("reconstruction", "warn", ratio, f"{facts}: pictures say little. {cause}")


def _memorisation(networks: NetworkChecks, game: Game) -> HealthCheck:
    by_heart = game.by_heart or 0.0
    # A collapsed generator makes one image, whose nearest neighbour says nothing about copies.
    if networks.copied > COPIED and game.diversity > COLLAPSED:
        found = f"About {networks.copied:.0%} of the generated images are copies of training images"
    elif networks.gap > GAP:
        found = (
            f"Reconstructions of held-out normals miss {networks.gap:.1f} times as much as those "
            f"of training images"
        )
    elif by_heart > BY_HEART:
        found = "The discriminator takes held-out normals for generated ones"
    else:
        message = "Training images were not learned by heart."
        return _check("memorisation", "ok", networks.copied, message)
    advice = (
        f"{found}: these were learned by heart, and other normal images may look odd. Use more "
        f"images, or a shorter training (--images-shown)."
    )
    return _check("memorisation", "warn", networks.copied, advice)


def _near_copies(share: float) -> HealthCheck:
    if share < 0.05:
        return _check("near_copies", "ok", share, "Held-out normals differ from training images.")
    advice = (
        f"{share:.0%} of the held-out normals are all but copies of training images. Where these "
        f"are frames of a video or files saved twice, false alarms will be more frequent than "
        f"promised: keep one of each. Images of one simple shape are that much alike by nature, "
        f"and need nothing."
    )
    return _check("near_copies", "warn", share, advice)
