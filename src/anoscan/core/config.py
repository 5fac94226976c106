"""The settings of a training run, checked once and stored whole in the model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from anoscan.core import registry
from anoscan.core.channels import MOST_CHANNELS, PLAIN_CHANNELS, channels_named
from anoscan.core.errors import UsageError

SMALLEST_SIZE, LARGEST_SIZE = 16, 512
PROGRESSIVE_FROM = 256  # side from which ``--architecture auto`` is progressive
PATCH_SIZE, LARGEST_PATCH = 64, 4096
FEWEST_PATCHES = 8
DEVICES = ("auto", "cpu", "cuda", "mps")
ALIGNMENTS = ("auto", "on", "off")
PRECISIONS = ("auto", "float32", "bfloat16")
# "auto" is decided from the number of calibration images; see `scoring.calibration`.
FalseAlarmRate = float | Literal["auto"]
NO_BACKBONE, LITE = "none", "efficientnet-lite0"  # names of pretrained networks
# Random changes that the discriminator may see in its images, real and generated.
AUGMENTATIONS = {
    "shift": "moved by up to a sixteenth of the side",
    "cutout": "with a square blanked",
    "brightness": "lighter or darker",
    "flip": "mirrored left to right",
}
# How a whole image that is not square becomes square.
FITS = {
    "stretch": "all of it, in other proportions",
    "pad": "all of it in its proportions, with bars of its median colour",
    "crop": "the square in its middle; the rest is not looked at",
}
_FIT_HELP = "Make whole images square like this. " + " ".join(
    f"{name}: {summary}." for name, summary in FITS.items()
)
_CHANNELS_HELP = (
    f"Channels that networks see: 1 is grey, 3 is RGB, and other numbers up to {MOST_CHANNELS} are "
    "for TIFFs and arrays that have so many."
)
SHOW_HELP = (
    "Draw pictures in these channels, counted from 1: three as red, green and blue, such as 4,3,2, "
    "or one as grey."
)
FEW_AUGMENTED = ("shift", "cutout")  # what ``--augment auto`` means for few images
FEW_IMAGES = 3000  # images or patches; the discriminator can learn fewer by heart
# Real images shown in the GAN stage by default, before the factor `Objective.times_as_long`.
IMAGES_SHOWN = 12_000
_AUGMENT_HELP = (
    "Random changes to what the discriminator sees in the GAN stage: auto is "
    f"{','.join(FEW_AUGMENTED)} with fewer than {FEW_IMAGES:,} images, else none. "
) + " ".join(f"{name}: {summary}." for name, summary in AUGMENTATIONS.items())


IMAGES, MODEL = "Images", "Model"  # sections of ``anoscan train --help``


def _setting(
    value: Any, help: str, metavar: str = "N", *, default: str | None = None, panel: str = MODEL
) -> Any:
    """Return a field of `TrainConfig`; ``--help`` shows `default` in place of `value`, if given."""
    shown = value if default is None else default
    metadata = {"help": help, "metavar": metavar, "default": shown, "panel": panel}
    return dataclasses.field(default=value, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings that decide which model a folder of images becomes.

    Each field is an option of ``anoscan train``. ``None`` is decided later, from the images or by
    `decided`; the model file keeps what `training.learn.resolve` filled in. Lengths of stages are
    counted in images shown, so the batch size does not change their meaning.

    Raises
    ------
    UsageError
        When a value is out of range, or two values cannot be used together.
    """

    size: int | None = _setting(
        None,
        f"Side of the square image that networks see, {SMALLEST_SIZE} to {LARGEST_SIZE} pixels.",
        "auto|N",
        default="auto",
        panel=IMAGES,
    )
    channels: int | None = _setting(
        None,
        _CHANNELS_HELP,
        "auto|1|3|N",
        default="auto",
        panel=IMAGES,
    )
    show_channels: str | None = _setting(
        None, SHOW_HELP, "N[,N,N]", default="the first three", panel=IMAGES
    )
    fit: str = _setting("stretch", _FIT_HELP, "|".join(FITS), panel=IMAGES)
    patches: int | None = _setting(
        None,
        "Learn from so many random parts of larger images, not from whole ones made small.",
        default="whole images",
        panel=IMAGES,
    )
    patch_size: int | None = _setting(
        None,
        "Side of a patch in pixels of the images; made smaller only by a lower --size.",
        default=str(PATCH_SIZE),
        panel=IMAGES,
    )
    architecture: str = _setting(
        "auto", f"auto: progressive from {PROGRESSIVE_FROM} pixels on, else dcgan.", "NAME"
    )
    objective: str = _setting("nonsaturating", "", "NAME")
    encoder: str = _setting("ae", "", "NAME")
    mapping: str = _setting("izi_f", "", "NAME")
    backbone: str = _setting(
        NO_BACKBONE,
        "Pretrained network whose features are used beside those of the GAN: "
        f"{LITE} (its weights come with the extra imagenet), or a classification network of "
        "torchvision.",
        "NAME",
    )
    images_shown: int | None = _setting(
        None,
        "Length of the GAN stage: real images that the discriminator sees, such as 32k or 1.5M. 0 "
        "trains no network, and needs --backbone.",
        default=f"{IMAGES_SHOWN}, three times that for wgan-gp",
    )
    rotation_images_shown: int | None = _setting(
        None,
        "Length of the rotation stage, in images; 0 leaves it out.",
        default="three times --images-shown, as long for wgan-gp",
    )
    encoder_images_shown: int | None = _setting(
        None,
        "Length of the encoder stage, in images.",
        default="a third of --images-shown, a ninth of it for wgan-gp",
    )
    reconstruction_images_shown: int | None = _setting(
        None,
        "Length of the reconstruction stage, in images; 0 leaves it out, as the papers do.",
        default="two thirds of --images-shown, two ninths of it for wgan-gp; 0 for ziz and bigan",
    )
    batch_size: int = _setting(32, "Images that one step is shown.")
    learning_rate: float | None = _setting(
        None, "Learning rate of the GAN.", "RATE", default="the objective's"
    )
    latent_dim: int = _setting(64, "Dimensions of the latent z.")
    width: int = _setting(32, "Channels of feature maps of 64x64 pixels; finer maps have fewer.")
    ema_images: int = _setting(
        10_000, "Half-life of the moving averages of the networks, in images shown."
    )
    augment: str = _setting(
        "auto",
        _AUGMENT_HELP,
        "auto|none|LIST",
    )
    align: str = _setting(
        "auto",
        "Whether anomaly maps compare a place with the same place of the normal images; auto "
        "lets held-out images decide.",
        "|".join(ALIGNMENTS),
        panel=IMAGES,
    )
    held_out: float = _setting(
        0.1, "Share of images kept from the networks, for calibration.", "SHARE", panel=IMAGES
    )
    seed: int = _setting(0, "Seed of all randomness.")
    calibration_folds: int | None = _setting(
        None,
        "Where images are few, calibrate on the training images too, in so many folds; each fold "
        "trains all but the GAN again.",
        "K",
        default="held-out images alone",
        panel=IMAGES,
    )
    keep_thumbnails: bool = _setting(
        False,
        "Keep small copies and the paths of training images in the model, for score --nearest; "
        "not where they are private.",
        "",
    )

    def __post_init__(self) -> None:
        registry.check("architectures", self.architecture, "auto")
        registry.check("objectives", self.objective)
        registry.check("encoders", self.encoder)
        registry.check("mappings", self.mapping)
        _optional_int("--size", self.size, SMALLEST_SIZE, LARGEST_SIZE)
        _check_channels(self)
        self._check_backbone()
        _optional_int("--rotation-images-shown", self.rotation_images_shown, 0, None)
        _optional_int("--reconstruction-images-shown", self.reconstruction_images_shown, 0, None)
        self.augmentations(few=True)
        self._check_mapping()
        _optional_int("--batch-size", self.batch_size, 2, None)
        _optional_int("--latent-dim", self.latent_dim, 1, 4096)
        _optional_int("--width", self.width, 4, 1024)
        _optional_int("--ema-images", self.ema_images, 1, None)
        _optional_int("--seed", self.seed, 0, 2**63 - 1)
        _check_fit(self.fit, self.patches)
        self._check_patches()
        _check_align(self.align, self.patches)
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise UsageError(f"--learning-rate must be in (0, 1]. Got {self.learning_rate}.")
        if not 0 < self.held_out < 1:
            raise UsageError(f"--held-out must lie between 0 and 1. Got {self.held_out}.")

    def _check_backbone(self) -> None:
        _optional_int("--images-shown", self.images_shown, 0, None)
        if self.backbone == NO_BACKBONE and self.images_shown == 0:
            raise UsageError(
                "--images-shown 0 trains no network, so it needs --backbone.",
                hint=f"Give --backbone {LITE}, or --images-shown 1 or more.",
            )
        if self.keep_thumbnails and self.images_shown == 0:
            raise UsageError(
                "--keep-thumbnails does not go with --images-shown 0.",
                hint="The nearest images are found by an encoder, which is not trained then.",
            )

    def _check_mapping(self) -> None:
        if self.mapping == "bigan":
            if self.encoder_images_shown:
                raise UsageError(
                    "--mapping bigan trains the encoder with the GAN: drop --encoder-images-shown, "
                    "and set the length with --images-shown."
                )
            if self._grows():
                raise UsageError(
                    "--mapping bigan does not go with --architecture progressive, which grows (and "
                    f"which auto is from --size {PROGRESSIVE_FROM} on): use --architecture dcgan, "
                    "or --mapping izi_f."
                )
            if self.objective == "wgan":
                raise UsageError(
                    "--mapping bigan does not go with --objective wgan, whose clipped critic "
                    "cannot judge pairs: use --objective wgan-gp, or --mapping izi_f."
                )
            return
        fewest = 0 if self.images_shown == 0 else 1
        _optional_int("--encoder-images-shown", self.encoder_images_shown, fewest, None)
        if (self.encoder, self.mapping) == ("vae", "ziz"):
            raise UsageError(
                "--encoder vae does not go with --mapping ziz, which compares the latent itself, "
                "not a sample around it: use --encoder ae, or --mapping izi or izi_f."
            )

    def _grows(self) -> bool:
        chosen = self.architecture
        if chosen == "auto" and self.size is not None:
            chosen = architecture_for(self.size)
        return chosen == "progressive"

    def _check_patches(self) -> None:
        _optional_int("--patches", self.patches, FEWEST_PATCHES, None)
        _optional_int("--patch-size", self.patch_size, SMALLEST_SIZE, LARGEST_PATCH)
        _optional_int("--calibration-folds", self.calibration_folds, 2, 100)
        if self.patches is not None and self.calibration_folds is not None:
            raise UsageError(
                "--calibration-folds does not go with --patches.", hint="It is for whole images."
            )
        if self.patches is not None and self.keep_thumbnails:
            raise UsageError(
                "--keep-thumbnails does not go with --patches.", hint="It is for whole images."
            )
        if self.patches is None:
            if self.patch_size is not None:
                raise UsageError(
                    "--patch-size needs --patches.", hint="Say how many patches to learn from."
                )
            return
        seen, patch = self.size or self.patch_size or 0, self.patch_size or 0
        if seen > LARGEST_SIZE:
            raise UsageError(
                f"--patch-size {patch}: the networks see at most {LARGEST_SIZE} pixels.",
                hint=f"Give --size {LARGEST_SIZE} or less too: patches are then made smaller.",
            )
        if patch and seen > patch:
            raise UsageError(
                f"--size {seen} is more than --patch-size {patch}.",
                hint="Patches are made smaller, never larger: give a lower --size.",
            )

    def augmentations(self, *, few: bool) -> tuple[str, ...]:
        """Return the `AUGMENTATIONS` of the discriminator's images, in the order of that dict.

        `few` says whether there are fewer than `FEW_IMAGES` images, which decides what "auto"
        means.

        Raises
        ------
        UsageError
            When `augment` is not "auto", "none", or a list of such names with commas.
        """
        if self.augment == "auto":
            return FEW_AUGMENTED if few else ()
        if self.augment == "none":
            return ()
        asked = {part.strip() for part in self.augment.split(",")}
        if not asked <= set(AUGMENTATIONS):
            raise UsageError(
                f"--augment must be auto, none, or some of {', '.join(AUGMENTATIONS)} with commas. "
                f"Got {self.augment!r}."
            )
        return tuple(name for name in AUGMENTATIONS if name in asked)

    def lengths(self) -> dict[str, int]:
        """Return the length of each stage in images shown, by its name; 0 where not decided."""
        return {
            "gan": self.images_shown or 0,
            "rotation": self.rotation_images_shown or 0,
            "encoder": self.encoder_images_shown or 0,
            "reconstruction": self.reconstruction_images_shown or 0,
        }

    @property
    def patch(self) -> int | None:
        """Side of a patch in pixels of the images; None for a model of whole images."""
        if self.patches is None:
            return None
        return self.patch_size or self.size or PATCH_SIZE

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, from which `from_dict` restores them."""
        # Without the default, model files stay as they were before there was a choice.
        unsaid = (("fit", "stretch"), ("show_channels", None))
        whole = dataclasses.asdict(self).items()
        return {name: value for name, value in whole if (name, value) not in unsaid}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Return settings from JSON values; settings that are missing keep their defaults.

        Raises
        ------
        UsageError
            When a name is no setting, or a value is out of range or has the wrong type.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(
                f"unknown setting {', '.join(map(repr, unknown))}.",
                hint=f"Settings are {', '.join(known)}.",
            )
        for name, value in values.items():
            _typed(name, value, str(known[name].type))
        return cls(**values)


class TrainSettings(TypedDict, total=False):
    """The fields of `TrainConfig` as keywords of `Detector.train`, for type checkers."""

    size: int | None
    channels: int | None
    show_channels: str | None
    fit: str
    patches: int | None
    patch_size: int | None
    architecture: str
    objective: str
    encoder: str
    mapping: str
    backbone: str
    images_shown: int | None
    rotation_images_shown: int | None
    encoder_images_shown: int | None
    reconstruction_images_shown: int | None
    batch_size: int
    learning_rate: float | None
    latent_dim: int
    width: int
    ema_images: int
    augment: str
    align: str
    held_out: float
    seed: int
    calibration_folds: int | None
    keep_thumbnails: bool


def architecture_for(size: int) -> str:
    """Name of the architecture that ``auto`` means for images with a side of `size` pixels."""
    return "dcgan" if size < PROGRESSIVE_FROM else "progressive"


def decided(config: TrainConfig) -> dict[str, Any]:
    """Return the learning rate and the stages' lengths in images, for use where `config` has None.

    The stages after the GAN stage follow the length of the GAN stage, where `config` has it.
    """
    objective = registry.load("objectives", config.objective)
    longer = objective.times_as_long
    game = longer * IMAGES_SHOWN if config.images_shown is None else config.images_shown
    shown = math.ceil(game / longer)
    mapping = registry.load("mappings", config.mapping)
    joint, of_images = mapping.loss is None, mapping.loss and mapping.given == "images"
    return {
        "images_shown": game,
        "rotation_images_shown": 3 * shown,
        "encoder_images_shown": 0 if joint else math.ceil(shown / 3),
        "reconstruction_images_shown": math.ceil(shown * 2 / 3) if of_images else 0,
        "learning_rate": objective.learning_rate,
    }


def rate_in_range(rate: FalseAlarmRate) -> FalseAlarmRate:
    """Return a false-alarm rate that is valid.

    Raises
    ------
    UsageError
        Unless it is "auto", or lies strictly between 0 and 1.
    """
    if rate == "auto":
        return rate
    if isinstance(rate, str):
        raise UsageError(f"--false-alarm-rate must be auto or a number. Got {rate!r}.")
    if not 0 < rate < 1:
        raise UsageError(f"--false-alarm-rate must lie between 0 and 1. Got {rate}.")
    return rate


def _check_channels(config: TrainConfig) -> None:
    channels, backbone = config.channels, config.backbone
    _optional_int("--channels", channels, 1, MOST_CHANNELS)
    if config.show_channels is not None:
        channels_named(config.show_channels, channels)
    if backbone != NO_BACKBONE and channels not in (None, *PLAIN_CHANNELS):
        raise UsageError(
            f"--backbone {backbone} does not go with images of {channels} channels: it knows "
            "photographs alone.",
            hint="Leave --backbone out.",
        )


def _check_align(align: str, patches: int | None) -> None:
    if align not in ALIGNMENTS:
        raise UsageError(f"--align must be one of {', '.join(ALIGNMENTS)}. Got {align!r}.")
    if align == "on" and patches is not None:
        raise UsageError("--align on does not go with --patches: patches are never aligned.")


def _check_fit(fit: str, patches: int | None) -> None:
    if fit not in FITS:
        raise UsageError(f"--fit must be one of {', '.join(FITS)}. Got {fit!r}.")
    if fit != "stretch" and patches is not None:
        raise UsageError(
            f"--fit {fit} does not go with --patches, which keep their proportions.",
            hint="Leave --fit out.",
        )


def _optional_int(option: str, value: int | None, low: int, high: int | None) -> None:
    if value is None:
        return
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UsageError(f"{option} must be {limits}. Got {value}.")


def _typed(name: str, value: Any, annotation: str) -> None:
    accepted: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    kind = annotation.removesuffix(" | None")
    if value is None and annotation.endswith("| None"):
        return
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, accepted[kind]):
        told = {
            "int": "a whole number",
            "float": "a number",
            "str": "text",
            "bool": "true or false",
        }
        null = " or null" + " (which is auto)" * (value == "auto") if kind != annotation else ""
        raise UsageError(f"setting {name!r} must be {told[kind]}{null}. Got {value!r}.")
