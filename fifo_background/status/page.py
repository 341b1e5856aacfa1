"""The page: three files of the package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from starlette.responses import Response

__all__ = ("FILES", "Page")

FILES: Mapping[str, str] = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
}


class Page:
    """The page's files, read once."""

    def __init__(self) -> None:
        folder = files("fifo_background.status") / "static"
        self._content: dict[str, bytes] = {name: (folder / name).read_bytes() for name in FILES}

    def file(self, name: str) -> Response:
        return Response(self._content[name], media_type=FILES[name])
