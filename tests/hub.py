"""A stand-in of the Hugging Face Hub: a small server in this process that keeps repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Repositories as ``{name: {file: bytes}}``; a token other than ``right`` may not write."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits = 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    @property
    def sha(self) -> str:
        return f"{self.server.commits:040x}"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: object, code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: int, error: str, said: str) -> None:
        self.answer({"error": said}, code, X_Error_Code=error, X_Error_Message=said)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer right":
            self.refuse(401, "Unauthorized", "Invalid username or password.")
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.server.repositories.setdefault(name, {})
            self.answer({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            said = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer({"files": said})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.repositories[found[1]][line["value"]["path"]] = base64.b64decode(
                        line["value"]["content"]
                    )
            self.server.commits += 1
            url = f"{self.server.address}/{found[1]}/commit/{self.sha}"
            self.answer({"success": True, "commitOid": self.sha, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({}, 200)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.*)?", path)) and found[
            1
        ] in self.server.repositories:
            files = self.server.repositories[found[1]]
            if (found[2] or "").startswith("/tree"):
                self.answer([{"type": "file", "path": f, "size": len(b), "oid": self.sha} for f, b in files.items()])
            else:
                self.answer({"id": found[1], "sha": self.sha, "siblings": [{"rfilename": name} for name in files]})
        elif (found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)) and found[2] in (
            files := self.server.repositories.get(found[1], {})
        ):
            tag = hashlib.sha256(files[found[2]]).hexdigest()
            self.answer(files[found[2]], ETag=f'"{tag}"', X_Repo_Commit=self.sha)
        else:
            self.refuse(404, "RepoNotFound", "Repository Not Found")

    do_HEAD = do_GET


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub inside the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join(10)
        hub.server_close()
