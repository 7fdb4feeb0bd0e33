"""What a failed request means, the same for all exchanges: limits, locations, firewalls, maintenance, redirects, statuses.

The exchange's own message comes first; what is added to it never contradicts it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from affiliate_pipeline.http.client import Response
from affiliate_pipeline.http.error_body import ErrorBody, read_error
from affiliate_pipeline.http.errors import AccessRefused, ExchangeError, Fatal, RateLimited, Refused, Transient

_BANNED_UNTIL = re.compile(r"banned until (\d{13})\b")
_TOO_MANY = re.compile(r"too many requests|rate.?limited|banned until", re.IGNORECASE)
_LOCATION = re.compile(
    r"restricted (location|area|region|countr|jurisdiction)|(in|from) your (country|region|location)", re.IGNORECASE
)
_MAINTENANCE = re.compile(
    r"maintenance|maintain(ing|ed)|service (is )?(temporarily |currently )?unavailable|temporarily unavailable|"
    r"(system|server|service) (is )?(too )?(busy|overloaded)|being upgraded|system upgrade|维护|系统繁忙|系统升级|服务不可用",
    re.IGNORECASE,
)
# How to recognize the cause that a message names.
_CAUSES = {
    "signature": re.compile(r"sign|签名", re.IGNORECASE),
    "clock": re.compile(r"time.?stamp|\btime\b|clock|recv.?window|时间", re.IGNORECASE),
    "address": re.compile(r"\bip\b|white.?list|白名单", re.IGNORECASE),
    "key": re.compile(r"\bkeys?\b|api.?key|access.?key|密钥", re.IGNORECASE),
    "permission": re.compile(r"permission|authori[sz]|privilege|权限", re.IGNORECASE),
    "user": re.compile(r"open.?id|\buser|用户", re.IGNORECASE),
}
_STATUSES = dict.fromkeys((406, 411, 413, 414, 415), "something on the way changes or limits requests") | {
    401: "the API key is not accepted, or a proxy on the way requires credentials",
    403: "a firewall, or a permission that is missing",
    404: "the base URL is wrong, or the account does not have this endpoint",
    405: "the base URL is wrong, or something on the way changes requests",
    407: "a proxy on the way requires credentials",
    422: "the exchange does not accept the parameters",
    451: "the exchange does not serve this location",
}
_FIREWALL = "This usually comes from a firewall or a maintenance, not from the API"


@dataclass(frozen=True)
class Meaning:
    """What a code of the exchange's own means: an error, and `advice` to add to the message unless that names a cause
    which is not one of `causes` (names of `_CAUSES`; none: any)."""

    error: type[ExchangeError]
    advice: str = ""
    causes: frozenset[str] = frozenset()


def describe(exchange: str, response: Response, error: ErrorBody, code_name: str = "code") -> str:
    """The status, the code and the message as one sentence without its full stop."""
    status = response.status_code
    text = f"{exchange} answered HTTP {status}" + (f" ({HTTPStatus(status).phrase})" if status in _STATUSES else "")
    if target := redirect_target(status, response.headers):
        text += f", a redirect to {target}"
    if error.code is not None:
        text += f", {code_name} {error.code}"
    if error.is_page:
        text += " with a web page (HTML)"
    message = error.message.rstrip(".")
    if message or error.code is not None:
        return f"{text}: {message or 'no message'}"
    return text if error.is_page or target else f"{text}, without an explanation"


@dataclass(frozen=True)
class Variables:
    """The variables of an account, for advice."""

    key: str
    secret: str
    base_url: str


def failure(
    text: str, response: Response, error: ErrorBody, meaning: Meaning | None, variables: Variables
) -> ExchangeError:
    """What to raise for a failed response.

    Args:
        text: what `describe` returned.
        meaning: what the exchange's own code means; None if it is unknown, or there is none.
    """
    return (
        _whatever_the_code(text, response, error, meaning, variables)
        or (meaning and _by_code(text, error, meaning, variables))
        or _by_status(text, response, error, variables)
    )


def _whatever_the_code(
    text: str, response: Response, error: ErrorBody, meaning: Meaning | None, variables: Variables
) -> ExchangeError | None:
    status = max(response.status_code, error.http_status or 0)
    target = redirect_target(response.status_code, response.headers)
    if status == 451 or _LOCATION.search(error.message):
        return Fatal(
            f"{text}. The exchange does not serve the place of this machine's IP address, or of its proxy's; "
            "another key does not help"
        )
    is_limit = meaning is not None and meaning.error is RateLimited
    if is_limit or status in (418, 429) or _TOO_MANY.search(error.message):
        return RateLimited(text, _pause_s(response, error))
    if status >= 500:
        return Transient(text, response.retry_after_s)
    if _MAINTENANCE.search(f"{error.message} {target}"):
        return Transient(f"{text}. {_FIREWALL}", response.retry_after_s)
    if target:
        return Refused(
            f"{text}. Requests are not sent there: check {variables.base_url}, and whether a proxy or a login page is on "
            "the way"
        )
    return None


def _by_code(text: str, error: ErrorBody, meaning: Meaning, variables: Variables) -> ExchangeError:
    named = {name for name, pattern in _CAUSES.items() if pattern.search(error.message)}
    if meaning.advice and not (named and meaning.causes and not named & meaning.causes):
        text = f"{text}. {meaning.advice.format(key=variables.key, secret=variables.secret)}"
    return AccessRefused(text, error.code) if meaning.error is AccessRefused else meaning.error(text)


def _by_status(text: str, response: Response, error: ErrorBody, variables: Variables) -> ExchangeError:
    status = max(response.status_code, error.http_status or 0)
    usual = f". Usually {_STATUSES[status]}" if status in _STATUSES else ""
    if status in (401, 407):
        return AccessRefused(f"{text}{usual}: check {variables.key} and the proxy")
    if error.is_page or (error.code in (None, status) and status == 403):
        return Transient(f"{text}. {_FIREWALL}", response.retry_after_s)
    # A 201…299 whose body reports no failure: a firewall's challenge, or the request took effect without a response.
    if status in (408, 425) or 200 < status < 300:
        return Transient(text, response.retry_after_s)
    if status == 403:
        return AccessRefused(
            f"{text}. Check {variables.key}, its permissions and its list of IP addresses at the exchange"
        )
    if error.code is None or error.http_status:
        return Refused(f"{text}{usual}" + (f": check {variables.base_url}" if status in (404, 405) else ""))
    return Refused(text)


def is_failure(error: ErrorBody) -> bool:
    """Whether a body says, whatever its HTTP status, that it is not the data requested."""
    patterns = (_LOCATION, _TOO_MANY, _MAINTENANCE)
    return (
        error.is_page
        or error.is_failure
        or (error.is_message and any(pattern.search(error.message) for pattern in patterns))
    )


def error_of(response: Response) -> ErrorBody:
    """What the response's body says."""
    body = response.content if response.received is None else response.received
    return read_error(body, response.headers.get("Content-Type", ""))


def redirect_target(status: int, headers: Mapping[str, str]) -> str:
    """Host and path that a response redirects to; empty if it does not."""
    location = headers.get("Location", "")
    if status not in (301, 302, 303, 307, 308) or not location:
        return ""
    try:
        parts = urlsplit(location)
        return f"{parts.hostname or 'the same host, '}{parts.path}"[:100]
    except ValueError:
        return "an invalid URL"


def _pause_s(response: Response, error: ErrorBody) -> float | None:
    """The longest pause that the header or the message requests; None if neither does."""
    pauses = [] if response.retry_after_s is None else [response.retry_after_s]
    if banned := _BANNED_UNTIL.search(error.message):
        pauses.append(max(0.0, int(banned[1]) / 1000 - response.sent_s))
    return max(pauses, default=None)
