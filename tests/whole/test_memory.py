"""Memory: what is loaded, and what grows with an image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from anoscan.detector import Detector
from anoscan.scoring.choices import MAP_FORMS

QUICK: dict[str, Any] = {
    "patches": 24, "patch_size": 64, "images_shown": 32, "encoder_images_shown": 16,
    "rotation_images_shown": 0, "batch_size": 8, "width": 4, "latent_dim": 4, "workers": 1,
}  # fmt: skip
SMALL, LARGE = 1200, 4400  # pixels a side; maps of more than 4096 wait on disk
# Of an image of 16 bits: itself, and as much again in the decoder; the map's rows wait on disk. It
# is 5.4; as floats the image or its map would take four more, and all of its tiles sixteen.
BYTES_A_PIXEL = 7.5

SIDE = 10_000
PLANT = (7_321, 2_468, 60)  # left, top, side
MEMORY = 1.5e9  # bytes, as promised

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks Linux how much memory was used"
)


def woven(side: int, seed: int) -> np.ndarray:
    """A texture of 16 bits without a period, made a few rows at a time."""
    rng = np.random.default_rng(seed)
    rows = [
        ndimage.gaussian_filter(rng.normal(size=(min(500, side), side)).astype(np.float32), 1.5)
        for _ in range(-(-side // 500))
    ]
    return np.concatenate([(20_000 + 30_000 * row).astype(np.uint16) for row in rows])[:side]


def plant(image: np.ndarray, left: int, top: int, side: int) -> None:
    image[top : top + side, left : left + side] = woven(side, 5)[::-1] // 4 + 30_000


def normals(folder: Path, n: int) -> Path:
    folder.mkdir()
    for number in range(n):
        tifffile.imwrite(folder / f"{number:02}.tiff", woven(300, number))
    return folder


def run(program: str, *given: str) -> str:
    """What a Python program prints, run by itself."""
    return subprocess.run(
        [sys.executable, "-c", program, *given], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def patches_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    path = folder / "m.safetensors"
    Detector.train(normals(folder / "normal", 8), path=path, **QUICK)
    return path


def test_loading_a_model_loads_no_compiler_and_nothing_of_training(patches_model: Path) -> None:
    program = (
        "import sys\n"
        "from anoscan.detector import Detector\n"
        "Detector.load(sys.argv[1])\n"
        "print({'sympy', 'torch._dynamo', 'sklearn', 'matplotlib'} & set(sys.modules))\n"
    )
    assert run(program, str(patches_model)) == "set()\n"


# Networks are left out: what they need is the same for every image, and they would take minutes.
SCORING = """
import json, re, sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
from anoscan import Detector, MapFiles
from anoscan.scoring.measure import Measured, Measurer

def unjudged(measurer, x, how, *, mapped, only=None):
    n, _, side, _ = x.shape
    nothing, ones = np.zeros((n, side, side), np.float32), np.ones((n, len(measurer.fitted)))
    return Measured(0 * ones, x.numpy(), nothing, ones, 100 * x.mean(1).numpy())

Measurer.measure = unjudged
detector = Detector.load(sys.argv[1], workers=1)
found = []
for number, image in enumerate(sys.argv[2].split("|")):
    atlas = MapFiles(Path(sys.argv[3]) / str(number), tuple(sys.argv[4].split(",")))
    report = detector.score([image], maps=atlas)
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    boxes = [asdict(region) for region in report.images[0].regions]
    shown = [{k: box[k] for k in ("x", "y", "width", "height", "area")} for box in boxes]
    found.append((int(peak[1]) * 1024, shown))
print(json.dumps(found))
"""


@needs_proc
def test_memory_grows_by_a_few_bytes_a_pixel_of_an_image(
    patches_model: Path, tmp_path: Path
) -> None:
    paths = []
    for side in (SMALL, LARGE):
        image = np.full((side, side), 20_000, np.uint16)
        image[side // 2 : side // 2 + 40, side // 3 : side // 3 + 40] = 65_535
        tifffile.imwrite(tmp_path / f"{side}.tiff", image)
        paths.append(str(tmp_path / f"{side}.tiff"))
    forms = ",".join(MAP_FORMS)
    found = json.loads(run(SCORING, str(patches_model), "|".join(paths), str(tmp_path), forms))
    (small, some), (large, others) = found
    assert some
    assert others == [{"x": LARGE // 3, "y": LARGE // 2, "width": 40, "height": 40, "area": 1600}]
    assert (large - small) / (LARGE**2 - SMALL**2) < BYTES_A_PIXEL
    written = np.load(tmp_path / "1" / f"{LARGE}.tiff.map.npy", mmap_mode="r")
    assert written.shape == (LARGE, LARGE)


@pytest.mark.slow
@needs_proc
def test_a_huge_image_is_mapped_in_bounded_memory_and_its_defect_is_the_first_region(
    tmp_path: Path,
) -> None:
    settings = {"images_shown": 640, "encoder_images_shown": 320, "rotation_images_shown": 0}
    model = tmp_path / "m.safetensors"
    normal = normals(tmp_path / "normal", 12)
    Detector.train(normal, path=model, patches=600, patch_size=64, **settings)
    left, top, side = PLANT
    huge = woven(SIDE, 99)
    plant(huge, left, top, side)
    tifffile.imwrite(tmp_path / "huge.tiff", huge)
    del huge
    command = [
        "score", str(tmp_path / "huge.tiff"), "--model", str(model), "--json",
        "--maps", str(tmp_path / "maps"), "--maps-format", ",".join(MAP_FORMS),
    ]  # fmt: skip
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from anoscan import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    print(Path('/proc/self/status').read_text(), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    peak = re.search(r"VmHWM:\s+(\d+)", done.stderr)
    assert peak is not None
    assert int(peak[1]) * 1024 < MEMORY
    assert " tile " in done.stderr
    (found,) = json.loads(done.stdout)["images"]
    worst = found["regions"][0]
    assert left - 32 <= worst["x"] + worst["width"] / 2 <= left + side + 32
    assert top - 32 <= worst["y"] + worst["height"] / 2 <= top + side + 32
    array = np.load(found["maps"]["npy"], mmap_mode="r")
    assert array.shape == (SIDE, SIDE)
    with tifffile.TiffFile(found["maps"]["tiff"]) as pages:
        assert pages.pages[0].shape == (SIDE, SIDE)  # type: ignore[union-attr]
    row, column = np.unravel_index(array.argmax(), array.shape)
    assert top - 32 <= row <= top + side + 32
    assert left - 32 <= column <= left + side + 32


LIMITED = """
import json, re, resource, sys
from pathlib import Path
from anoscan import Detector, trainer
used = re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())
most = int(used[1]) * 1024 + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
detector = Detector.train(sys.argv[1], path=sys.argv[2], **json.loads(sys.argv[3]))
print(detector.report.images.patches)
"""


@pytest.mark.slow
@needs_proc
def test_more_images_than_memory_holds_can_be_trained_on(tmp_path: Path) -> None:
    # The system refuses more memory than this; pixels in a mapped file do not count as memory.
    limit = 1000 * 2**20
    settings = QUICK | {"patches": 20_000, "patch_size": 128, "reconstruction_images_shown": 16}
    assert 1.2 * limit < 20_000 * 128**2 * 4
    given = [str(normals(tmp_path / "normal", 24)), str(tmp_path / "m.safetensors")]
    assert int(run(LIMITED, *given, json.dumps(settings), str(limit))) >= 20_000
