"""What a failed request means, the same for all exchanges: limits, locations, firewalls, maintenance, redirects, statuses.

The exchange's own message comes first; what is added to it never contradicts it.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from affiliate_pipeline.http.client import Reply
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
_STATUSES = {
    401: "the API key is not accepted, or a proxy on the way requires credentials",
    403: "a firewall, or a permission that is missing",
    404: "the base URL is wrong, or the account does not have this endpoint",
    405: "the base URL is wrong, or something on the way changes requests",
    406: "something on the way changes requests or responses",
    407: "a proxy on the way requires credentials",
    411: "something on the way changes requests",
    413: "something on the way changes or limits requests",
    414: "something on the way changes or limits requests",
    415: "something on the way changes requests",
    422: "the exchange does not accept the parameters",
    451: "the exchange does not serve this location",
}
_FIREWALL = "This usually comes from a firewall or a maintenance, not from the API"


def describe(exchange: str, reply: Reply, error: ErrorBody, code_name: str = "code") -> str:
    """The status, the code and the message as one sentence without its full stop."""
    status = reply.status_code
    text = f"{exchange} answered HTTP {status}" + (f" ({HTTPStatus(status).phrase})" if status in _STATUSES else "")
    if target := redirect_target(reply.status_code, reply.headers):
        text += f", a redirect to {target}"
    if error.code is not None:
        text += f", {code_name} {error.code}"
    if error.is_page:
        text += " with a web page (HTML)"
    message = error.message.rstrip(".")
    if message or error.code is not None:
        return f"{text}: {message or 'no message'}"
    return text if error.is_page or target else f"{text}, without an explanation"


def failure(
    text: str, reply: Reply, error: ErrorBody, by_code: ExchangeError | None, key_name: str, base_url_name: str
) -> ExchangeError:
    """What to raise for a response that failed; `by_code` is what the exchange's own code means, if it means anything."""
    status = max(reply.status_code, error.http_status or 0)
    meaning = f". Usually {_STATUSES[status]}" if status in _STATUSES and by_code is None else ""
    target = redirect_target(reply.status_code, reply.headers)
    if status == 451 or _LOCATION.search(error.message):
        return Fatal(
            f"{text}. The exchange does not serve the place of this machine's IP address, or of its proxy's; "
            "another key does not help"
        )
    if status in (418, 429) or isinstance(by_code, RateLimited) or _TOO_MANY.search(error.message):
        return RateLimited(text, _pause_s(reply, error))
    if status >= 500:
        return Transient(text, reply.retry_after_s)
    if _MAINTENANCE.search(f"{error.message} {target}"):
        return Transient(f"{text}. {_FIREWALL}", reply.retry_after_s)
    if target:
        return Refused(
            f"{text}. Requests are not sent there: check {base_url_name}, and whether a proxy or a login page is on the way"
        )
    if by_code:
        return by_code
    if status in (401, 407):
        return AccessRefused(f"{text}{meaning}: check {key_name} and the proxy")
    if error.is_page or (error.code in (None, status) and status == 403):
        return Transient(f"{text}. {_FIREWALL}", reply.retry_after_s)
    # A 201…299 whose body reports no failure: a firewall's challenge, or the request took effect without a response.
    if status in (408, 425) or 200 < status < 300:
        return Transient(text, reply.retry_after_s)
    if status == 403:
        return AccessRefused(f"{text}. Check {key_name}, its permissions and its list of IP addresses at the exchange")
    if error.code is None or error.http_status:
        return Refused(f"{text}{meaning}" + (f": check {base_url_name}" if status in (404, 405) else ""))
    return Refused(text)


def is_failure(error: ErrorBody) -> bool:
    """Whether a body says, whatever its HTTP status, that it is not the data requested."""
    patterns = (_LOCATION, _TOO_MANY, _MAINTENANCE)
    return (
        error.is_page
        or error.is_failure
        or (error.is_message and any(pattern.search(error.message) for pattern in patterns))
    )


def error_of(reply: Reply) -> ErrorBody:
    """What the response's body says."""
    body = reply.content if reply.received is None else reply.received
    return read_error(body, reply.headers.get("Content-Type", ""))


def agreeing(text: str, error: ErrorBody, addition: str, *causes: str) -> str:
    """The text and what its code usually means, unless its message names another cause than these."""
    named = {name for name, pattern in _CAUSES.items() if pattern.search(error.message)}
    return text if named and not named & {*causes} else f"{text}. {addition}"


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


def _pause_s(reply: Reply, error: ErrorBody) -> float | None:
    """The longest pause that the header or the message requests; None if neither does."""
    pauses = [] if reply.retry_after_s is None else [reply.retry_after_s]
    if banned := _BANNED_UNTIL.search(error.message):
        pauses.append(max(0.0, int(banned[1]) / 1000 - reply.sent_s))
    return max(pauses, default=None)
