"""The JSON Schemas in the package are those of the results, and of what the commands print."""

from __future__ import annotations

import runpy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.cli.test_cli import Run, run
from tests.conftest import Digits
from tests.documents import check, validator

__all__ = ["run"]  # a fixture

ROOT = Path(__file__).parents[2]
FILES = sorted(file.name for file in (resources.files("anoscan") / "schemas").iterdir())
QUICK = ("--images-shown", "96", "--encoder-images-shown", "32", "--width", "4", "--size", "16")


def test_schemas_are_made_of_the_results_as_they_are_now() -> None:
    fresh = runpy.run_path(str(ROOT / "docs" / "json_schemas.py"))["all_schemas"]()
    folder = resources.files("anoscan") / "schemas"
    kept = {name: (folder / name).read_text("utf-8") for name in FILES}
    assert kept == fresh, "run python docs/json_schemas.py"


@pytest.mark.parametrize("file", FILES)
def test_a_schema_is_one_of_its_dialect_and_named_in_the_docs(file: str) -> None:
    schema = validator(file).schema
    Draft202012Validator.check_schema(schema)
    name = schema["properties"]["schema"]["const"]
    assert file == f"{name.removeprefix('anoscan.').replace('/', '-')}.json"
    assert f"`{name}`" in (ROOT / "docs" / "cli.md").read_text("utf-8")


def test_what_commands_print_is_valid(run: Run, few: Digits, tmp_path: Path) -> None:
    # `run` checks every document; these are those that take no second training.
    trained = run("train", few.normal, "--name", "m", *QUICK, "--json")
    past = tmp_path / "past.csv"
    documents = {trained.json["schema"]: trained.json}
    for arguments in (
        ("train", few.normal, "--name", "other", *QUICK, "--dry-run"),
        ("score", few.queries, "--append", past, "--fail-if", "count>0", "--json"),
        ("eval", "--labels", few.labels, "--json"),
        ("drift", "m", few.normal, "--json"),
        ("sample", "--output", tmp_path / "drawn", "--n", "4", "--json"),
        ("trend", past, "--json"),
        ("doctor", "--json"),
        ("calibrate", "m", few.normal, "--json"),
        ("models", "list", "--json"),
        ("models", "show", "m", "--json"),
        ("models", "history", "m", "--json"),
    ):
        printed = run(*arguments)
        assert printed.out.startswith("{"), printed.err
        documents[printed.json["schema"]] = printed.json
    lines = run("score", few.queries, "--jsonl").out.splitlines()
    assert len(lines) > 5
    assert '"schema": "anoscan.image/1"' in lines[0]
    assert {name.removeprefix("anoscan.") for name in documents} == {
        "train/1", "config/1", "score/1", "eval/1", "drift/1", "sample/1", "trend/1", "doctor/1",
        "calibrate/1", "models/1", "model/1", "history/1",
    }  # fmt: skip
    parts = {name: documents[f"anoscan.{name}/1"] for name in ("train", "score", "eval")}
    check({"schema": "anoscan.demo/1", **parts, "output": "x"})
    for document in documents.values():
        _check_that_it_can_fail(document)


def _check_that_it_can_fail(document: dict[str, Any]) -> None:
    name = list(document)[1]
    for wrong in ({k: v for k, v in document.items() if k != name}, document | {name: [7]}):
        with pytest.raises(ValidationError):
            check(wrong)
