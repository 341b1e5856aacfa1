"""The page: the files of the package's folder `static`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePath

from starlette.responses import Response

__all__ = ("FILES", "INDEX", "Page")

INDEX = "index.html"
# page.js and the modules that it imports
MODULES = (
    *("page", "dialog", "document", "figures", "jobs", "lanes", "link", "news", "now", "requests", "rows"),
    *("stream", "words"),
)
FILES = (INDEX, "page.css", *(f"{name}.js" for name in MODULES))
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Page:
    """The page's files, read once."""

    def __init__(self) -> None:
        folder = files("fifo_background.status") / "static"
        self._content: dict[str, bytes] = {name: (folder / name).read_bytes() for name in FILES}

    def file(self, name: str) -> Response:
        return Response(self._content[name], media_type=TYPES[PurePath(name).suffix])
