"""Images, labels and models in storages that fsspec opens give what local files give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from anoscan import cli
from anoscan.core.errors import InputError, ModelError
from anoscan.core.results import ImageScore
from anoscan.detector import Detector
from anoscan.evaluation.labels import gather
from anoscan.images.files import ImageFile, find
from anoscan.images.pool import Failed, read_all
from tests.conftest import Digits


@pytest.fixture
def bucket(few: Digits, model_file: Path) -> Iterator[str]:
    """A folder of queries and their labels, and a model, in memory."""
    system = MemoryFileSystem()
    system.put(f"{few.queries}/", "/digits/queries", recursive=True)
    system.put(str(few.labels), "/digits/labels.csv")
    system.put(str(model_file), "/digits/model.safetensors")
    yield "memory://digits"
    system.rm("/digits", recursive=True)


def main(arguments: list[str]) -> int:
    """Run a command line, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["anoscan", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return int(stopped.value.code or 0)


def by_name(images: object) -> dict[str, tuple[float, float]]:
    assert isinstance(images, tuple) or hasattr(images, "__iter__")
    return {
        Path(image.path).name: (image.score, image.p_value)
        for image in images
        if isinstance(image, ImageScore)
    }


def test_scores_are_those_of_local_files(bucket: str, few: Digits, trained: Detector) -> None:
    here = trained.score(few.queries)
    there = Detector.load(f"{bucket}/model.safetensors").score(f"{bucket}/queries")
    assert by_name(there.images) == by_name(here.images)
    assert there.images[0].path.startswith("memory://digits/queries/")
    assert there.model.path == f"{bucket}/model.safetensors"
    assert there.model.name == "model"
    assert there.model.sha256 == trained.reference.sha256


def test_a_file_url_and_a_mixture_of_places(bucket: str, few: Digits, trained: Detector) -> None:
    url = few.queries.as_uri()
    first = next(few.queries.iterdir())
    report = trained.score([url, str(first), f"{bucket}/queries/{first.name}"])
    assert report.counts["scored"] == len(list(few.queries.iterdir())) + 2
    same = {image.score for image in report.images if image.path.endswith(first.name)}
    assert len(same) == 1


def test_evaluation_reads_labels_from_a_storage(
    bucket: str, few: Digits, trained: Detector
) -> None:
    here = trained.evaluate(few.labels)
    there = trained.evaluate(f"{bucket}/labels.csv")
    assert (there.auroc, there.images.normal) == (here.auroc, here.images.normal)
    beside = trained.evaluate(few.labels, bucket)
    assert beside.auroc == here.auroc
    assert beside.images.unlabelled == 0


def test_labels_cannot_name_files_of_another_storage(
    bucket: str, few: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next(few.queries.iterdir()).name
    monkeypatch.chdir(tmp_path)
    labels = Path("labels.csv")
    labels.write_text(f"path,label,mask\n{bucket}/queries/{image},1,memory://other/{image}\n")
    with pytest.raises(InputError, match="none of the 1 images"):
        gather(labels, None, None)
    found = gather(labels, Path(bucket), None)
    assert [item.image.path for item in found.images] == [f"{bucket}/queries/{image}"]
    assert [item.mask for item in found.images] == [None]


def test_evaluation_labels_by_the_names_of_remote_folders(few: Digits, trained: Detector) -> None:
    system = MemoryFileSystem()
    rows = few.labels.read_text(encoding="utf-8").splitlines()[1:]
    for row in rows:
        path, label = row.split(",")
        kind = ("good", "bad")[int(label)]
        system.put(str(few.labels.parent / path), f"/sorted/{kind}/{Path(path).name}")
    found = trained.evaluate(folder="memory://sorted")
    assert found.auroc == trained.evaluate(few.labels).auroc
    system.rm("/sorted", recursive=True)


@pytest.mark.slow
def test_training_on_a_storage_gives_the_same_model(
    few: Digits, tmp_path: Path, quick: dict[str, int]
) -> None:
    system = MemoryFileSystem()
    system.put(f"{few.normal}/", "/mine/normal", recursive=True)
    here = Detector.train(few.normal, **quick)
    there = Detector.train("memory://mine/normal", force=True, **quick)
    assert (there.reference.name, here.reference.name) == ("normal", "normal")
    assert there.reference.sha256 == here.reference.sha256
    system.rm("/mine", recursive=True)


def test_what_cannot_be_fetched_is_one_skipped_image(
    bucket: str, few: Digits, trained: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find([f"{bucket}/queries"])
    MemoryFileSystem().rm(f"/digits/queries/{files[3].inside}")
    found = list(trained.stream(files))
    assert [type(outcome).__name__ for outcome in found].count("Skipped") == 1
    assert getattr(found[3], "reason", "") == "does not exist"


def test_no_more_than_some_files_are_fetched_ahead(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find([f"{bucket}/queries"])
    results = read_all(_name, files * 10, 1)
    assert next(results)[0] == files[0]
    results.close()  # type: ignore[attr-defined]
    assert not any(isinstance(found, Failed) for _, found in read_all(_name, files, 1))


def _name(image: ImageFile) -> str:
    assert image.file.is_file()
    return image.file.name


def test_a_model_at_a_url_is_imported_and_never_changed(
    bucket: str, few: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{bucket}/model.safetensors"
    assert main(["calibrate", url, str(few.normal), "--yes"]) == 1
    assert "models import URL" in " ".join(capsys.readouterr().err.split())
    assert main(["models", "import", url, "--name", "mine"]) == 0
    assert main(["models", "show", url]) == 0
    assert url in capsys.readouterr().out
    with pytest.raises(ModelError, match=r"memory://none\.safetensors cannot be read"):
        Detector.load("memory://none.safetensors")


def test_errors_have_the_exit_codes_of_local_files(
    bucket: str, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(model_file)]
    assert main(["score", "memory://none", *model]) == 1
    assert "memory://none does not exist" in capsys.readouterr().err
    assert main(["score", f"{bucket}/queries", *model, "-o", "s3://bucket/a.csv"]) == 2
    assert "--output s3://bucket/a.csv" in capsys.readouterr().err
    assert main(["watch", f"{bucket}/queries", *model]) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the server and its client
def test_an_object_server(
    few: Digits, trained: Detector, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unspoken")
    try:
        system = s3fs.S3FileSystem()
        system.mkdir("digits")
        system.put(f"{few.queries}/", "digits/queries", recursive=True)
        system.put(str(model_file), "digits/model.safetensors")
        there = Detector.load("s3://digits/model.safetensors").score("s3://digits/queries")
        assert by_name(there.images) == by_name(trained.score(few.queries).images)
        with pytest.raises(InputError, match="its bucket does not exist"):
            trained.score("s3://none/a.png")
        with pytest.raises(InputError, match="s3://digits/none does not exist"):
            trained.score("s3://digits/none")
    finally:
        server.stop()
    with pytest.raises(InputError, match=r"s3://digits/.* cannot be reached") as raised:
        trained.score("s3://digits/queries")
    assert "unspoken" not in str(raised.value)
