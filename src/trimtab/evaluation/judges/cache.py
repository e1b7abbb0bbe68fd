"""Replies by what was asked, in a file that grows line by line: a run that was cut short goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trimtab.errors import OutputError


def content_key(url: str, body: Mapping[str, Any]) -> str:
    """Return the digest of a request: address and body, without credentials."""
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.hostname}:{parts.port}{parts.path}"
    text = json.dumps([place, body], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies on disk, or in memory alone without a path. Prompts are kept as digests only, keys not at all."""

    def __init__(self, path: Path | None, *, writable: bool = True) -> None:
        """Read what is there; a last line that was cut off is passed over.

        Args:
            path: the file.
            writable: whether replies will be added; if not, nothing is touched.

        Raises:
            OutputError: the file cannot be read or written.
        """
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        try:
            if writable:
                path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if writable and text and not text.endswith("\n"):  # what is added must not continue a line that was cut off
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"The cache {path} cannot be used ({error}): name another file.") from error
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["reply"]
            except (ValueError, KeyError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the reply to a request, if it is known."""
        return self._known.get(key)

    def put(self, key: str, reply: dict[str, Any]) -> None:
        """Keep a reply.

        Raises:
            OutputError: the file cannot be written.
        """
        self._known[key] = reply
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "reply": reply}) + "\n")
        except OSError as error:
            raise OutputError(f"The cache {self._path} cannot be written ({error}).") from error
