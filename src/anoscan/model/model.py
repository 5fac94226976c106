"""A trained model: networks, fitted terms, calibration and baselines, stored in one file.

docs/model-file.md describes the file. Nothing in it is ever executed.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import anoscan
from anoscan.core import registry
from anoscan.core.arrays import under
from anoscan.core.config import FALSE_ALARM_RATE, TrainConfig, architecture_for, rate_in_range
from anoscan.core.errors import AnoscanError, InputError, ModelError
from anoscan.core.runtime import Runtime, seeded
from anoscan.images.decode import ImageRule
from anoscan.images.mismatch import Looks
from anoscan.images.roi import Cover, Roi
from anoscan.model import file as model_file
from anoscan.networks.architectures import Architecture, Networks, Shape, build
from anoscan.networks.encoders import Encoder
from anoscan.scoring.baselines import Baselines
from anoscan.scoring.maps import Maps
from anoscan.scoring.measure import Measurer
from anoscan.scoring.neighbours import Neighbours
from anoscan.scoring.terms import Tensors


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
    def false_alarm_rate(self) -> float:
        """False-alarm rate of verdicts where none is asked for; see `evaluation.recalibrate`."""
        return rate_in_range(self._decision.get("false_alarm_rate", FALSE_ALARM_RATE))

    @property
    def uses_labels(self) -> bool:
        """Whether labelled anomalies were used to choose `false_alarm_rate`."""
        return bool(self._decision.get("uses_labels", False))

    @property
    def _decision(self) -> dict[str, Any]:
        return dict(self.metadata.get("decision", {}))

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
        for part, network in _parts(self.networks):
            tensors |= {f"{part}/{key}": value for key, value in network.state_dict().items()}
        for term, stats in self.fitted.items():
            tensors |= {f"terms/{term}/{key}": value for key, value in stats.items()}
        tensors |= {f"maps/{key}": value for key, value in self.maps.stored().items()}
        return model_file.save(path, tensors, self.metadata)

    @classmethod
    def read(cls, path: Path, runtime: Runtime) -> Model:
        """Read a model from a file, onto the device of `runtime`.

        Raises
        ------
        ModelError
            When the file is missing, damaged or incomplete, holds a checkpoint, is no model of
            anoscan, or was written by a newer version.
        """
        tensors, metadata = model_file.load(path)
        if metadata.get("kind") != "model":
            raise ModelError(
                f"{path} is a checkpoint of an unfinished training, not a model.",
                hint="Finish it with anoscan train ... --resume.",
            )
        try:
            return cls._assemble(tensors, metadata, runtime)
        except (KeyError, TypeError, ValueError, RuntimeError, AnoscanError) as error:
            raise ModelError(
                f"{path} does not hold a complete anoscan model: {str(error).rstrip('.')}.",
                hint="Copy it again from where it came from, or train it again.",
            ) from error

    @classmethod
    def _assemble(
        cls, tensors: dict[str, Tensor], metadata: dict[str, Any], runtime: Runtime
    ) -> Model:
        # The meta device allocates nothing, so a file gets only the memory that its weights fill.
        with torch.device("meta"):
            networks = _networks(
                TrainConfig.from_dict(metadata["config"]),
                ImageRule.from_dict(metadata["image_rule"]),
            )
        for part, network in _parts(networks):
            try:
                network.load_state_dict(under(tensors, f"{part}/"), assign=True)
            except RuntimeError as error:  # its message has one line for each tensor
                written = metadata["anoscan_version"]
                versions = f"written by anoscan {written}, this is {anoscan.__version__}"
                raise ValueError(f"the {part}'s weights do not fit ({versions})") from error
            network.to(runtime.device)
        fitted = {
            name: {
                key: value.to(runtime.device)
                for key, value in under(tensors, f"terms/{name}/").items()
            }
            for name in metadata["terms"]
        }
        patch = ImageRule.from_dict(metadata["image_rule"]).patch
        calibration = Calibration(
            tensors["calibration/terms"].numpy(),
            tensors["calibration/trust"].numpy(),
            float(metadata["picture_scale"]),
            tensors["calibration/region_peaks"].numpy(),
            _looks(tensors, metadata),
            tensors["calibration/tiles"].numpy() if patch is not None else None,
        )
        n, k = len(calibration.terms), len(fitted)
        shapes = calibration.terms.shape, calibration.weights.shape
        if not n or shapes != ((n, k), (k,)):
            raise ValueError("the calibration does not fit the terms")
        if calibration.tiles is not None and calibration.tiles.shape != (n, 3, k):
            raise ValueError("the calibration of tiles does not fit the terms")
        mean, components = tensors["baselines/mean"], tensors["baselines/components"]
        baselines = Baselines(mean.numpy(), components.numpy())
        kept = Neighbours.of_tensors(tensors)
        own = {k: v.to(runtime.device) for k, v in under(tensors, "maps/").items()}
        maps = Maps.restored(own, metadata["maps"], fitted)
        return cls(networks.frozen(), fitted, calibration, baselines, metadata, maps, kept)


def _looks(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Looks:
    looks = Looks(tensors["calibration/looks"].numpy(), tuple(map(str, metadata["kinds"])))
    if looks.values.ndim != 2 or looks.values.shape[1] != 8 or not len(looks.values):
        raise ValueError("the looks of normal images are not (n, 8)")
    return looks


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


def fresh_networks(config: TrainConfig, rule: ImageRule) -> Networks:
    """Build untrained networks, with random weights from the seed."""
    with seeded(config.seed, "weights"):
        return _networks(config, rule)


def _networks(config: TrainConfig, rule: ImageRule) -> Networks:
    shape = Shape(rule.size, rule.channels, config.latent_dim, config.width)
    name = config.architecture
    name = architecture_for(rule.size) if name == "auto" else name
    architecture: Architecture = registry.load("architectures", name)
    encoder: Encoder = registry.load("encoders", config.encoder)
    around = functools.partial(encoder.build, architecture.encoder)
    return build(dataclasses.replace(architecture, encoder=around), shape)


def _parts(networks: Networks) -> tuple[tuple[str, nn.Module], ...]:
    return (
        ("generator", networks.generator),
        ("discriminator", networks.discriminator),
        ("encoder", networks.encoder),
    )
