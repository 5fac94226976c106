"""Fill the templates of HTML pages, whose policy allows their own style and script alone.

Whatever a template is given appears as text, unless it is `Markup`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from anoscan.core.errors import UsageError


def check_page(path: Path) -> None:
    """Refuse a page whose name does not say that it is one.

    Raises
    ------
    UsageError
        When the name does not end with .html or .htm, or is that of a folder.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the report must be named .html or .htm. Got {str(path)!r}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, and the report is a file.")


def render(name: str, context: Mapping[str, Any], *, scripted: bool = True) -> Iterator[str]:
    """Yield a page in parts: the template ``NAME.html`` with ``report.css`` and ``NAME.js``.

    A page that is not `scripted` has no script of its own.
    """
    environment = Environment(
        loader=PackageLoader("anoscan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share}
    style = _source(environment, "report.css")
    script = _source(environment, f"{name}.js") if scripted else Markup()
    sources = {
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }
    return environment.get_template(f"{name}.html").generate(**context, **sources)


def embedded(value: Any) -> Markup:
    """Return JSON that is safe inside a script element: no file name in it can end the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def number(value: float | None) -> str:
    """Return a number with four digits, or "-" for None."""
    return "-" if value is None else f"{value:.4g}"


def share(value: float | None) -> str:
    """Return a share as per cent, or "-" for None."""
    return "-" if value is None else f"{100 * value:.3g} %"


def _source(environment: Environment, name: str) -> Markup:
    if environment.loader is None:
        raise RuntimeError("the environment has a loader")
    return Markup(environment.loader.get_source(environment, name)[0])


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
