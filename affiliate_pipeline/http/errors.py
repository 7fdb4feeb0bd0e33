"""The errors of talking to an exchange. Their text is for a person: what happened, and what to do.

No secret, signature, URL or full email may stand in them (`redact.py`), and they are raised `from None`, so that no
library exception with a URL in it is shown behind them.

    ExchangeError
    ├── Transient                 asking again may help; after the last attempt it fails the days asked for
    │   ├── Unanswered            no complete answer: refused connection, timeout, reset, truncated body
    │   │   ├── Unconnected       no connection was made: the request did not leave this machine
    │   │   └── ProxyFailed       the same through a proxy, which is named; ProxyUnreachable if nothing left it
    │   ├── RateLimited           the exchange says how long to wait
    │   └── ClockOff              the exchange's clock and ours differ
    ├── OutcomeUnknown            a POST may have had its effect or not: only the exchange's own state tells
    ├── Refused                   asking again cannot help: fails the days asked for
    │   └── UrlExpired            a URL that was given out for a while is no longer good: ask for a fresh one
    └── Fatal                     ends the whole range at once
        ├── AccessRefused         key, secret, IP address or permission
        ├── Banned                the exchange wants a longer silence than a run can wait
        ├── UnusableNetwork       a proxy or certificate setting of this machine permits no request
        └── Unreachable           no answer to anything for a while
"""

from collections.abc import Iterable, Sequence
from typing import Self

from affiliate_pipeline.domain.problem import AffiliateError


class ExchangeError(AffiliateError):
    """A response of the exchange, or its absence; `received` are the rows, or the body, concerned."""

    received: Sequence[bytes] = ()

    def about(self, received: Iterable[bytes]) -> Self:
        """The error, with the rows or body concerned, which are stored if it fails a day."""
        self.received = list(received)
        return self


class Transient(ExchangeError):
    """Asking again may help; `retry_after_s` is how long the exchange allows no request, None if not given."""

    def __init__(self, text: str, retry_after_s: float | None = None):
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Unanswered(Transient):
    """No complete answer came."""


class Unconnected(Unanswered):
    """No connection was made, so that nothing was asked."""


class ProxyFailed(Unanswered):
    """No complete answer came through the proxy; the text names it and its variable."""


class ProxyUnreachable(ProxyFailed, Unconnected):
    """The proxy is away or does not reach the exchange, which was sent nothing."""


class RateLimited(Transient):
    """Too many requests."""


class ClockOff(Transient):
    """The exchange refused our timestamp; `server_ms` is its clock, if it said, and `signed_offset_ms` the correction of ours
    that the request was signed with."""

    def __init__(self, text: str, server_ms: int | None = None):
        super().__init__(text)
        self.server_ms = server_ms
        self.signed_offset_ms = 0


class OutcomeUnknown(ExchangeError):
    """A POST was sent and nobody said what became of it: look before it is sent again."""


class Refused(ExchangeError):
    """Asking again cannot help."""


class UrlExpired(Refused):
    """The URL is no longer good; a fresh one may be."""


class Fatal(ExchangeError):
    """No further request of this range makes sense."""


class AccessRefused(Fatal):
    """The exchange refused who we are or what we may do; `code` is its own for it."""

    def __init__(self, text: str, code: int | None = None):
        super().__init__(text)
        self.code = code


class Banned(Fatal):
    """The exchange wants silence for longer than a run can wait."""


class Unreachable(Fatal):
    """Nothing answered for `client.SILENCE_LIMIT_S`."""


class UnusableNetwork(Fatal):
    """This machine's network settings permit no request."""
