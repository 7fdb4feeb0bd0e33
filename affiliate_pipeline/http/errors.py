"""Errors of requests to an exchange.

Their texts contain no secret, signature, URL or full email. They are raised `from None`, so that no exception of a
library, which may quote a URL, is shown with them.
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
    """Another request may succeed; after the last attempt it fails the days requested."""

    # How long the exchange allows no request, if known.
    retry_after_s: float | None = None


class Unanswered(Transient):
    """No complete response of the exchange: refused connection, timeout, reset, truncated body, or a proxy's own response."""


class Unconnected(Unanswered):
    """No connection was made: the exchange received nothing."""


class RateLimited(Transient):
    """Too many requests."""


class ClockOff(Transient):
    """The exchange rejected our timestamp.

    `server_ms` is its clock, if given, and `signed_offset_ms` the correction of our clock that the request was signed
    with.
    """

    server_ms: int | None = None
    signed_offset_ms = 0


class OutcomeUnknown(ExchangeError):
    """A POST may have taken effect: only the exchange's own state shows it."""


class Refused(ExchangeError):
    """Another request cannot succeed: fails the days requested."""


class UrlExpired(Refused):
    """The URL has expired; a fresh one may work."""


class Fatal(ExchangeError):
    """No further request of this range makes sense."""


class AccessRefused(Fatal):
    """Key, secret, IP address or permission is not accepted; `code` is the exchange's own."""

    code: int | None = None


class Banned(Fatal):
    """The exchange allows no request for longer than a run can wait."""


class Unreachable(Fatal):
    """No response to any request for `retry.SILENCE_LIMIT_S`."""


class UnusableNetwork(Fatal):
    """A proxy or certificate setting of this machine permits no request."""
