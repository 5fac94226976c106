from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import skimage.data
import torchvision
from PIL import Image

from anoscan.core.errors import InputError, UsageError
from benchmarks import data, defects, letters, mismatch, selftest
from benchmarks.baselines import BASELINES, as_float, evaluate
from benchmarks.data import Split


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache, and no registry client that could reach for the network."""
    monkeypatch.setenv("ANOSCAN_BENCHMARK_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(data.shutil, "which", lambda program: None)
    return data.cache_folder()


def _tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _elpv_wheel(cache: Path, count: int = 60) -> None:
    """Every third cell is normal, uncertain, defective; each is of one grey level, its index."""
    probability = ["0.0", "0.3333333333333333", "1.0"]
    kind = ["mono", "poly"]
    rows = [f"images/cell{i:04d}.png  {probability[i % 3]}   {kind[i % 2]}\n" for i in range(count)]
    with zipfile.ZipFile(cache / data._ELPV_ARCHIVE, "w") as wheel:
        wheel.writestr("elpv_dataset/data/labels.csv", "".join(rows))
        for i in range(count):
            cell = np.full((300, 300), i, dtype=np.uint8)
            wheel.writestr(f"elpv_dataset/data/images/cell{i:04d}.png", _png(cell))


# Registry


def test_every_set_has_a_description_and_development_classes_are_classes() -> None:
    images = {"fashion-mnist", "mnist", "cifar-10", "elpv", "defects", "letters", "digits"}
    assert set(data.SETS) == images
    for name, description in data.SETS.items():
        assert description
        assert data.classes(name)
        assert set(data.development(name)) < set(data.classes(name))


def test_development_classes_are_the_agreed_ones() -> None:
    assert data.development("fashion-mnist") == ["0", "3", "6"]
    assert data.development("mnist") == ["2", "5"]
    assert data.development("cifar-10") == ["1"]
    assert data.development("elpv") == ["64-dev"]


def test_an_unknown_set_or_class_is_named_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'nist'.*fashion-mnist"):
        data.classes("nist")
    with pytest.raises(UsageError, match=r"digits has no class '10'"):
        data.load("digits", "10", seed=0)


# Sets


def test_digits_hold_out_a_fifth_of_the_class_and_all_others_are_anomalies() -> None:
    split = data.load("digits", "3", seed=0)
    assert split.train.shape == (146, 8, 8)
    assert split.test.shape == (1797 - 146, 8, 8)
    assert (~split.anomalous).sum() == 37
    assert split.train.dtype == np.uint8
    assert split.train.max() == 255


def test_the_seed_decides_which_digits_are_held_out() -> None:
    first, again, other = (data.load("digits", "3", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)


def test_letters_keep_families_of_fonts_apart_and_leave_out_fonts_without_letters() -> None:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "STIXSizOneSymReg")
    fonts = [(f"{name}/{name}.ttf", (folder / f"{name}.ttf").read_bytes()) for name in names]
    copy = ("copy/copy.ttf", fonts[0][1])

    found = letters.alphabets([*fonts, copy, ("DejaVuSans/broken.otf", b"no font")])

    assert found["images"].shape == (4, 10, 28, 28)
    assert found["images"].dtype == np.uint8
    assert (found["images"].max((2, 3)) > 200).all()
    inked = found["images"][:, 7] > 0  # an H is as high as it is allowed to be
    assert (inked.any(2).sum(1) <= letters.LONGEST).all()
    again = letters.alphabets([(path.replace(".ttf", "x.ttf"), font) for path, font in fonts])
    np.testing.assert_array_equal(found["train"], again["train"])


def test_a_letter_is_normal_and_all_others_are_anomalies(cache: Path) -> None:
    (cache / "letters").mkdir()
    np.save(cache / "letters" / "images.npy", _noise(50, 28, 28).reshape(5, 10, 28, 28))
    np.save(cache / "letters" / "train.npy", np.array([True, False, True, True, False]))

    split = data.load("letters", "C", seed=0)

    images = np.load(cache / "letters" / "images.npy")
    np.testing.assert_array_equal(split.train, images[[0, 2, 3], 2])
    np.testing.assert_array_equal(split.test[~split.anomalous], images[[1, 4], 2])
    assert len(split.test) == 20


def test_mnist_is_read_from_the_package_in_the_cache_and_kept_decoded(cache: Path) -> None:
    images, test = _noise(6, 28, 28), _noise(4, 28, 28, seed=1)
    labels, test_labels = np.array([1, 0, 1, 2, 1, 9]), np.array([1, 2, 3, 1])
    _tar(
        cache / data._MNIST_ARCHIVE,
        {
            "package/data/train-images-idx3-ubyte": _idx(images),
            "package/data/train-labels-idx1-ubyte": _idx(labels),
            "package/data/t10k-images-idx3-ubyte": _idx(test),
            "package/data/t10k-labels-idx1-ubyte": _idx(test_labels),
        },
    )
    for _ in range(2):
        split = data.load("mnist", "1", seed=0)
        np.testing.assert_array_equal(split.train, images[[0, 2, 4]])
        np.testing.assert_array_equal(split.test, test)
        np.testing.assert_array_equal(split.anomalous, [False, True, True, False])
        (cache / data._MNIST_ARCHIVE).unlink(missing_ok=True)


def test_cifar_rows_of_the_strips_become_colour_images_in_order(cache: Path) -> None:
    images, test = _noise(10, 32, 32, 3), _noise(3, 32, 32, 3, seed=1)
    members = {
        f"package/data_batch_{part + 1}.png": _png(
            images[2 * part : 2 * part + 2].reshape(2, -1, 3)
        )
        for part in range(5)
    }
    members["package/test_batch.png"] = _png(test.reshape(3, -1, 3))
    members["package/train_lables.json"] = json.dumps(list(range(10))).encode()
    members["package/test_lables.json"] = json.dumps([3, 8, 8]).encode()
    _tar(cache / data._CIFAR_ARCHIVE, members)
    split = data.load("cifar-10", "8", seed=0)
    np.testing.assert_array_equal(split.train, images[8:9])
    np.testing.assert_array_equal(split.test, test)
    np.testing.assert_array_equal(split.anomalous, [True, False, False])


@pytest.mark.parametrize(
    ("name", "source"),
    [("fashion-mnist", "FashionMNIST"), ("mnist", "MNIST"), ("cifar-10", "CIFAR10")],
)
def test_without_a_package_torchvision_downloads(
    name: str, source: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def downloader(root: Path, *, train: bool, download: bool) -> SimpleNamespace:
        assert download
        assert root.is_relative_to(cache)
        return SimpleNamespace(data=_noise(4, 28, 28, seed=train), targets=[0, 1, 1, 2])

    monkeypatch.setattr(data, "_DEBIAN_FASHION", cache / "missing")
    monkeypatch.setattr(torchvision.datasets, source, downloader)
    split = data.load(name, "1", seed=0)
    np.testing.assert_array_equal(split.train, _noise(4, 28, 28, seed=1)[1:3])
    np.testing.assert_array_equal(split.test, _noise(4, 28, 28, seed=0))
    np.testing.assert_array_equal(split.anomalous, [True, False, False, True])


def test_elpv_leaves_the_uncertain_out_and_never_tests_on_training_cells(cache: Path) -> None:
    _elpv_wheel(cache)
    split = data.load("elpv", "64", seed=0)
    train, test = split.train[:, 0, 0], split.test[:, 0, 0]
    assert split.train.shape == (16, 64, 64)
    assert sorted([*train, *test[~split.anomalous]]) == list(range(0, 60, 3))
    assert sorted(test[split.anomalous]) == list(range(2, 60, 3))
    assert data.load("elpv", "128", seed=0).test.shape == (24, 128, 128)


def test_elpv_parts_are_complementary(cache: Path) -> None:
    _elpv_wheel(cache)

    def cells(cls: str) -> set[int]:
        split = data.load("elpv", cls, seed=0)
        return {*split.train[:, 0, 0].tolist(), *split.test[:, 0, 0].tolist()}

    everything = cells("64")
    for one, other in (("64-mono", "64-poly"), ("64-dev", "64-rest")):
        assert cells(one) | cells(other) == everything
        assert not cells(one) & cells(other)
    assert all(cell % 2 == 0 for cell in cells("64-mono"))


def test_the_development_half_never_changes() -> None:
    half = data._development_half(2624)
    assert half[:8].tolist() == [False, False, True, True, False, False, False, False]
    assert 0.45 < half.mean() < 0.55


def test_a_damaged_package_is_reported_and_leaves_no_decoded_arrays(cache: Path) -> None:
    (cache / data._ELPV_ARCHIVE).write_bytes(b"PK not a wheel")
    whole = cache / data._MNIST_ARCHIVE
    _tar(whole, {"package/data/train-images-idx3-ubyte": _idx(_noise(9, 28, 28))})
    whole.write_bytes(whole.read_bytes()[:3000])
    _tar(cache / data._CIFAR_ARCHIVE, {"package/README.md": b""})
    for name, cls in (("elpv", "64"), ("mnist", "1"), ("cifar-10", "1")):
        with pytest.raises(InputError, match=f"{name}: the images could not be fetched or read"):
            data.load(name, cls, seed=0)
        assert not (cache / name).exists()


def test_a_package_that_cannot_be_fetched_is_named(cache: Path) -> None:
    with pytest.raises(InputError, match="elpv-dataset") as raised:
        data.load("elpv", "64", seed=0)
    assert data._ELPV_ARCHIVE in str(raised.value.hint)


def test_a_folder_of_pngs_holds_the_same_pixels_in_order(tmp_path: Path) -> None:
    for images in (_noise(3, 9, 7), _noise(3, 9, 7, 3)):
        files = data.write_folder(images, tmp_path / str(images.ndim))
        assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
        read = np.stack([np.asarray(Image.open(file)) for file in files])
        np.testing.assert_array_equal(read, images)


def test_a_folder_with_old_images_is_refused(tmp_path: Path) -> None:
    data.write_folder(_noise(3, 8, 8), tmp_path)
    with pytest.raises(InputError, match="not empty"):
        data.write_folder(_noise(1, 8, 8), tmp_path)


# Defects


@pytest.fixture
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "TRAIN_CROPS", 60)
    monkeypatch.setattr(defects, "TEST_CROPS", 40)


def _gravel(row: int = 0) -> np.ndarray:
    return skimage.data.gravel()[row : row + 64, :64]


@pytest.mark.parametrize("kind", sorted(defects.KINDS))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_defect_changes_the_image_visibly_and_only_inside_its_mask(
    kind: str, dtype: type
) -> None:
    rng = np.random.default_rng(0)
    image, donor, scale = _gravel(), _gravel(200), 255.0
    if dtype is np.float32:
        image, donor, scale = as_float(image[None])[0, 0], as_float(donor[None])[0, 0], 2.0
    before = image.copy()
    for _ in range(20):
        result = defects.defective(image, rng, donor, kind=kind)
        change = np.abs(result.image.astype(float) - image) / scale
        assert result.kind == kind
        assert result.image.dtype == dtype
        assert change[~result.mask].max() == 0
        assert change[result.mask].mean() >= 0.0199
        assert 0 < result.mask.sum() <= 16 * 16
    np.testing.assert_array_equal(image, before)


def test_defects_repeat_with_the_seed_and_differ_without() -> None:
    def draw(seed: int) -> np.ndarray:
        return defects.defective(_gravel(), np.random.default_rng(seed), _gravel(200)).image

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_all_kinds_of_defect_occur() -> None:
    rng = np.random.default_rng(0)
    kinds = {defects.defective(_gravel(), rng, _gravel(200)).kind for _ in range(60)}
    assert kinds == set(defects.KINDS)


def test_cut_paste_pastes_what_the_donor_shows() -> None:
    image, donor = np.zeros((64, 64), np.uint8), np.full((64, 64), 200, np.uint8)
    result = defects.defective(image, np.random.default_rng(0), donor, kind="cut-paste")
    assert set(result.image[result.mask].tolist()) == {200}


def test_a_defect_that_nobody_could_see_is_never_made() -> None:
    flat, rng = np.full((64, 64), 90, np.uint8), np.random.default_rng(0)
    with pytest.raises(ValueError, match="no visible defect"):
        defects.defective(flat, rng, flat, kind="blur")
    assert {defects.defective(flat, rng, flat).kind for _ in range(30)} == {"scratch", "blob"}


def test_images_that_take_no_defect_are_refused() -> None:
    rng, image = np.random.default_rng(0), _gravel()
    for wrong in (_noise(8, 64), _noise(64, 64, 3)):
        with pytest.raises(ValueError, match="grey images of 16 pixels"):
            defects.defective(wrong, rng, image)
    with pytest.raises(ValueError, match="unknown defect 'dent'"):
        defects.defective(image, rng, image, kind="dent")


@pytest.mark.usefixtures("few_crops")
def test_texture_crops_for_testing_share_no_pixel_with_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = np.tile(np.arange(512) // 2, (512, 1)).astype(np.uint8)
    monkeypatch.setattr(skimage.data, "gravel", lambda: columns)
    split = data.load("defects", "gravel", seed=0)
    assert split.train.shape == (60, 64, 64)
    assert split.train.max() < 160
    assert split.test[~split.anomalous].min() >= 160


@pytest.mark.usefixtures("few_crops")
def test_half_of_the_test_crops_have_a_defect_where_the_mask_says() -> None:
    split = data.load("defects", "brick", seed=0)
    assert split.masks is not None
    assert split.anomalous.sum() == 20
    np.testing.assert_array_equal(split.masks.any(axis=(1, 2)), split.anomalous)
    again, other = data.load("defects", "brick", seed=0), data.load("defects", "brick", seed=1)
    np.testing.assert_array_equal(split.test, again.test)
    assert not np.array_equal(split.test, other.test)


@pytest.mark.usefixtures("few_crops")
def test_solar_cell_crops_come_from_normal_cells_and_other_ones_for_testing(cache: Path) -> None:
    _elpv_wheel(cache)
    split = data.load("defects", "elpv", seed=0)
    train = set(split.train[:, 0, 0].tolist())
    test = set(split.test[~split.anomalous][:, 0, 0].tolist())
    assert not train & test
    assert all(cell % 3 == 0 for cell in train | test)


# Baselines


def _obvious() -> Split:
    """Crops of a photograph of gravel against dark stripes."""
    gravel, rng = skimage.data.gravel(), np.random.default_rng(0)
    corners = rng.integers(0, 480, (80, 2))
    normal = np.stack([gravel[y : y + 16, x : x + 16] for y, x in corners])
    stripes = np.zeros((20, 16, 16), dtype=np.uint8)
    stripes[:, ::2] = _noise(20, 8, 16) // 4
    test = np.concatenate([normal[60:], stripes])
    return Split("synthetic", "", normal[:60], test, np.arange(40) >= 20)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_ranks_obvious_anomalies_first(name: str) -> None:
    result = evaluate(_obvious(), 0, [name])
    assert result[name]["auroc"] > 0.97
    assert result[name]["cpu_seconds"] > 0


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_repeats_with_the_seed_on_colour_images(name: str) -> None:
    train, test = as_float(_noise(40, 16, 16, 3)), as_float(_noise(5, 16, 16, 3, seed=1))
    first, again = (BASELINES[name](train, test, 3) for _ in range(2))
    assert first.shape == (5,)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", ["iforest", "padim-random"])
def test_the_seed_reaches_the_random_baselines(name: str) -> None:
    split = _obvious()
    train, test = as_float(split.train), as_float(split.test)
    assert not np.array_equal(BASELINES[name](train, test, 0), BASELINES[name](train, test, 1))


def test_pca_sees_what_the_training_images_cannot_be_composed_of() -> None:
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 144)).astype(np.float32)
    train = (rng.normal(size=(300, 3)).astype(np.float32) @ basis).reshape(-1, 1, 12, 12)
    inside, outside = train[:1] * 1.5, rng.normal(size=(1, 1, 12, 12)).astype(np.float32)
    scores = BASELINES["pca-64"](train, np.concatenate([inside, outside]), 0)
    assert scores[0] < 1e-6
    assert scores[1] > 0.5


def test_padim_scores_an_image_by_its_worst_place() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(0, 0.1, (80, 1, 64, 64)).astype(np.float32)
    test = rng.normal(0, 0.1, (6, 1, 64, 64)).astype(np.float32)
    test[5, 0, 2:8, 2:8] += 1
    scores = BASELINES["padim-random"](train, test, 0)
    assert scores[5] > 3 * scores[:5].max()


def test_all_baselines_run_by_default() -> None:
    split = _obvious()
    small = Split("s", "", split.train[:20], split.test[17:23], split.anomalous[17:23])
    assert list(evaluate(small, 0)) == list(BASELINES)


def test_pixels_become_floats_from_minus_one_to_one_with_channels_first() -> None:
    grey = as_float(np.array([[[0, 255]]], dtype=np.uint8))
    assert grey.shape == (1, 1, 1, 2)
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey.ravel(), [-1, 1])
    colour = _noise(2, 4, 5, 3)
    assert as_float(colour).shape == (2, 3, 4, 5)
    np.testing.assert_allclose(as_float(colour)[1, 2], colour[1, :, :, 2] / 127.5 - 1, atol=1e-6)


def _measured(method: str, auroc: float, seen: float) -> dict[str, object]:
    return {"method": method, "auroc": auroc, "self_test_whole": {"anoscan": seen}}


def test_the_self_test_agrees_where_it_prefers_the_model_that_labels_prefer() -> None:
    models = [
        _measured("untrained", 0.8, 0.7),
        _measured("anoscan", 0.9, 0.6),
        _measured("hinge", 0.905, 0.8),  # too near to the default to tell them apart
    ]
    assert selftest.comparisons(models) == [
        ("hinge", "untrained", True),
        ("default", "untrained", False),
    ]


def test_looks_of_a_texture_tell_a_blurred_one_from_one_with_a_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mismatch, "KNOWN", 60)
    monkeypatch.setattr(mismatch, "QUERIES", 10)
    found = mismatch.of_set("texture", "", 0)
    assert found["normal"] == found["rectangle"] == 0
    assert found["blur 1.5"] == found["noise"] == found["brighter"] == 1
