"""What a training leaves for people to look at, and that looking changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from anoscan.core.errors import TrainingInterrupted, UsageError
from anoscan.core.progress import Progress
from anoscan.detector import Detector
from anoscan.model import file as modelfile
from anoscan.model import listing, store
from anoscan.model.training_record import LOSSES, Record
from anoscan.networks import loop
from anoscan.networks.loop import run
from anoscan.report.tracking import LOOKS, Tracker
from anoscan.training import train_networks
from tests.conftest import Digits

QUICK: dict[str, Any] = {
    "size": 16, "images_shown": 320, "encoder_images_shown": 160, "rotation_images_shown": 160,
    "batch_size": 8, "width": 4, "latent_dim": 8, "workers": 1,
}  # fmt: skip
Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _looks_by_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # No encoder of so short a training is good, and none is trained again here.
    monkeypatch.setattr(train_networks, "UNUSABLE", np.inf)
    monkeypatch.setattr(loop, "CHECK_EVERY", 4)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 1e9)


def lines(folder: Path) -> Lines:
    return [json.loads(line) for line in (folder / LOSSES).read_text().splitlines()]


def places(found: Lines) -> list[tuple[str, int]]:
    return [(line["stage"], line["images"]) for line in found]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return modelfile.load(path)[0]


@pytest.mark.parametrize(
    "choices",
    [
        {"architecture": "dcgan"},
        pytest.param({"architecture": "resnet"}, marks=pytest.mark.slow),
        pytest.param({"architecture": "progressive"}, marks=pytest.mark.slow),
        {"mapping": "bigan", "encoder": "vae", "encoder_images_shown": None},
    ],
)
def test_a_training_that_is_looked_at_gives_the_same_weights(
    few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    settings = QUICK | {"images_shown": 160} | choices
    looked = Detector.train(few.normal, path=tmp_path / "looked.safetensors", **settings)

    def blind(self: Tracker, stage: str, images: int, on_progress: Any, **shown: Any) -> Any:
        return on_progress

    monkeypatch.setattr(Tracker, "following", blind)
    monkeypatch.setattr(Tracker, "show", lambda *anything: None)
    unseen = Detector.train(few.normal, path=tmp_path / "unseen.safetensors", **settings)
    assert looked.report is not None
    assert len(lines(Path(looked.report.tracking or ""))) >= 8
    assert unseen.report is not None
    assert unseen.report.tracking is None
    assert looked.reference.sha256 == unseen.reference.sha256


def test_the_record_has_losses_of_all_stages_and_a_few_pictures(
    few: Digits, tmp_path: Path
) -> None:
    detector = Detector.train(few.normal, path=tmp_path / "model.safetensors", **QUICK)
    assert detector.report is not None
    folder = tmp_path / "model.training"
    assert detector.report.tracking == folder.as_posix()
    found = lines(folder)
    assert [line["images"] for line in found if line["stage"] == "gan"] == list(range(32, 321, 32))
    assert {name for line in found for name in line["losses"]} == {
        "discriminator", "generator", "penalty", "rotation", "encoder", "error",
    }  # fmt: skip
    assert all(np.isfinite(loss) for line in found for loss in line["losses"].values())
    shown = [name for line in found for name in line["pictures"]]
    assert names(folder) == {LOSSES, *shown}
    samples = [name for name in shown if name.startswith("samples")]
    mirrored = [name for name in shown if name.startswith("reconstructions-encoder")]
    tuned = [name for name in shown if name.startswith("reconstructions-reconstruction")]
    assert 1 < len(tuned) <= LOOKS
    assert 1 < len(samples) <= LOOKS
    assert 1 < len(mirrored) <= LOOKS
    assert samples[-1] == "samples-gan-000000320.png"
    pixels = [np.asarray(Image.open(folder / name)) for name in mirrored]
    half = pixels[0].shape[0] // 2
    for later in pixels[1:]:
        # The images stay; what the encoder makes of them does not.
        assert np.array_equal(pixels[0][: half - 2], later[: half - 2])
        assert not np.array_equal(pixels[0][half + 2 :], later[half + 2 :])
    first, last = (np.asarray(Image.open(folder / name)) for name in (samples[0], samples[-1]))
    assert first.shape == last.shape
    assert not np.array_equal(first, last)


def test_an_encoder_that_learns_with_the_gan_is_shown_with_it(few: Digits, tmp_path: Path) -> None:
    settings = QUICK | {"mapping": "bigan", "encoder_images_shown": None}
    Detector.train(few.normal, path=tmp_path / "model.safetensors", **settings)
    folder = tmp_path / "model.training"
    found = lines(folder)
    assert {line["stage"] for line in found} == {"gan", "rotation"}
    assert "encoder" in found[0]["losses"]
    shown = [line["pictures"] for line in found if line["pictures"]]
    assert 1 < len(shown) <= LOOKS
    assert all(
        [name.split("-")[0] for name in pair] == ["samples", "reconstructions"] for pair in shown
    )
    first, last = (np.asarray(Image.open(folder / pair[1])) for pair in (shown[0], shown[-1]))
    half = first.shape[0] // 2
    assert np.array_equal(first[: half - 2], last[: half - 2])
    assert not np.array_equal(first[half + 2 :], last[half + 2 :])


def test_a_generator_that_grows_is_shown_at_full_size_and_ever_finer(
    few: Digits, tmp_path: Path
) -> None:
    settings = QUICK | {"architecture": "progressive"}
    Detector.train(few.normal, path=tmp_path / "model.safetensors", **settings)
    folder = tmp_path / "model.training"
    shown = sorted(name for name in names(folder) if name.startswith("samples-gan"))
    sheets = [np.asarray(Image.open(folder / name), np.float64) for name in shown]
    assert len({sheet.shape for sheet in sheets}) == 1
    # The first image of 16x16, four pixels of the sheet each. Within 2x2 of them all is alike until
    # the finest level fades in.
    images = [sheet[:64:4, :64:4] for sheet in (sheets[0], sheets[-1])]
    first, last = (np.abs(image[:, ::2] - image[:, 1::2]).mean() for image in images)
    assert first == 0
    assert last > 0


@pytest.mark.parametrize("stop_in", [pytest.param("gan", marks=pytest.mark.slow), "encoder"])
def test_a_resumed_run_appends_without_a_line_twice(
    few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_in: str
) -> None:
    def train(name: str, resume: bool = False) -> None:
        path = tmp_path / f"{name}.safetensors"
        Detector.train(few.normal, name=name, path=path, resume=resume, **QUICK)

    def stop_early(stage: Any, **arguments: Any) -> None:
        position = arguments["position"]
        if stage.name == stop_in:
            arguments["stopping"] = lambda: position.step >= 10
        run(stage, **arguments)

    train("whole")
    with monkeypatch.context() as patch:
        patch.setattr("anoscan.networks.stages.run", stop_early)
        with pytest.raises(TrainingInterrupted):
            train("halved")
    beside = Record(store.checkpoint_path("halved"))
    unfinished = places(beside.lines())
    assert unfinished[-1] == (stop_in, 64)
    # As after a power cut: lines of steps that the checkpoint does not know of.
    beside.append({"stage": stop_in, "images": 9999, "losses": {}, "pictures": []})
    train("halved", resume=True)
    whole, halved = tmp_path / "whole.training", tmp_path / "halved.training"
    assert places(lines(halved)) == places(lines(whole))
    assert names(halved) == names(whole)
    for name in names(whole) - {LOSSES}:
        assert (halved / name).read_bytes() == (whole / name).read_bytes(), name
    assert not beside.folder.exists()


def test_a_rollback_takes_back_what_was_written_since(tmp_path: Path) -> None:
    tracker = Tracker(Record(tmp_path / "m.safetensors"), resume=False)
    tracker.show(np.zeros((4, 1, 16, 16), np.float32), 2, 0, torch.device("cpu"))
    generator = nn.Sequential(nn.Linear(2, 256), nn.Unflatten(1, (1, 16, 16)))
    follow = tracker.following("gan", 0, lambda progress: None, generator=generator)
    for images in (10, 20, 30):
        follow(Progress("gan", images, 80, {"generator": 1.0}, 5.0))
    follow(Progress("gan", 20, 80, {}, 0.0, "went back"))
    for images in (30, 40):
        follow(Progress("gan", images, 80, {"generator": 2.0}, 5.0))
    found = tracker.record.lines()
    assert [line["images"] for line in found] == [10, 20, 20, 30, 40]
    assert [line["note"] for line in found] == [None, None, "went back", None, None]
    assert names(tracker.record.folder) == {
        LOSSES, *(f"samples-gan-0000000{images}.png" for images in (10, 20, 30, 40))
    }  # fmt: skip


def test_networks_are_as_they_were_after_a_look(tmp_path: Path) -> None:
    tracker = Tracker(Record(tmp_path / "m.safetensors"), resume=False)
    tracker.show(np.zeros((4, 1, 16, 16), np.float32), 2, 0, torch.device("cpu"))
    generator = nn.Sequential(
        nn.Linear(2, 256), nn.BatchNorm1d(256).eval(), nn.Dropout(), nn.Unflatten(1, (1, 16, 16))
    )
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 2))
    modes = [module.training for module in (*generator.modules(), *encoder.modules())]
    before = {
        key: value.clone()
        for key, value in nn.ModuleList([generator, encoder]).state_dict().items()
    }
    drawn = torch.random.get_rng_state()
    mirror = (encoder, generator)
    follow = tracker.following("gan", 0, lambda p: None, generator=generator, mirror=mirror)
    follow(Progress("gan", 8, 8, {}, 1.0))
    assert len(list(tracker.record.folder.glob("*.png"))) == 2
    assert modes == [module.training for module in (*generator.modules(), *encoder.modules())]
    after = nn.ModuleList([generator, encoder]).state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_a_new_training_replaces_the_record_and_no_file_of_somebody_else(
    few: Digits, tmp_path: Path
) -> None:
    path, folder = tmp_path / "m.safetensors", tmp_path / "m.training"
    Detector.train(few.normal, path=path, **QUICK)
    (folder / "notes.txt").write_text("mine")
    shutil.copy(folder / "samples-gan-000000320.png", folder / "samples-gan-999999999.png")
    Detector.train(few.normal, path=path, force=True, **QUICK | {"images_shown": 160})
    found = names(folder)
    assert "notes.txt" in found
    assert "samples-gan-000000160.png" in found
    assert not {"samples-gan-000000320.png", "samples-gan-999999999.png"} & found
    assert max(line["images"] for line in lines(folder) if line["stage"] == "gan") == 160


def test_a_record_that_cannot_be_written_does_not_cost_the_training(
    few: Digits, tmp_path: Path
) -> None:
    blocked = store.checkpoint_path("m")
    blocked.parent.mkdir(parents=True)
    Record(blocked).folder.write_text("a file where the folder should be")
    seen: list[Progress] = []
    path = tmp_path / "m.safetensors"
    detector = Detector.train(few.normal, path=path, name="m", on_progress=seen.append, **QUICK)
    assert detector.report is not None
    assert detector.report.tracking is None
    assert sum("no more losses" in (progress.note or "") for progress in seen) == 1
    assert path.exists()


def recorded(name: str) -> Record:
    """A model of the store, not a good one, with a record."""
    path = store.path_for(name)
    modelfile.save(path, {"x": torch.zeros(1)}, {"kind": "model"})
    Record(path).append({"stage": "gan", "images": 1, "losses": {}, "pictures": [], "by": name})
    return Record(path)


def test_the_store_takes_a_record_along_with_its_model(tmp_path: Path) -> None:
    old, other = recorded("old"), recorded("other")
    store.rename("old", "new")
    new = Record(store.path_for("new"))
    assert not old.folder.exists()
    assert new.lines()[0]["by"] == "old"
    store.rename("new", "other", force=True)
    assert other.lines()[0]["by"] == "old"
    store.rename("other", "other")
    assert other.lines()[0]["by"] == "old"
    exported = store.export("other", tmp_path)
    store.import_model(exported, name="other", force=True)
    assert not other.folder.exists()
    gone = recorded("gone")
    (gone.folder / "notes.txt").write_text("mine")
    store.remove("gone")
    assert names(gone.folder) == {"notes.txt"}
    plain = recorded("plain")
    store.remove("plain")
    assert not plain.folder.exists()
    assert [model.name for model in listing.models()] == ["other"]


def test_a_line_cut_short_by_a_power_cut_is_forgotten(tmp_path: Path) -> None:
    record = Record(tmp_path / "m.safetensors")
    for images in (10, 20):
        record.append({"stage": "gan", "images": images, "pictures": []})
    with (record.folder / LOSSES).open("a") as stream:
        stream.write('{"stage": "gan", "ima')
    record.rewind("gan", 20)
    record.append({"stage": "gan", "images": 30, "pictures": []})
    assert [line["images"] for line in lines(record.folder)] == [10, 20, 30]


class FakeWriter:
    """What the tracker calls of TensorBoard's writer."""

    made: list[FakeWriter] = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[str] = []
        FakeWriter.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_image(self, tag: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert pixels.dtype == np.uint8
        assert (pixels.shape[2], dataformats) == (3, "HWC")
        self.images.append(tag)

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_the_losses_and_pictures_of_the_record(
    few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    path = tmp_path / "m.safetensors"
    Detector.train(few.normal, path=path, name="run", tensorboard=tmp_path / "tb", **QUICK)
    writers = FakeWriter.made[-4:]
    assert [(Path(w.folder).relative_to(tmp_path / "tb"), w.purge_step) for w in writers] == [
        (Path("run") / stage, 0) for stage in ("gan", "rotation", "encoder", "reconstruction")
    ]
    assert all(writer.closed for writer in writers)
    found = lines(tmp_path / "m.training")
    wanted = [
        (f"{line['stage']}/{name}", value, line["images"])
        for line in found
        for name, value in line["losses"].items()
    ]
    assert [scalar for writer in writers for scalar in writer.scalars] == wanted
    pictures = sum(len(line["pictures"]) for line in found)
    assert sum(len(writer.images) for writer in writers) == pictures


def test_tensorboard_itself_takes_what_it_is_given(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("tensorboard")
    tracker = Tracker(Record(tmp_path / "m.safetensors"), resume=False, tensorboard=tmp_path / "tb")
    tracker.show(np.zeros((4, 1, 16, 16), np.float32), 2, 0, torch.device("cpu"))
    generator = nn.Sequential(nn.Linear(2, 256), nn.Unflatten(1, (1, 16, 16)))
    follow = tracker.following("gan", 0, lambda progress: None, generator=generator)
    follow(Progress("gan", 8, 8, {"generator": 1.0}, 1.0))
    tracker.close()
    (events,) = (tmp_path / "tb" / "gan").iterdir()
    data = events.read_bytes()
    assert b"gan/generator" in data
    assert b"gan/samples" in data


def test_tensorboard_shows_once_what_happened_twice(tmp_path: Path) -> None:
    reader: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record = Record(tmp_path / "m.safetensors")

    def train(*points: tuple[int, float], at: int | None = None, note: str | None = None) -> None:
        tracker = Tracker(record, resume=at is not None, tensorboard=tmp_path / "tb")
        follow = tracker.following("gan", at or 0, lambda progress: None)
        for images, loss in points:
            follow(Progress("gan", images, 100, {"generator": loss}, 1.0))
        if note:
            follow(Progress("gan", 20, 100, {}, 0.0, note))
            follow(Progress("gan", 30, 100, {"generator": 0.5}, 1.0))
        tracker.close()

    def shown() -> list[tuple[int, float]]:
        events = reader.EventAccumulator(str(tmp_path / "tb" / "gan")).Reload()
        return [(point.step, point.value) for point in events.Scalars("gan/generator")]

    train((10, 1.0), (20, 2.0), (30, 3.0))
    assert shown() == [(10, 1.0), (20, 2.0), (30, 3.0)]
    train((20, 4.0), (30, 5.0), at=10)
    assert shown() == [(10, 1.0), (20, 4.0), (30, 5.0)]
    train((40, 6.0), at=30, note="went back")
    assert shown() == [(10, 1.0), (20, 4.0), (30, 0.5)]
    train((10, 7.0))
    assert shown() == [(10, 7.0)]


@pytest.fixture
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def test_tensorboard_that_is_missing_is_said_before_any_image_is_read(
    few: Digits, tmp_path: Path, without_tensorboard: Callable[[], None]
) -> None:
    without_tensorboard()
    seen: list[Progress] = []
    with pytest.raises(UsageError, match="not installed") as error:
        Detector.train(
            few.normal, path=tmp_path / "m", tensorboard=tmp_path, on_progress=seen.append, **QUICK
        )
    assert "anoscan[tensorboard]" in str(error.value.hint)
    assert not any(progress.images for progress in seen)
