"""Check JSON documents against the schemas that ship in the package."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator


def check_documents(text: str) -> None:
    """Check the documents of an output: one, or one a line; other output is passed over."""
    for document in _documents(text):
        check(document)


def check(document: Any) -> None:
    """Check a document against the schema that it names."""
    kind, _, number = str(document["schema"]).removeprefix("anoscan.").partition("/")
    validator(f"{kind}-{number}.json").validate(document)


@functools.cache
def validator(file: str) -> Draft202012Validator:
    """Give the validator of a schema, by the name of its file."""
    text = (resources.files("anoscan") / "schemas" / file).read_text("utf-8")
    return Draft202012Validator(json.loads(text))


def _documents(text: str) -> list[Any]:
    if not text.startswith("{"):
        return []
    for parts in ([text], text.splitlines()):
        try:
            found = [json.loads(part) for part in parts]
        except ValueError:
            continue
        return [one for one in found if isinstance(one, dict) and "schema" in one]
    return []
