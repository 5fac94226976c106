from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anoscan
from anoscan.core.errors import ModelError
from anoscan.model import file as modelfile
from tests.model.damage import sealed, with_header

CHECKSUM = "c7013afbcf5f1898de463ce3c1d3eff9aab6877217f51ccb3d8985c8e793be10"
METADATA = {"anoscan_version": "0.1.0", "config": {"size": 32, "rate": 0.5}, "names": ["ä", None]}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "bias": torch.zeros(3, dtype=torch.float64),
        "steps": torch.tensor(7),
    }


def with_metadata(text: str) -> bytes:
    return with_header(json.dumps({"__metadata__": {"anoscan": text}}).encode())


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        modelfile.read_metadata(path)
    return caught.value


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    modelfile.save(path, tensors(), METADATA)
    return path


def test_a_model_comes_back_with_its_tensors_and_metadata(model: Path) -> None:
    loaded, metadata, _ = modelfile.load(model)
    assert metadata == {**METADATA, "format": 1}
    assert metadata == modelfile.read_metadata(model)
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_loaded_tensors_stay_whole_when_the_file_is_replaced_or_cut(model: Path) -> None:
    loaded = modelfile.load(model).tensors
    model.write_bytes(b"")
    assert torch.equal(loaded["weight"], tensors()["weight"])


def test_equal_models_are_equal_files_in_any_order_of_the_tensors(tmp_path: Path) -> None:
    backwards = dict(reversed(tensors().items()))
    first = modelfile.save(tmp_path / "1", tensors(), METADATA)
    second = modelfile.save(tmp_path / "2", backwards, dict(reversed(METADATA.items())))
    assert first == second
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_header_holds_one_canonical_json_text(model: Path) -> None:
    data = model.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["__metadata__"] == {
        "anoscan": f'{{"checksum":"{CHECKSUM}",'
        '"anoscan_version":"0.1.0","config":{"rate":0.5,"size":32},'
        '"format":1,"names":["\\u00e4",null]}'
    }


def test_save_and_load_give_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    saved = modelfile.save(path, tensors(), METADATA)
    assert saved == modelfile.load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_and_hash_are_of_the_same_file_when_it_is_replaced_meanwhile(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ones = modelfile.load(model).sha256, {"weight": torch.ones(3, 4)}
    read_head = modelfile._head

    def replacing(*given: Any) -> Any:
        found = read_head(*given)
        modelfile.save(model, ones, METADATA)
        return found

    monkeypatch.setattr(modelfile, "_head", replacing)
    loaded = modelfile.load(model)
    assert loaded.sha256 == before
    assert torch.equal(loaded.tensors["weight"], tensors()["weight"])
    assert torch.equal(modelfile.load(model).tensors["weight"], ones["weight"])


def test_a_file_written_over_while_it_is_read_is_damaged(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, read_head = model.parent / "other", modelfile._head
    modelfile.save(model, {"weight": torch.zeros(100_000)}, METADATA)
    modelfile.save(other, {"weight": torch.ones(100_000)}, METADATA)

    def overwriting(*given: Any) -> Any:
        found = read_head(*given)
        model.write_bytes(other.read_bytes())  # keeps the file, unlike a replacement
        return found

    monkeypatch.setattr(modelfile, "_head", overwriting)
    with pytest.raises(ModelError, match="checksum"):
        modelfile.load(model)


def test_a_change_of_any_byte_is_refused(model: Path) -> None:
    data = model.read_bytes()
    for place in range(len(data)):
        model.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ModelError):
            modelfile.load(model)


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(model: Path) -> None:
    data = model.read_bytes()
    assert sealed(data) == data
    assert sealed(data.replace(b"rate", b"late")) != data.replace(b"rate", b"late")


def test_a_file_of_a_development_version_has_no_checksum_and_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(with_metadata('{"format":1}'))
    assert "no checksum" in refusal(path).message
    with pytest.raises(ModelError, match="no checksum"):
        modelfile.load(path)


def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("LARGEST_HEADER", "LARGEST_FILE"):
        with monkeypatch.context() as patch:
            patch.setattr(modelfile, limit, 100)
            with pytest.raises(ModelError, match="too large"):
                modelfile.save(tmp_path / "m", tensors(), METADATA)
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_the_limit_is_refused_unread(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.open("r+b") as stream:
        stream.truncate(2 * modelfile.LARGEST_FILE)
    with pytest.raises(ModelError, match=r"too large for a model: 8\.6 GB, and at most 4\.3"):
        modelfile.load(model)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "18446744073709551616"])
