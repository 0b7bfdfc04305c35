"""A server on this machine that speaks enough of the Hugging Face hub's interface to serve one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repo: str, folder: Path, error: tuple[int, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve the files in `folder` as `repo`; yields the address and the list of requests, which grows.

    Args:
        error: answer every request for the repository with this status and X-Error-Code instead.
    """
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = urlparse(self.path).path
            requests.append(f"{self.command} {path}")
            if path == "/":
                return self.send(200, b"", {}, body)
            if error is not None:
                return self.send(error[0], b"{}", {"X-Error-Code": error[1], "X-Error-Message": "refused"}, body)
            if path == f"/api/models/{repo}/revision/main":
                return self.send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode(), {}, body)
            if path == f"/api/models/{repo}/tree/{COMMIT}":
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": etag(file)}
                    for file in sorted(folder.iterdir())
                ]
                return self.send(200, json.dumps(files).encode(), {}, body)
            prefix = f"/{repo}/resolve/{COMMIT}/"
            file = folder / path.removeprefix(prefix)
            if not path.startswith(prefix) or not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return self.send(200, file.read_bytes(), {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT}, body)

        def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
