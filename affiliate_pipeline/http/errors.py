"""Errors of requests to an exchange.

Their texts contain no secret, signature, URL query or full email. They are raised `from None`, so that no
library error, which may quote a URL, is shown with them.
"""

from collections.abc import Iterable, Sequence
from typing import Self

from affiliate_pipeline.domain.problem import AffiliateError


class ExchangeError(AffiliateError):
    """A failed or missing response; `received` has the rows or the body that the error is about."""

    received: Sequence[bytes] = ()

    def about(self, received: Iterable[bytes]) -> Self:
        """Set `received`, which is stored if the error fails a day; return the error itself."""
        self.received = list(received)
        return self


class Transient(ExchangeError):
    """A retry may succeed; after the last attempt, the requested days fail."""

    # The pause that the exchange requests, if known.
    retry_after_s: float | None = None


class NoResponse(Transient):
    """No complete response: refused, timed out, reset, truncated, or a proxy's own response."""


class ConnectionFailed(NoResponse):
    """No connection was made: the exchange received nothing."""


class RateLimited(Transient):
    """Too many requests."""


class TimestampRejected(Transient):
    """The exchange rejected the request's timestamp.

    `server_ms` is the exchange's time, if it was sent; `offset_when_signed_ms` is the clock correction that the request
    was signed with.
    """

    server_ms: int | None = None
    offset_when_signed_ms = 0


class OutcomeUnknown(ExchangeError):
    """A POST may have taken effect: only the exchange's own state shows it."""


class Refused(ExchangeError):
    """A retry cannot succeed: the requested days fail."""


class UrlExpired(Refused):
    """The URL has expired; a fresh one may work."""


class Fatal(ExchangeError):
    """No further request for this range of days can succeed.

    `code` is the exchange's own; `causes` are those that its message names (keys of `failures.CAUSES`).
    """

    code: int | None = None
    causes: frozenset[str] = frozenset()


class AccessRefused(Fatal):
    """Key, secret, IP address or permission is not accepted."""


class Banned(Fatal):
    """The exchange requests a longer pause than a run can wait."""


class Unreachable(Fatal):
    """No response to any request for `retry.SILENCE_LIMIT_S`."""


class UnusableNetwork(Fatal):
    """A proxy, certificate or base URL setting prevents requests."""
