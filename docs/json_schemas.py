"""The JSON Schemas of all documents, made of the typed results in ``anoscan.core.results``.

``python docs/json_schemas.py`` writes them to src/anoscan/schemas; ``--check`` exits with 1 when
they are not up to date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from anoscan.core import results
from anoscan.core.config import TrainConfig
from anoscan.model.metadata import _Metadata

FOLDER = Path(__file__).parent.parent / "src" / "anoscan" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNSAID = {"fit", "show_channels"}  # settings that are left out where they have their defaults
DOCUMENTS = {
    kind.schema: kind
    for kind in map(results.__dict__.get, results.__all__)
    if isinstance(kind, type) and isinstance(getattr(kind, "schema", None), str)
} | {results.IMAGE_SCHEMA: results.ImageScore}
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}


def all_schemas() -> dict[str, str]:
    """Give the text of each schema by the name of its file, such as ``train-1.json``."""
    found = {name: of_result(name, kind) for name, kind in DOCUMENTS.items()}
    found["anoscan.model/1"] = of_model("anoscan.model/1")
    found["anoscan.config/1"] = of_settings("anoscan.config/1")
    return {
        f"{name.removeprefix('anoscan.').replace('/', '-')}.json": json.dumps(schema, indent=2)
        + "\n"
        for name, schema in sorted(found.items())
    }


def of_result(name: str, kind: type) -> dict[str, Any]:
    """Schema of a document that is a result; it has all fields, and may get more."""
    made = msgspec.json.schema(kind)
    for title, part in made["$defs"].items():
        own = name if title == kind.__name__ else getattr(getattr(results, title), "schema", None)
        _complete(part, own)
    return _headed(name, made["$defs"].pop(kind.__name__), made["$defs"])


def of_model(name: str) -> dict[str, Any]:
    """Schema of what ``models show --json`` prints: the metadata of a model file."""
    made = msgspec.json.schema(_Metadata)
    root, parts = made["$defs"].pop("_Metadata"), made["$defs"]
    root |= {"title": "Model", "description": "What ``anoscan models show --json`` prints."}
    root["properties"] |= {"name": TEXT, "path": TEXT}
    root["required"] += ["name", "path"]
    _with_name(root, name)
    return _headed(name, root, parts)


def of_settings(name: str) -> dict[str, Any]:
    """Schema of what ``train --dry-run`` prints."""
    parts = msgspec.json.schema(TrainConfig)["$defs"]
    _complete(parts["TrainConfig"], None, UNSAID)
    root: dict[str, Any] = {
        "title": "Settings",
        "description": "What ``anoscan train --dry-run`` prints.",
        "type": "object",
        "properties": {
            "config": {"$ref": "#/$defs/TrainConfig"},
            "images_found": COUNT,
            "device": TEXT,
            "precision": TEXT,
        },
    }
    _complete(root, name)
    return _headed(name, root, parts)


def _complete(part: dict[str, Any], name: str | None, optional: set[str] = frozenset()) -> None:
    """Require all properties of an object; one with a name has it as ``schema``."""
    if "properties" not in part:
        return
    part["required"] = [field for field in part["properties"] if field not in optional]
    for value in part["properties"].values():
        value.pop("default", None)  # no field is left out
    if name is not None:
        _with_name(part, name)


def _with_name(part: dict[str, Any], name: str) -> None:
    part["properties"] = {"schema": {"const": name}} | part["properties"]
    part["required"] = ["schema", *part["required"]]


def _headed(name: str, root: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    for part in (root, *parts.values()):
        if text := part.get("description"):
            part["description"] = " ".join(text.split())
        for value in part.get("properties", {}).values():
            if pattern := value.get("pattern"):  # JSON Schema takes those of ECMAScript
                value["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    return {"$schema": DIALECT, **root} | ({"$defs": parts} if parts else {})


if __name__ == "__main__":
    fresh = all_schemas()
    before = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.json")}
    if "--check" in sys.argv:
        sys.exit("src/anoscan/schemas: run python docs/json_schemas.py" if fresh != before else 0)
    FOLDER.mkdir(exist_ok=True)
    for name in before.keys() - fresh.keys():
        (FOLDER / name).unlink()
    for name, text in fresh.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
