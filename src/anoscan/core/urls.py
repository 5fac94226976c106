"""Tell URLs, such as ``s3://bucket/images``, from paths of this computer."""

from __future__ import annotations

import os
import re

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):([/\\]+)(.*)", re.DOTALL)
_LOCAL = ("file", "local")  # whose URLs have no host: file:///home
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]*@")
_SECRET = re.compile(r"([?&][^=&]*(?:signature|sig|token|credential|secret|key)=)[^&#]*", re.I)


def url_of(path: str | os.PathLike[str]) -> str | None:
    """Return the URL that a path is, or None for a path of this computer.

    `pathlib` makes one slash of two. So ``s3:/bucket/images`` is a URL too, unless it exists here.
    """
    text = os.fspath(path)
    found = _URL.fullmatch(text)
    if found is None:
        return None
    scheme, slashes, rest = found.groups()
    if len(slashes) > 1 and not isinstance(path, os.PathLike):
        return text
    if os.path.lexists(text):
        return None
    rest = rest.replace("\\", "/") if slashes.startswith("\\") else rest
    return f"{scheme}://{'/' * (scheme in _LOCAL)}{rest}"


def shown(url: str) -> str:
    """Return a URL without the passwords and signatures that it may hold."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1***@", url))


def scheme_of(url: str) -> str:
    """Return what stands before ``://``, in lower case."""
    return url.partition("://")[0].lower()
