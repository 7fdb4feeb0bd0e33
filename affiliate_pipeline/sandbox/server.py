"""The sandbox's HTTP server and request log, the same for all exchanges."""

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer, TCPServer
from typing import Self

from affiliate_pipeline.sandbox.binance.exchange import Binance
from affiliate_pipeline.sandbox.binance.weight import WeightLimit
from affiliate_pipeline.sandbox.exchange import NOT_FOUND, Call, Exchange, Response, alias_of
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.lbank.exchange import LBank

HOST = "127.0.0.1"
# The addresses that mean every address of this machine, with the one that a client on this machine uses.
WILDCARDS = {"0.0.0.0": HOST, "::": "::1", "": HOST}  # noqa: S104
POLL_INTERVAL_S = 0.02
ABORT_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Request:
    """One request as logged; `status` is None until there is a response, and after a reset.

    `code` is the exchange's own error code, `fault` the injected fault. `account` is the alias of the account whose key
    was sent or whose file was requested; the default account's is empty.
    """

    received_ms: int
    method: str
    path: str
    params: dict[str, str]
    status: int | None = None
    code: int | None = None
    fault: str | None = None
    account: str = ""


class Account:
    """An account at every exchange, with its own keys, data and faults. The default account's alias is empty.

    Attributes:
        binance: The partner and its client at Binance: their keys and records.
        lbank: The affiliate at LBank: its key, its openId and its records.
        faults: The faults that this account's responses have.
    """

    def __init__(
        self,
        alias: str,
        *,
        now: Callable[[], int],
        weight: WeightLimit,
        rows_per_day: int,
        users: int,
        rate_scale: float,
    ) -> None:
        self.alias = alias
        self.faults = Faults()
        self.binance = Binance(alias, now=now, faults=self.faults, weight=weight, rows_per_day=rows_per_day)
        self.lbank = LBank(alias, now=now, faults=self.faults, users=users, rate_scale=rate_scale)
        self.exchanges: tuple[Exchange, ...] = (self.binance, self.lbank)