def test_numbers_beyond_the_range_are_no_metadata(tmp_path: Path, number: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(with_metadata(f'{{"format":1,"loss":{number}}}'))
    assert "not a JSON object" in refusal(path).message


def test_saving_what_was_loaded_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    again = modelfile.save(tmp_path / "again", *modelfile.load(model)[:2])
    assert again == modelfile.load(model).sha256


def test_tensors_that_share_memory_or_have_strides_or_gradients_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3).requires_grad_()
    modelfile.save(tmp_path / "m", {"a": base, "b": base, "t": base.T}, {})
    loaded = modelfile.load(tmp_path / "m").tensors
    assert torch.equal(loaded["b"], base)
    assert torch.equal(loaded["t"], base.T)


def test_folders_are_made_and_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    modelfile.save(tmp_path / "a" / "b" / "m", tensors(), {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a/b/m").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = model.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(ModelError, match="No space left"):
            modelfile.save(model, {"other": torch.ones(2)}, {})
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    assert model.read_bytes() == before


def test_the_content_is_on_the_disk_before_the_file_takes_its_name(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, c=call: (order.append(n), c(*a)))
    modelfile.save(model, {}, {})
    assert order == ["fsync", "replace"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with modelfile.replacing_model(tmp_path / "m") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_model_cannot_be_written_over_a_folder_or_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "m"):
        with pytest.raises(ModelError, match="cannot write"):
            modelfile.save(path, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metadata_that_json_cannot_say_are_refused_before_writing(
    tmp_path: Path, value: float
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        modelfile.save(tmp_path / "m", {}, {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_the_format_of_the_metadata_is_that_of_the_program(tmp_path: Path) -> None:
    modelfile.save(tmp_path / "m", {}, {"format": 99})
    assert modelfile.read_metadata(tmp_path / "m") == {"format": 1}


def test_a_newer_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(with_metadata('{"format":2}'))
    error = refusal(path)
    assert "was written by a newer anoscan (format 2)" in error.message
    assert "upgrade" in (error.hint or "")
    with pytest.raises(ModelError, match="newer anoscan"):
        modelfile.load(path)


def test_a_foreign_safetensors_file_is_called_foreign(tmp_path: Path) -> None:
    path = tmp_path / "m"
    safetensors.torch.save_file(tensors(), path, metadata={"format": "pt"})
    assert "is not an anoscan model" in refusal(path).message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 200,
        b"PK\x03\x04 not a model",
        with_header(b"[]"),
        with_header(b'{"__metadata__":[]}'),
        with_header(b'{"__metadata__":{"anoscan":{}}}'),
        with_header('{"ä":1}'.encode("utf-16")),
        with_header(b"[" * 100_000),
        with_header(b'{"a":' * 100_000),
        with_header(b'{"n":' + b"9" * 10_000 + b"}"),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        with_metadata("not json"),
        with_metadata("[" * 100_000),
        with_metadata('["format"]'),
        with_metadata("{}"),
        with_metadata('{"format":true}'),
        with_metadata('{"format":"1"}'),
        with_metadata('{"format":0}'),
        with_metadata('{"format":1,"loss":NaN}'),
    ],
    ids=lambda data: repr(data[:40]),
)
def test_bytes_that_are_no_model_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "strange.safetensors"
    path.write_bytes(data)
    error = refusal(path)
    assert str(path) in error.message
    assert error.hint


def test_a_header_longer_than_the_limit_is_refused_unread(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelfile, "LARGEST_HEADER", 50)
    assert "is not an anoscan model" in refusal(model).message


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_file_cut_short_is_known_without_reading_its_weights(model: Path, kept: float) -> None:
    modelfile.save(model, {"weight": torch.zeros(1000)}, METADATA)
    data = model.read_bytes()
    model.write_bytes(data[: int(len(data) * kept)])
    assert "damaged: it was cut short" in refusal(model).message


def test_weights_that_safetensors_refuses_are_called_damaged(model: Path) -> None:
    data = model.read_bytes().replace(b'"shape":[3,4]', b'"shape":[3,5]')
    model.write_bytes(sealed(data))
    assert modelfile.read_metadata(model)["format"] == 1
    with pytest.raises(ModelError, match="is damaged"):
        modelfile.load(model)


QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["__metadata__", "anoscan", "format", "data_offsets", "w"]), inner
        )
    ),
    max_leaves=12,
)


