"""A webhook on loopback that remembers what it was sent. No test may live here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Webhook:
    """Answers every request with `status`, once `may_answer`, and a POST in which `refused` stands with 400; `messages` are the bodies of POSTs, `paths` where to, `calls`
    the paths of GETs."""

    def __init__(self) -> None:
        self.status = 200
        self.refused: str | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.messages: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.calls: list[str] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook.paths.append(self.path)
                webhook.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                refuses = webhook.refused and webhook.refused in str(webhook.messages[-1])
                self.answer(400 if refuses else webhook.status)

            def do_GET(self) -> None:
                webhook.calls.append(self.path)
                self.answer(webhook.status)

            def answer(self, status: int) -> None:
                webhook.may_answer.wait()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.heartbeat_url = f"http://127.0.0.1:{self._server.server_port}/beat?secret=hidden-in-the-url"
        self.url = f"json://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody is there any more."""
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