class Sandbox:
    """The exchanges, by default on loopback, served by threads of this process; a context manager.

    Args:
        accounts: The aliases of further accounts.
        host: The address that it listens on; `0.0.0.0` or `::` for all of this machine.
        port: 0 selects a free one.
        now: Returns the exchanges' time, in ms since 1970.
        rows_per_day: The approximate number of Binance rebates.
        users: The number of users under LBank's affiliate.
        rate_scale: The factor by which all rate limit windows are shorter than the real ones. Give clients the same.

    Attributes:
        accounts: All accounts by alias; the default account's is empty.
        binance: The default account at Binance: its keys and records.
        lbank: The default account at LBank: its key, its openId and its records.
        faults: The faults that the default account's responses have.
        requests: The log of requests, in the order of arrival.
    """

    def __init__(
        self,
        *,
        accounts: Iterable[str] = (),
        host: str = HOST,
        port: int = 0,
        now: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        rows_per_day: int = 3000,
        users: int = 60,
        rate_scale: float = 1.0,
    ) -> None:
        self.host = host
        self.port = port
        self.now = now
        self.requests: list[Request] = []
        self._server: _Server | None = None

        create = partial(
            Account,
            now=now,
            weight=WeightLimit(now=now, rate_scale=rate_scale),
            rows_per_day=rows_per_day,
            users=users,
            rate_scale=rate_scale,
        )
        self.accounts = {alias: create(alias) for alias in ("", *map(alias_of, accounts))}
        default = self.accounts[""]
        self.binance = default.binance
        self.lbank = default.lbank
        self.faults = default.faults

    @property
    def url(self) -> str:
        """The base URL, known once started; it stays the same after a restart.

        If the sandbox listens on all addresses, clients on other hosts need another address of this machine.
        """
        address = WILDCARDS.get(self.host, self.host)
        if ":" in address:  # IPv6
            return f"http://[{address}]:{self.port}"
        return f"http://{address}:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a client with all accounts of these exchanges."""
        variables: dict[str, str] = {}
        for account in self.accounts.values():
            for exchange in account.exchanges:
                variables |= exchange.variables(self.url)
        return variables

    @property
    def secrets(self) -> set[str]:
        """All API keys, and the secrets or public keys that belong to them, as accepted now."""
        secrets: set[str] = set()
        for account in self.accounts.values():
            for secret_by_key in (account.binance.keys, account.lbank.keys):
                secrets.update(secret_by_key.keys(), secret_by_key.values())
        return secrets

    def start(self) -> Self:
        """Start serving; raises OSError if the port is in use."""
        self._server = _Server((self.host, self.port), self._respond)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_INTERVAL_S,), name="sandbox", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Refuse new connections and close the open ones, even during a request."""
        if self._server is not None:
            self._server.stop()
            self._thread.join()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _respond(self, call: Call) -> Response:
        request = Request(self.now(), call.method, call.path, call.params)
        self.requests.append(request)

        account_and_exchange = self._find(call)
        if account_and_exchange is None:
            response = NOT_FOUND
        else:
            account, exchange = account_and_exchange
            request.account = account.alias
            response = account.faults.inject(exchange.respond(call), call, exchange)

        # Completed before the response is sent, so that a client that has received it finds all of this in the log.
        request.status = None if response.fault == "reset" else response.status
        request.code = response.code
        request.fault = response.fault
        return response

    def _find(self, call: Call) -> tuple[Account, Exchange] | None:
        """The account and exchange that respond, for an unknown key the default account's; None for an unknown path."""
        candidates = [
            (account, exchange)
            for account in self.accounts.values()
            for exchange in account.exchanges
            if call.path.startswith(exchange.prefixes)
        ]
        for account, exchange in candidates:
            if exchange.serves(call):
                return account, exchange
        return candidates[0] if candidates else None


# What socketserver calls a request; for a UDP server, it is a pair.
_Connection = socket.socket | tuple[bytes, socket.socket]


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    allow_reuse_port = False  # two sandboxes on one port would share its connections

    def __init__(self, address: tuple[str, int], respond: Callable[[Call], Response]) -> None:
        self._open: set[socket.socket] = set()
        host, _ = address
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(address, partial(_Handler, respond))

    def server_bind(self) -> None:
        # Not HTTPServer's own, which looks the host up in the DNS.
        TCPServer.server_bind(self)
        self.server_name, self.server_port, *_ = self.socket.getsockname()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def close_request(self, request: _Connection) -> None:
        self._open.discard(request)
        super().close_request(request)

    def handle_error(self, request: _Connection, client_address: object) -> None:
        """Ignore clients that disconnected; print any other error, which is a bug of the sandbox."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            # The client may have closed it already.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(
        self,
        respond: Callable[[Call], Response],
        request: socket.socket,
        client_address: tuple[str, int],
        server: BaseServer,
    ) -> None:
        self._respond = respond
        super().__init__(request, client_address, server)

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("latin-1")
        path, _, query = self.path.partition("?")
        response = self._respond(Call(self.command, path, query, body, self.headers))
        if response.delay_s:
            time.sleep(response.delay_s)
        if response.fault == "reset":
            self._reset()
        else:
            self._send(response)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names given by http.server

    def _send(self, response: Response) -> None:
        reason, *_ = self.responses.get(response.status, ("",))
        lines = [
            f"HTTP/1.1 {response.status} {reason}",
            f"Content-Type: {response.content_type}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
            f"Content-Length: {len(response.body)}",
        ]
        head = "\r\n".join(lines) + "\r\n\r\n"
        body = response.body
        if response.fault == "truncated":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(head.encode("latin-1") + body)

    def _reset(self) -> None:
        # Close before the server's orderly shutdown, which would send a FIN first.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT_ON_CLOSE)
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: `Sandbox.requests` is the log."""