def survives(path: Path, data: bytes) -> None:
    path.write_bytes(sealed(data))
    for read in (modelfile.read_metadata, modelfile.load):
        try:
            result = read(path)
        except ModelError:
            continue
        metadata = result.metadata if isinstance(result, modelfile.Contents) else result
        assert type(metadata["format"]) is int


@QUICK
@given(data=st.binary(max_size=64) | st.binary(max_size=64).map(with_header))
def test_any_bytes_give_metadata_or_a_model_error(tmp_path: Path, data: bytes) -> None:
    survives(tmp_path / "m", data)


@QUICK
@given(header=JSON, metadata=JSON, rest=st.binary(max_size=16))
def test_any_json_gives_metadata_or_a_model_error(
    tmp_path: Path, header: object, metadata: object, rest: bytes
) -> None:
    if isinstance(header, dict):
        if isinstance(metadata, dict):
            metadata = {"checksum": "0" * 64} | metadata
        text = json.dumps(metadata, separators=(",", ":"))
        header["__metadata__"] = {"anoscan": text}
    survives(tmp_path / "m", with_header(json.dumps(header).encode(), rest))


@QUICK
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    kept=st.just(1.0) | st.floats(0, 1),
)
def test_a_model_with_changed_or_missing_bytes_gives_metadata_or_a_model_error(
    model: Path, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(model.read_bytes())
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    survives(model.parent / "m", bytes(data[: int(len(data) * kept)]))


def test_an_element_type_that_torch_lacks_is_called_damaged(model: Path) -> None:
    modelfile.save(model, {"w": torch.zeros(32, dtype=torch.uint8)}, METADATA)
    data = model.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    header["w"] = {"dtype": "F6_E2M3", "shape": [32], "data_offsets": [0, 24]}
    model.write_bytes(sealed(with_header(json.dumps(header).encode(), bytes(24))))
    with pytest.raises(ModelError, match="is damaged"):
        modelfile.load(model)


def test_a_missing_file_hints_at_the_list_of_models(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none")
    assert "no model file" in error.message
    assert "anoscan models list" in (error.hint or "")


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).message
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a regular file" in refusal(tmp_path / "pipe").message


def test_a_file_that_may_not_be_read_is_a_model_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refusal(model).message
    with pytest.raises(ModelError, match="Permission denied"):
        modelfile.load(model)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_that_is_not_utf8_works(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff\n")
    modelfile.save(path, tensors(), METADATA)
    assert modelfile.load(path)[1]["format"] == 1


def test_reading_metadata_imports_neither_torch_nor_numpy(model: Path) -> None:
    code = (
        "import sys, pathlib; from anoscan.model import file as modelfile, listing\n"
        "modelfile.read_metadata(pathlib.Path(sys.argv[1])); listing.models()\n"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    environment = {**os.environ, "ANOSCAN_HOME": str(model.parent / "home")}
    environment["PYTHONPATH"] = str(Path(anoscan.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert result.stdout.strip() == "[]"
