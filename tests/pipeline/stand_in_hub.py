"""A hub on the loopback device: what ``huggingface_hub`` asks of the real one, and its failures."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

NAME = "owner/model"


@dataclass
class Repository:
    """One model at one commit, and how its server shall behave.

    Attributes:
        folder: the files.
        name: ``owner/name``.
        commit: what ``main`` and the tag ``v1`` are.
        budget: send no more than this many bytes of large files in all, then only headers.
        damage: large files are sent with their last byte changed.
        requests: method, path and ``Range`` of every request.
    """

    folder: Path
    name: str = NAME
    commit: str = "c" * 40
    budget: int | None = None
    damage: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def is_large(self, path: Path) -> bool:
        return path.suffix == ".safetensors"

    def digest(self, path: Path) -> str:
        data = path.read_bytes()
        if self.is_large(path):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def describe(self) -> dict[str, Any]:
        siblings = []
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            entry: dict[str, Any] = {
                "rfilename": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "blobId": self.digest(path),
            }
            if self.is_large(path):
                digest = self.digest(path)
                entry["lfs"] = {"sha256": digest, "size": path.stat().st_size, "pointerSize": 134}
            siblings.append(entry)
        return {
            "id": self.name,
            "modelId": self.name,
            "sha": self.commit,
            "siblings": siblings,
            "tags": [],
        }

    def downloads(self) -> list[tuple[str, str | None]]:
        """Name and range of every file whose content was asked for."""
        found = ((re.search(r"/resolve/[^/]+/(.*)", path), part) for method, path, part in
                 self.requests if method == "GET")  # fmt: skip
        return [(match[1], part) for match, part in found if match]


class Handler(BaseHTTPRequestHandler):
    """Answers like the hub: metadata of a model, and files with ranges."""

    def __init__(self, repository: Repository, *arguments: Any) -> None:
        self.repository = repository
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        repo = self.repository
        path = unquote(urlparse(self.path).path)
        wanted = self.headers.get("Range")
        repo.requests.append((self.command, path, wanted))
        api = re.fullmatch(rf"/api/models/{repo.name}(?:/revision/(.+))?", path)
        file = re.fullmatch(rf"/{repo.name}/resolve/([^/]+)/(.+)", path)
        revision = (api or file) and (api or file)[1]
        if not (api or file):
            return self.refuse("RepoNotFound")
        if revision not in (None, "main", "v1", repo.commit):
            return self.refuse("RevisionNotFound")
        if api:
            return self.send(json.dumps(repo.describe()).encode(), {}, body)
        source = repo.folder / file[2]
        if not source.is_file():
            return self.refuse("EntryNotFound")
        data = source.read_bytes()
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.digest(source)}"'}
        if repo.is_large(source):
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data))}
            if repo.damage:
                data = data[:-1] + bytes([data[-1] ^ 1])
        return self.send(data, headers, body, wanted, limited=repo.is_large(source))

    def send(
        self,
        data: bytes,
        headers: dict[str, str],
        body: bool,
        wanted: str | None = None,
        *,
        limited: bool = False,
    ) -> None:
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            rest, budget = data[start:], self.repository.budget
            if limited and budget is not None:
                rest = rest[:budget]
                self.repository.budget = budget - len(rest)
            self.wfile.write(rest)
        self.close_connection = True

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def handler_of(repository: Repository) -> Any:
    return partial(Handler, repository)
