"""Pictures of one scored image, whatever its size, and those of a model without reconstructions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoscan.core.results import Region
from anoscan.detector import Detector
from anoscan.images.decode import ImageRule, decode
from anoscan.images.files import ImageFile, find
from anoscan.model import file as modelfile
from anoscan.report import figure
from anoscan.report.html_page import HtmlReport
from anoscan.report.map_files import MapFiles
from anoscan.report.pictures import Views
from anoscan.report.views import ImageViews
from anoscan.scoring.choices import ScoreRequest
from tests.conftest import Digits
from tests.report.test_figure import marked
from tests.report.test_html_page import result

GREY, BRIGHTEST = (96, 96, 96), (249, 203, 53)
RULE = ImageRule(size=32, channels=1, window=None)
MIDDLE = Region(x=10, y=5, width=10, height=5, score=9.0, area=50, p_value=0.1)


def views_of(folder: Path, size: tuple[int, int], *, reconstructs: bool = True) -> ImageViews:
    """Views of a dark image, the map of which is hot in one place; its reconstruction is white."""
    file = folder / "a.png"
    Image.new("L", size, 40).save(file)
    hot = np.zeros((32, 32), np.float32)
    hot[8:12, 8:12] = 9
    decoded = decode(ImageFile("a.png", file, "a.png"), RULE)
    residual = np.zeros((32, 32), np.float32)
    residual[20:24, 20:24] = 1
    white = np.ones((1, 32, 32), np.float32)
    return ImageViews(decoded, white, hot, 9.0, RULE, residual, 1.0, reconstructs)


def share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(picture) == colour).all(-1).mean())


def flooded(picture: Image.Image) -> int:
    return int((np.ptp(np.asarray(picture).astype(int), axis=-1) > 60).sum())


@pytest.mark.parametrize(
    ("size", "pane"),
    [
        ((16, 16), (384, 384)),
        ((28, 28), (392, 392)),
        ((64, 64), (384, 384)),
        ((640, 480), (640, 480)),
        ((2000, 1500), (2000, 1500)),
        ((4100, 2050), (1366, 683)),
        ((12, 40), (120, 400)),
    ],
)
def test_an_overlay_is_large_enough_for_a_person_at_any_size_of_the_image(
    size: tuple[int, int], pane: tuple[int, int], tmp_path: Path
) -> None:
    drawn = views_of(tmp_path, size).overlay(result("a.png", 3))
    assert max(pane[0], 400) <= drawn.width <= 1.05 * max(pane[0], 400)
    assert pane[1] + 60 <= drawn.height <= 1.2 * pane[1] + 100
    assert flooded(drawn) > 0.005 * pane[0] * pane[1]


def test_boxes_are_drawn_where_the_regions_are_and_dashed_below_the_level(tmp_path: Path) -> None:
    seen = views_of(tmp_path, (64, 32))
    legend = (0, 0, 420, 270)  # without the words, which have the colour of the boxes
    none, above, below = (
        marked(seen.overlay(result("a.png", 3, regions)).crop(legend))
        for regions in ((), (MIDDLE,), (dataclasses.replace(MIDDLE, below_level=True),))
    )
    assert none.sum() == 0
    rows, columns = np.nonzero(above)
    assert columns.min() == pytest.approx(10 + 10 * 6, abs=4)
    assert columns.max() == pytest.approx(10 + 20 * 6, abs=4)
    assert rows.max() - rows.min() == pytest.approx(5 * 6, abs=8)
    assert 0.3 < below.sum() / above.sum() < 0.8


def test_a_normal_image_has_a_calm_title_and_no_boxes(tmp_path: Path) -> None:
    seen = views_of(tmp_path, (64, 64))
    seen = dataclasses.replace(seen, anomaly_map=np.full((32, 32), 1.5, np.float32))
    calm = seen.overlay(result("a.png", 1)).crop((0, 0, 420, 440))  # without the colour bar
    assert flooded(calm) == 0
    assert flooded(seen.overlay(result("a.png", 3)).crop((0, 0, 420, 440))) > 0


def test_the_residual_s_panel_has_three_views_and_those_of_similar_images(tmp_path: Path) -> None:
    seen = views_of(tmp_path, (64, 64))
    panel = seen.panel(result("a.png", 3, (MIDDLE,)), ())
    assert panel.width == 3 * 320 + 4 * 10
    more = seen.panel(result("a.png", 3, (MIDDLE,)), [np.ones((1, 32, 32))])
    assert more.width == pytest.approx(4 * 320 + 5 * 13, abs=5)
    assert share(panel, (255, 255, 255)) > 0.15  # the reconstruction
    assert share(panel, BRIGHTEST) > 0.003  # the residual
    assert share(panel, GREY) < 0.001


def test_views_fit_the_side_and_keep_a_single_hot_place_bright(tmp_path: Path) -> None:
    seen = views_of(tmp_path, (300, 200))
    hot = np.zeros((1000, 1000))
    hot[501, 301] = 9.0
    seen = dataclasses.replace(seen, anomaly_map=hot, x_hat=np.zeros((3, 1000, 600)))
    drawn = seen.views(128)
    assert [max(view.size) for view in drawn] == [128, 128, 128]
    assert flooded(drawn.anomaly_map) > 0
    assert marked(seen.views(128, [MIDDLE]).anomaly_map).any()
    assert not marked(drawn.anomaly_map).any()


# --- models that cannot reconstruct -------------------------------------------------------------


def test_the_panel_shows_a_placard_and_the_map_and_no_residual(tmp_path: Path) -> None:
    panel = views_of(tmp_path, (64, 64), reconstructs=False).panel(result("a.png", 3), ())
    assert panel.width == 3 * 320 + 4 * 10
    assert share(panel, GREY) > 0.15
    assert share(panel, (255, 255, 255)) == 0
    assert share(panel, BRIGHTEST) < 0.003  # of the colour bar alone
    assert flooded(panel.crop((670, 60, 1000, 400))) > 1000


def test_views_for_the_page_and_the_terminal_have_a_placard(tmp_path: Path) -> None:
    drawn: Views = views_of(tmp_path, (64, 48), reconstructs=False).views(384)
    assert share(drawn.reconstruction, GREY) > 0.5
    width, height = drawn.reconstruction.size
    assert width / height == pytest.approx(64 / 48, abs=0.02)
    assert width >= 150  # the words can be read, though the image is small


def test_side_by_side_shows_no_reconstruction_at_all(tmp_path: Path) -> None:
    image = result("a.png", 3)
    drawn, other = (
        views_of(tmp_path, (64, 64), reconstructs=known).side_by_side(image)
        for known in (True, False)
    )
    assert np.array_equal(np.asarray(drawn), np.asarray(other))
    assert share(drawn, (255, 255, 255)) == 0


def test_a_model_that_failed_the_check_of_reconstructions_draws_placards(
    model_file: Path, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, metadata, _ = modelfile.load(model_file)
    for check in metadata["health"]["checks"]:
        check["verdict"] = "fail" if check["name"] == "reconstruction" else "ok"
    modelfile.save(tmp_path / "poor.safetensors", tensors, metadata)
    placards: list[str] = []
    real = figure.placard

    def placard(size: tuple[int, int], words: str) -> Image.Image:
        placards.append(words)
        return real(size, words)

    monkeypatch.setattr(figure, "placard", placard)
    files = find([next(few.queries.iterdir())])
    for path, n in ((model_file, 0), (tmp_path / "poor.safetensors", 2)):
        detector = Detector.load(path)
        maps = MapFiles(tmp_path / "m", ("overlay", "side-by-side"))
        with HtmlReport(tmp_path / "r.html", 1) as page:
            views = detector.view_files(tmp_path / "r", maps)
            detector.score_files(files, ScoreRequest(), views, on_image=page.add)
        assert placards == [figure.NO_RECONSTRUCTION] * n  # of the panel and of the page
