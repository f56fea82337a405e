"""A stand-in for the hub: what its client asks for when it makes a repository, commits files and downloads them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_toy"


class Hub(ThreadingHTTPServer):
    """Repositories with one branch; ``files`` has their contents by repository and name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.served: list[str] = []
        """The files that have been downloaded."""
        self.sizes: dict[str, int] = {}
        """Sizes that the listing says, where they are not those of the contents."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str) -> str:
        content = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in self.files[repository].items()})
        return hashlib.sha1(content.encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _send(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")  # so that nobody is answered any more after the end of the server
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            known = repository in hub.files
            hub.files.setdefault(repository, {})
            hub.private.setdefault(repository, asked.get("visibility") == "private" or bool(asked.get("private")))
            return self._send({"url": f"{hub.url}/{repository}", "name": repository}, 409 if known else 200)
        if self.path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path.partition("?")[0])
        if found is None:
            return self._send({"error": "not found"}, 404)
        repository = found[1]
        if found[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            return self._send({"files": files})
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                hub.files[repository][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        oid = hub.commit(repository)
        return self._send({"commitUrl": f"{hub.url}/{repository}/commit/{oid}", "commitOid": oid, "success": True})

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = found[1] if found else resolved[1] if resolved else ""
        if repository not in hub.files:
            return self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files, oid = hub.files[repository], hub.commit(repository)
        revision = (found or resolved)[3 if found else 2]  # type: ignore[index]
        if revision not in (None, "main", oid):
            return self._send({"error": "Revision not found"}, 404, X_Error_Code="RevisionNotFound")
        if found:
            sizes = {name: hub.sizes.get(name, len(data)) for name, data in files.items()}
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            if found[2] == "tree":
                return self._send(
                    [
                        {"type": "file", "path": name, "size": sizes[name], "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in files.items()
                    ]
                )
            return self._send({"id": repository, "sha": oid, "siblings": siblings})
        name = resolved[3]  # type: ignore[index]
        if name not in files:
            return self._send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        if self.command == "GET":
            hub.served.append(name)
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self._send(files[name], ETag=etag, X_Repo_Commit=oid)

    do_HEAD = do_GET
