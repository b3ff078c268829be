"""Servers that are not Noukai: one elsewhere, and one in its place that repeats what it was sent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Stranger:
    """A server that records the headers of every request, and responds 404. A context manager."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def response(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stranger.requests.append(f"{self.requestline}\n{self.headers}")
                status, headers, body = stranger.response(
                    self.command, self.path, self.headers.get("Authorization", "")
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = response  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address, by the name that makes it another origin than the local Noukai."""
        return f"http://localhost:{self._server.server_port}/api/v1"

    def response(self, method: str, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Return a status, headers and a body."""
        return 404, {}, b""


class Echo(Stranger):
    """Repeats the key in every response: as it came, and without its beginning.

    What it does depends on the flow: `echo-refused` is rejected, `echo-html` gets a web page, `echo-failed`
    and `echo-completed` become jobs that end so.
    """

    def response(self, method: str, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Return a status, headers and a body."""
        key = authorization.removeprefix("Bearer ")
        said = f"{authorization} {key.rpartition('_')[2]} key={key[3:]}&end"
        headers = {"X-Request-ID": said, "WWW-Authenticate": authorization, "Location": f"/{key}"}
        if "/echo-html-" in path:
            return 502, headers, f"<html><body>{said}</body></html>".encode()
        if "/echo-failed-" in path or "/echo-completed-" in path:
            return 200, headers, json.dumps(self._job(method, path, said)).encode()
        rejection = {"detail": {"code": f"BAD_{key}", "message": said}}
        return 400, headers, json.dumps(rejection).encode()

    def _job(self, method: str, path: str, said: str) -> dict[str, Any]:
        reported = {"progress": {"said": said}, "createdAt": said, "error": {"code": said, "message": said}}
        if method == "POST":
            return {"executionId": "job-of-echo", "status": "started", "flowId": said, "blockCount": 1}
        state = "failed" if "/echo-failed-" in path else "completed"
        return {"executionId": "job-of-echo", "status": state, "result": {"said": said}, **reported}
