"""An HTTP server on loopback that sends whatever bytes a test gives it, including invalid HTTP. Contains no tests."""

import re
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs

# Bytes to send, or a function of the connection and the request's head.
Response = bytes | Callable[[socket.socket, str], None]


def http(status: int, body: bytes = b"[]", *headers: str, length: int | None = None) -> bytes:
    """A response; `length` replaces the true Content-Length."""
    lines = [f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def reset(connection: socket.socket, request: str) -> None:
    """Make closing the connection send a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class ScriptedServer:
    """Sends each of `responses` once, and then always `default`; closes the connection after each response.

    `requests` has the heads of the requests. With `tls`, the server speaks HTTPS.
    """

    default: Response = http(200, b"[1]")
    tls: ssl.SSLContext | None = None
    responses: deque[Response] = field(default_factory=deque)
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def queries(self) -> list[dict[str, str]]:
        """The parameters of each request."""
        texts = (request.split(" ")[1].partition("?")[2] for request in self.requests)
        return [{name: value for name, (value,) in parse_qs(text).items()} for text in texts]

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._respond, args=(connection,), daemon=True).start()

    def _respond(self, connection: socket.socket) -> None:
        # A client may close the connection early, or reject the certificate.
        with suppress(OSError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                received = b""
                while not _is_complete(received):
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    received += piece
                request = received[: received.index(b"\r\n\r\n") + 4].decode()
                self.requests.append(request)
                response = self.responses.popleft() if self.responses else self.default
                if isinstance(response, bytes):
                    connection.sendall(response)
                else:
                    response(connection, request)


def _is_complete(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head.lower())
    return bool(end) and len(body) == (int(length[1]) if length else 0)
