"""A server that records requests, and a check that errors quote no secret. Contains no tests."""

import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(frozen=True)
class Received:
    """A request as the server received it; `query` is still percent-encoded."""

    method: str
    query: str
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Recorder:
    """The base URL of a loopback server that responds to every request with 200, and all requests it has received."""

    base_url: str
    received: list[Received] = field(default_factory=list)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            recorder.received.append(Received(self.command, self.path.partition("?")[2], self.headers, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - a name given by http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        recorder = Recorder(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield recorder
        server.shutdown()
        thread.join()


def quotes(error: BaseException, secret: str) -> bool:
    """Whether the error, as a log prints it, contains any five consecutive characters of the secret."""
    body = "".join(line for line in secret.splitlines() if "-----" not in line)
    printed = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)
    return any(body[start : start + 5] in printed for start in range(len(body) - 4))
