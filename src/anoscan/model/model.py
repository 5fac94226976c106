"""A trained model: networks, fitted terms, calibration and baselines, stored in one file.

docs/model-file.md describes the file. Nothing in it is ever executed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

import anoscan
from anoscan.core import registry
from anoscan.core.arrays import under
from anoscan.core.channels import channels_named
from anoscan.core.config import (
    NO_BACKBONE,
    FalseAlarmRate,
    TrainConfig,
    architecture_for,
    rate_in_range,
)
from anoscan.core.errors import AnoscanError, InputError, ModelError
from anoscan.core.runtime import Runtime, exact_float32, seeded
from anoscan.core.tensors import Like, check, like
from anoscan.images.decode import ImageRule
from anoscan.images.mismatch import Looks
from anoscan.images.roi import Cover, Roi
from anoscan.model import file as model_file
from anoscan.model.metadata import Described, checked, in_one_line
from anoscan.networks import backbone
from anoscan.networks.architectures import Architecture, Networks, Shape, build
from anoscan.networks.encoders import Encoder
from anoscan.networks.low_rank import LowRank
from anoscan.scoring import fitting
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.maps import Maps
from anoscan.scoring.maps import forms as map_forms
from anoscan.scoring.measure import Measurer
from anoscan.scoring.neighbours import Neighbours
from anoscan.scoring.terms import Evidence, Forms, Tensors, Term

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """What was measured on the held-out normals: raw terms, weights, and levels.

    Parameters
    ----------
    terms : ndarray of shape (n, k), float64
        The raw terms of the n calibration images.
    weights : ndarray of shape (k,), float64 in [0, 1]
        How much each term may count.
    picture_scale : float
        The residual that has the brightest colour in pictures.
    region_peaks : ndarray of shape (n,)
        The highest value in the anomaly map of each image.
    looks : Looks
    tiles : ndarray of shape (n, 3, k), float64, optional
        The `scoring.calibration.tile_moments` of each image, in a model of patches.
    """

    terms: np.ndarray
    weights: np.ndarray
    picture_scale: float
    region_peaks: np.ndarray
    looks: Looks
    tiles: np.ndarray | None = None


@dataclass(frozen=True)
class Model:
    """A trained model, with all that scoring needs.

    Parameters
    ----------
    networks : Networks
    fitted : dict of str to dict
        The fitted statistics of each term, by its name.
    calibration : Calibration
    baselines : Baselines
    metadata : dict
        The JSON values that the model file stores beside the tensors.
    maps : Maps
    neighbours : Neighbours, optional
        Some training images, where the training was asked to keep them.
    """

    networks: Networks
    fitted: dict[str, Tensors]
    calibration: Calibration
    baselines: Baselines
    metadata: dict[str, Any]
    maps: Maps
    neighbours: Neighbours | None = None

    @property
    def config(self) -> TrainConfig:
        """Settings of the training, with all defaults resolved."""
        return TrainConfig.from_dict(self.metadata["config"])

    @property
    def rule(self) -> ImageRule:
        """Rule by which a file becomes the image that the networks see."""
        return ImageRule.from_dict(self.metadata["image_rule"])

    @functools.cached_property
    def measurer(self) -> Measurer:
        """Measurer with the networks, terms, rule and maps of this model."""
        return Measurer(self.networks, self.fitted, self.rule, self.maps)

    @property
    def false_alarm_rate(self) -> FalseAlarmRate:
        """False-alarm rate of verdicts where none is asked for; see `evaluation.recalibrate`."""
        # The rate that "auto" meant when it was set does not count: other images may calibrate now.
        if self._decision.get("set_by", "auto") == "auto":
            return "auto"
        return rate_in_range(self._decision["false_alarm_rate"])

    @property
    def reconstructions(self) -> Literal["ok", "unusable"]:
        """Whether G(E(x)) shows the healthy twin of an image; the training has checked it."""
        checks = self.metadata["health"]["checks"]
        failed = any((c["name"], c["verdict"]) == ("reconstruction", "fail") for c in checks)
        return "unusable" if failed else "ok"

    @property
    def uses_labels(self) -> bool:
        """Whether labels chose `false_alarm_rate`, or labelled images joined the calibration."""
        return bool(self._decision.get("uses_labels", False)) or self.reviewed

    @property
    def reviewed(self) -> bool:
        """Whether labelled normal images joined the calibration; see `evaluation.review`."""
        return bool(self.metadata.get("reviewed"))

    @property
    def _decision(self) -> dict[str, Any]:
        return dict(self.metadata.get("decision", {}))

    def showing(self, channels: str) -> Model:
        """Return the model with pictures in these channels, such as ``4,3,2``; scores stay.

        Three channels, counted from 1, are drawn as red, green and blue, and one as grey.

        Raises
        ------
        UsageError
            When the text is not one or three numbers of channels of the model.
        """
        shown = channels_named(channels, self.rule.channels)
        rule = dataclasses.replace(self.rule, shown=shown).to_dict()
        return dataclasses.replace(self, metadata=self.metadata | {"image_rule": rule})

    def cover(self, roi: Roi) -> Cover | None:
        """Return the cover that hides what is outside a region in queries; None if that is nothing.

        It shows the mean image, or in a model of patches the mean colour: these are normal to it.

        Raises
        ------
        InputError
            When the region and the model's own region have nothing in common.
        """
        rule = self.rule
        if roi.covers(rule.roi):
            return None
        try:
            both = roi.within(rule.roi)
        except ValueError:
            raise InputError("--roi leaves nothing of the region that the model learned.") from None
        mean = self.baselines.mean.reshape(rule.channels, rule.size, rule.size)
        return Cover(both, mean if rule.patch is None else mean.mean((1, 2), keepdims=True))

    def write(self, path: Path) -> str:
        """Write the model to a file, and return its SHA-256; the same model gives the same bytes.

        Raises
        ------
        ModelError
            When the file cannot be written.
        """
        tensors: dict[str, Tensor] = {
            "calibration/terms": torch.from_numpy(self.calibration.terms),
            "calibration/trust": torch.from_numpy(self.calibration.weights),
            "calibration/region_peaks": torch.from_numpy(self.calibration.region_peaks),
            "calibration/looks": torch.from_numpy(self.calibration.looks.values),
            "baselines/mean": torch.from_numpy(self.baselines.mean),
            "baselines/components": torch.from_numpy(self.baselines.components),
        }
        if self.calibration.tiles is not None:
            tensors["calibration/tiles"] = torch.from_numpy(self.calibration.tiles)
        if self.neighbours is not None:
            tensors |= self.neighbours.tensors()
        for part, network in self.networks.parts().items():
            tensors |= {f"{part}/{key}": value for key, value in network.state_dict().items()}
        for term, stats in fitting.own(self.fitted).items():
            tensors |= {f"terms/{term}/{key}": value for key, value in stats.items()}
        tensors |= {f"maps/{key}": value for key, value in self.maps.stored().items()}
        return model_file.save(path, tensors, self.metadata)

    @classmethod
    def read(cls, path: Path, runtime: Runtime) -> tuple[Model, str]:
        """Read a model from a file, onto the device of `runtime`, and return its SHA-256 too.

        Raises
        ------
        ModelError
            When the file is missing, damaged or incomplete, holds a checkpoint, is no model of
            anoscan, or was written by a newer version. What is returned is valid: every tensor has
            the shape and type that the settings ask for, and every number is finite.
        """
        tensors, metadata, sha256 = model_file.load(path)
        if metadata.get("kind") == "checkpoint":
            raise ModelError(
                f"{path} is a checkpoint of an unfinished training, not a model.",
                hint="Finish it with anoscan train ... --resume.",
            )
        try:
            return cls._assemble(tensors, metadata, runtime), sha256
        except (ValueError, AnoscanError) as error:
            raise ModelError(
                f"{path} does not hold a complete anoscan model: {in_one_line(error)}.",
                hint="Copy it again from where it came from, or train it again.",
            ) from error

    @classmethod
    def _assemble(
        cls, tensors: dict[str, Tensor], metadata: dict[str, Any], runtime: Runtime
    ) -> Model:
        described = checked(metadata)
        networks = _loaded(tensors, metadata, described)
        parts = networks.parts()
        others = {name: x for name, x in tensors.items() if name.partition("/")[0] not in parts}
        with exact_float32():
            check(others, _forms(described, _of_blank(networks, described.rule)))
        networks.to(runtime.device)
        fitted = {
            name: {
                key: value.to(runtime.device)
                for key, value in under(tensors, f"terms/{name}/").items()
            }
            for name in described.terms
        }
        tiles = tensors["calibration/tiles"].numpy() if described.rule.patch else None
        if tiles is not None and not (tiles[:, 0] >= 1).all():
            raise ValueError("the tensor calibration/tiles counts fewer than one tile of an image")
        calibration = Calibration(
            tensors["calibration/terms"].numpy(),
            tensors["calibration/trust"].numpy(),
            described.picture_scale,
            tensors["calibration/region_peaks"].numpy(),
            Looks(tensors["calibration/looks"].numpy(), described.kinds),
            tiles,
        )
        mean, components = tensors["baselines/mean"], tensors["baselines/components"]
        centres = tensors.get("terms/mixture/centres")
        if centres is not None and centres.shape[1] > len(components):
            raise ValueError("the tensor terms/mixture/centres has too many components")
        baselines = Baselines(mean.numpy(), components.numpy())
        kept = Neighbours.of_tensors(tensors) if described.config.keep_thumbnails else None
        own = {k: v.to(runtime.device) for k, v in under(tensors, "maps/").items()}
        maps = Maps.restored(own, metadata["maps"], fitted)
        fitted = fitting.shared(fitted, baselines, runtime.device)
        return cls(networks, fitted, calibration, baselines, metadata, maps, kept)


def _loaded(tensors: dict[str, Tensor], metadata: dict[str, Any], described: Described) -> Networks:
    """Return frozen networks on the CPU with the weights of a file, which are checked here."""
    # The meta device allocates nothing, so a file gets only the memory that its weights fill.
    with torch.device("meta"):
        networks = _networks(described.config, described.rule)
        if described.config.reconstruction_images_shown:
            networks.decoder = copy.deepcopy(networks.generator)
            networks.correction = LowRank(described.rule.channels, described.rule.size)
        if described.config.backbone != NO_BACKBONE:
            networks.backbone = backbone.blank(described.config.backbone)
    for part, network in networks.parts().items():
        weights = under(tensors, f"{part}/")
        try:
            check(_below(part, weights), _below(part, like(network.state_dict())))
        except ValueError as error:
            versions = f"written by anoscan {metadata['anoscan_version']}, this is "
            versions += anoscan.__version__
            raise ValueError(f"the {part}'s weights do not fit ({versions}): {error}") from error
        network.load_state_dict(weights, assign=True)
    return networks.frozen()


def _below(part: str, named: dict[str, T]) -> dict[str, T]:
    return {f"{part}/{name}": value for name, value in named.items()}


def _of_blank(networks: Networks, rule: ImageRule) -> Evidence:
    """Return evidence of a mid-grey image, whose outputs have the shapes of all images."""
    return Evidence(networks, torch.zeros(1, rule.channels, rule.size, rule.size))


def _forms(described: Described, evidence: Evidence) -> Forms:
    """Return what all tensors of a model are like, but those of its networks."""
    rule, config, k = described.rule, described.config, len(described.terms)
    p = rule.channels * rule.size**2
    found = {
        "calibration/terms": Like(("calibration images", k), torch.float64),
        "calibration/trust": Like((k,), torch.float64, low=0, high=1),
        "calibration/region_peaks": Like(("held-out images",)),
        "calibration/looks": Like(("normal images", 8), torch.float64),
        "baselines/mean": Like((p,)),
        "baselines/components": Like(("principal components", p)),
    }
    if rule.patch is not None:
        found["calibration/tiles"] = Like(("calibration images", 3, k), torch.float64)
    if config.keep_thumbnails:
        found |= Neighbours.forms(rule.channels, rule.size, config.latent_dim)
    found |= _below("maps", map_forms(evidence, described.aligned))
    for name in described.terms:
        term: Term = registry.load("terms", name)
        found |= _below(f"terms/{name}", term.forms(evidence))
    return found


def describe(
    config: TrainConfig, rule: ImageRule, calibration: Calibration, runtime: Runtime
) -> dict[str, Any]:
    """Return the metadata that every model has: versions, device, settings and image rule."""
    return {
        "kind": "model",
        "anoscan_version": anoscan.__version__,
        "torch_version": str(torch.__version__),
        "device": runtime.device.type,
        "precision": runtime.precision,
        "config": config.to_dict(),
        "image_rule": rule.to_dict(),
        "picture_scale": calibration.picture_scale,
        "kinds": list(calibration.looks.kinds),
    }


def fresh_networks(config: TrainConfig, rule: ImageRule, name: str = "weights") -> Networks:
    """Build untrained networks, with random weights from the seed and the stream `name`."""
    with seeded(config.seed, name):
        return _networks(config, rule)


def _networks(config: TrainConfig, rule: ImageRule) -> Networks:
    shape = Shape(rule.size, rule.channels, config.latent_dim, config.width)
    name = config.architecture
    name = architecture_for(rule.size) if name == "auto" else name
    architecture: Architecture = registry.load("architectures", name)
    encoder: Encoder = registry.load("encoders", config.encoder)
    around = functools.partial(encoder.build, architecture.encoder)
    return build(dataclasses.replace(architecture, encoder=around), shape)
