"""An SMTP server on loopback that records the mails it receives. Contains no tests."""

import email
import email.policy
import threading
from email.message import EmailMessage
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Self


class Smtp:
    """Accepts every mail; `mails` are those received."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        smtp = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                self.respond("220 loopback")
                while line := self.rfile.readline():
                    command = line.split()[0].upper() if line.split() else b""
                    if command == b"DATA":
                        self.respond("354 go on")
                        smtp.mails.append(self.read_mail())
                    self.respond("221 bye" if command == b"QUIT" else "250 fine")
                    if command == b"QUIT":
                        return

            def respond(self, line: str) -> None:
                self.wfile.write(f"{line}\r\n".encode())

            def read_mail(self) -> EmailMessage:
                lines = []
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(line.removeprefix(b"."))
                return email.message_from_bytes(b"".join(lines), policy=email.policy.default)

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.url = f"mailto://127.0.0.1:{self._server.server_address[1]}?mode=insecure&from=pipeline@example.com&to=ops@example.com"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def text_of(mail: EmailMessage) -> str:
    """The text that a mail program shows."""
    body = mail.get_body(("plain", "html"))
    assert body is not None
    return body.get_content()
