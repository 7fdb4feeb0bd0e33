"""A proxy on loopback that forwards plain HTTP to a server, or sends its own response to each request. Contains no tests."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

import httpx


class Proxy:
    """Serves `port` inside a `with` statement; `received` are the method, URL and headers of each request.

    `status`: the status of every response; without it, requests are forwarded to `target`.
    """

    def __init__(self, target: str = "", status: int | None = None, content_type: str = "text/html"):
        self.received: list[tuple[str, str, dict[str, str]]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.received.append((self.command, self.path, dict(self.headers)))
                if status is None:
                    url = urlsplit(self.path)
                    headers = {name: value for name, value in self.headers.items() if name.startswith("X-MBX")}
                    with httpx.Client(trust_env=False) as client:
                        response = client.get(f"{target}{url.path}?{url.query}", headers=headers)
                    self._send(response.status_code, response.content, response.headers["Content-Type"])
                else:
                    self._send(status, b"<html>the proxy's page</html>", content_type)

            do_CONNECT = do_POST = do_GET

            def _send(self, code: int, body: bytes, kind: str) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
