"""A webhook on loopback that records the requests it receives. Contains no tests."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Webhook:
    """Responds to each request with `status` once `may_respond` is set, and with 400 to a POST whose body contains `refused`.

    `messages` are the bodies of the POSTs, `paths` their paths; `calls` are the paths of the GETs.
    """

    def __init__(self) -> None:
        self.status = 200
        self.refused: str | None = None
        self.may_respond = threading.Event()
        self.may_respond.set()
        self.messages: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.calls: list[str] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook.paths.append(self.path)
                webhook.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                refuses = webhook.refused and webhook.refused in str(webhook.messages[-1])
                self.respond(400 if refuses else webhook.status)

            def do_GET(self) -> None:
                webhook.calls.append(self.path)
                self.respond(webhook.status)

            def respond(self, status: int) -> None:
                webhook.may_respond.wait()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
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
        """Close the port, so that connections are refused."""
        self.may_respond.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
