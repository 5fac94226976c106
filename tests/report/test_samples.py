"""What `anoscan sample` draws."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anoscan import cli
from anoscan.core.errors import InputError, UsageError
from anoscan.core.results import SampleReport
from anoscan.detector import Detector
from anoscan.images.decode import decode
from anoscan.images.files import find
from anoscan.report.samples import STEPS, WALKS, Sampler, slerp
from tests.conftest import Digits

GAP, MARGIN = 4, 20


@pytest.fixture(scope="module")
def detector(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """A model trained for a second: sampling does not ask how good it is."""
    path = tmp_path_factory.mktemp("sampling") / "m.safetensors"
    return Detector.train(
        few.normal, path=path, size=16, images_shown=320, encoder_images_shown=64, width=8
    )


def cells(picture: Image.Image, side: int, *, margin: int = 0) -> np.ndarray:
    """Images of a grid, (rows, columns, side, side), grey, one pixel for each that was drawn."""
    grey = np.asarray(picture.convert("L"))[margin:, margin:]
    zoom = 64 // side
    starts = [range(0, length, 64 + GAP) for length in grey.shape]
    rows = [[grey[y : y + 64 : zoom, x : x + 64 : zoom] for x in starts[1]] for y in starts[0]]
    return np.array(rows)


def drawn(image: np.ndarray) -> np.ndarray:
    """What a grid shows of an image (1, s, s) in [-1, 1]."""
    return np.round((np.clip(image[0], -1, 1) + 1) * 127.5).astype(np.uint8)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 64), st.integers(2, 20))
def test_slerp_keeps_its_ends_and_lies_no_shorter_than_between_their_lengths(
    seed: int, dim: int, steps: int
) -> None:
    a, b = torch.randn(2, dim, generator=torch.Generator().manual_seed(seed)).unbind()
    b = b * (a.norm() / b.norm())
    way = slerp(a, b, steps)
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    if abs(torch.dot(a, b) / a.norm() / b.norm()) < 0.999:
        torch.testing.assert_close(way.norm(dim=1), a.norm().expand(steps), rtol=1e-3, atol=1e-4)


def test_slerp_between_parallel_latents_is_finite() -> None:
    a = torch.ones(3)
    for b in (a, -a, torch.zeros(3)):
        assert torch.isfinite(slerp(a, b, 5)).all()
    torch.testing.assert_close(slerp(a, 2 * a, 3)[1], 1.5 * a)


def test_the_grid_shows_generated_images_and_the_seed_decides_which(
    detector: Detector, tmp_path: Path
) -> None:
    report = detector.sample(tmp_path / "a", n=10)
    grid = cells(Image.open(report.grid), 16)
    assert grid.shape[:2] == (3, 4)
    sampler = Sampler(detector.model, detector.runtime, 0)
    made = sampler.images(sampler.latents(10, "samples"))
    for place, image in enumerate(made):
        assert np.array_equal(grid[divmod(place, 4)], drawn(image))
    again, other = detector.sample(tmp_path / "b", n=10), detector.sample(tmp_path / "c", seed=1)
    for name in ("grid", "interpolation"):
        first, same, changed = (
            Path(getattr(found, name)).read_bytes() for found in (report, again, other)
        )
        assert first == same
        assert first != changed
    walks = cells(Image.open(report.interpolation), 16)
    assert walks.shape[:2] == (WALKS, STEPS)
    # Nearer latents give nearer images, on the whole.
    steps = np.abs(np.diff(walks.astype(float), axis=1)).mean()
    assert steps < np.abs(walks[:, 0].astype(float) - walks[:, -1]).mean()


def test_between_goes_from_one_image_to_the_other_through_their_reconstructions(
    detector: Detector, few: Digits, tmp_path: Path
) -> None:
    files = find([few.queries])
    pair = [files[0].file, files[-1].file]
    report = detector.sample(tmp_path, between=pair)
    assert report.between is not None
    row = cells(Image.open(report.between), 16)[0]
    assert len(row) == STEPS + 2
    decoded = [decode(file, detector.model.rule).pixels for file in (files[0], files[-1])]
    with torch.no_grad():
        networks = detector.model.networks
        x = torch.from_numpy(np.stack(decoded))
        x_hat = networks.mirror[1](networks.encoder(x)).numpy()
    shown = [row[0], row[-1], row[1], row[-2]]
    for cell, image in zip(shown, [*decoded, *x_hat], strict=True):
        # One grey level: the rounding of a batch of other size.
        assert np.abs(cell.astype(int) - drawn(image)).max() <= 1


def key_of(report: SampleReport) -> list[dict[str, str]]:
    assert report.turing is not None
    with Path(report.turing.key).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_answer_key_of_the_turing_test_is_right(
    detector: Detector, few: Digits, tmp_path: Path
) -> None:
    report = detector.sample(tmp_path, n=12, turing=few.normal)
    assert report.turing is not None
    assert (report.turing.real, report.turing.generated) == (6, 6)
    sheet = cells(Image.open(report.turing.sheet), 16, margin=MARGIN)
    answers = key_of(report)
    assert len(answers) == 12
    files = {file.path: file for file in find([few.normal])}
    sampler = Sampler(detector.model, detector.runtime, 0)
    made = {drawn(image).tobytes() for image in sampler.images(sampler.latents(6, "turing"))}
    for answer in answers:
        cell = sheet[int(answer["row"]) - 1, int(answer["column"]) - 1]
        if answer["source"] == "real":
            image = decode(files[answer["path"]], detector.model.rule).pixels
            assert np.array_equal(cell, drawn(image))
        else:
            assert cell.tobytes() in made
    sources = [answer["source"] for answer in answers]
    assert sources != sorted(sources)
    assert sources != sorted(sources, reverse=True)


def test_the_turing_test_shows_normal_images_of_a_folder_with_defects_and_masks(
    detector: Detector, few: Digits, tmp_path: Path
) -> None:
    for inside in ("train/good", "test/scratch", "ground_truth/scratch"):
        shutil.copytree(few.normal, tmp_path / "made" / inside)
    report = detector.sample(tmp_path / "out", n=40, turing=tmp_path / "made")
    real = {answer["path"] for answer in key_of(report) if answer["source"] == "real"}
    assert {Path(path).parent.as_posix()[-10:] for path in real} == {"train/good"}


def test_unreadable_images_of_the_turing_test_are_skipped_and_listed(
    detector: Detector, few: Digits, tmp_path: Path
) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    for image in sorted(few.normal.iterdir())[:3]:
        shutil.copy(image, folder / f"={image.name}")
    (folder / "text.png").write_text("no image")
    report = detector.sample(tmp_path / "out", turing=folder)
    assert report.turing is not None
    assert (report.turing.real, report.turing.generated) == (3, 3)
    assert [Path(item.path).name for item in report.skipped] == ["text.png"]
    (folder / "text.png").rename(tmp_path / "text.png")
    with pytest.raises(InputError, match="--turing"):
        detector.sample(tmp_path / "out", turing=tmp_path / "text.png")


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    detector: Detector, few: Digits, tmp_path: Path
) -> None:
    good = str(next(few.normal.iterdir()))
    with pytest.raises(UsageError, match="--n"):
        detector.sample(tmp_path / "out", n=1)
    with pytest.raises(InputError, match=r"--between .*absent"):
        detector.sample(tmp_path / "out", between=[good, tmp_path / "absent.png"])
    with pytest.raises(InputError, match="does not exist"):
        detector.sample(tmp_path / "out", turing=tmp_path / "absent")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_one_document_and_exits_as_the_contract_says(
    detector: Detector,
    few: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["anoscan", "sample", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    model, out = detector.reference.path, tmp_path / "out"
    pair = sorted(few.queries.iterdir())[:2]
    code, text = run(
        model, "--output", out, "--n", 4, "--between", *pair, "--turing", few.queries, "--json"
    )
    assert code == 0
    document = json.loads(text)
    assert set(document) == {
        "schema", "model", "seed", "n", "grid", "interpolation", "between", "turing", "skipped",
    }  # fmt: skip
    assert document["schema"] == "anoscan.sample/1"
    assert document["model"]["sha256"] == detector.reference.sha256
    turing = document["turing"]
    named = [document[key] for key in ("grid", "interpolation", "between")]
    for path in [*named, turing["sheet"], turing["key"]]:
        assert Path(path).parent == out
        assert Path(path).is_file()
    (tmp_path / "some").mkdir()
    shutil.copy(pair[0], tmp_path / "some")
    (tmp_path / "some" / "bad.png").write_text("no image")
    assert run(model, "--output", out, "--turing", tmp_path / "some")[0] == 3
    assert run(model, "--output", out, "--n", 0)[0] == 2
    assert run("absent", "--output", out)[0] == 1
    assert run(model, "--output", out, "--n", 4) == (0, (
        f"4 generated images: {out}/samples.png\n"
        f"interpolations between random latents: {out}/interpolation.png\n"
    ))  # fmt: skip
