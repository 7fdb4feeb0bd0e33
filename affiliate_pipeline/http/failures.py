"""What a failed request means, the same for all exchanges.

The exchange's own message comes first; what is added to it never contradicts it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from affiliate_pipeline.http.client import Response
from affiliate_pipeline.http.error_body import MAINTENANCE, TOO_MANY, UNSERVED_LOCATION, ErrorBody, read_error
from affiliate_pipeline.http.errors import AccessRefused, ExchangeError, Fatal, RateLimited, Refused, Transient

# Patterns are compiled when a request fails, not at start-up.
_BANNED_UNTIL = r"banned until (\d{13})\b"
# Patterns of the causes that a message may name.
CAUSES = {
    "signature": r"(?i)sign|签名",
    "clock": r"(?i)time.?stamp|\btime\b|clock|recv.?window|时间",
    "address": r"(?i)\bip\b|white.?list|白名单",
    "key": r"(?i)\bkeys?\b|api.?key|access.?key|密钥",
    "permission": r"(?i)permission|authori[sz]|privilege|权限",
    "user": r"(?i)open.?id|\buser|用户",
}
_STATUSES = dict.fromkeys((406, 411, 413, 414, 415), "a proxy or firewall changes or limits requests") | {
    401: "the API key is not accepted, or a proxy requires credentials",
    403: "a firewall, or a permission that is missing",
    404: "the base URL is wrong, or the account does not have this endpoint",
    405: "the base URL is wrong, or a proxy or firewall changes requests",
    407: "a proxy requires credentials",
    422: "the exchange does not accept the parameters",
    451: "the exchange does not serve this location",
}
_FIREWALL = "This usually comes from a firewall or maintenance, not from the API"


@dataclass(frozen=True)
class Meaning:
    """What an exchange's own error code means.

    `advice` is added to the message if the message names one of `causes` (keys of `CAUSES`) or no cause at all. Without
    `causes`, it is always added.
    """

    error: type[ExchangeError]
    advice: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interpreter:
    """Maps failed responses of an account to errors, whose advice names its variables."""

    exchange: str
    codes: Mapping[int, Meaning]
    key_name: str
    secret_name: str
    base_url_name: str
    code_name: str = "code"
    # Further variables that the advice of `codes` names, by placeholder.
    more_names: Mapping[str, str] = field(default_factory=dict[str, str])

    def failure(
        self, response: Response, error: ErrorBody, meaning: Meaning | None = None, note: str = ""
    ) -> ExchangeError:
        """The error to raise; `meaning` replaces that of the code, `note` is added to the text."""
        if meaning is None and error.code is not None:
            meaning = self.codes.get(error.code)
        text = describe(self.exchange, response, error, self.code_name) + note
        status = max(response.status_code, error.http_status or 0)

        failure = self._with_precedence(text, status, response, error, meaning)
        if failure is None and meaning is not None:
            failure = self._by_code(text, error, meaning)
        if failure is None:
            failure = self._by_status(text, status, error)

        if isinstance(failure, Transient):
            failure.retry_after_s = _pause_s(response, error)
        if isinstance(failure, Fatal):
            failure.code = error.code
            failure.causes = _causes_in(error.message)
        return failure

    def _with_precedence(
        self, text: str, status: int, response: Response, error: ErrorBody, meaning: Meaning | None
    ) -> ExchangeError | None:
        """The error for an unserved location, a rate limit, an outage or a redirect; otherwise None.

        These take precedence over the code's meaning.
        """
        if status == 451 or re.search(UNSERVED_LOCATION, error.message):
            return Fatal(
                f"{text}. The exchange does not serve the location of this machine's IP address, or of its proxy's. Another "
                "API key will not help"
            )

        is_rate_limited = meaning is not None and meaning.error is RateLimited
        if is_rate_limited or status in (418, 429) or re.search(TOO_MANY, error.message):
            return RateLimited(text)
        if status >= 500:
            return Transient(text)

        target = redirect_target(response.status_code, response.headers)
        if re.search(MAINTENANCE, f"{error.message} {target}"):
            return Transient(f"{text}. {_FIREWALL}")
        if target:
            return Refused(
                f"{text}. Redirects are not followed",
                f"Check {self.base_url_name}, and whether a proxy or a login page intercepts requests",
            )
        return None

    def _by_code(self, text: str, error: ErrorBody, meaning: Meaning) -> ExchangeError:
        """The error of the code's meaning, with its advice unless the message names only other causes."""
        named_causes = _causes_in(error.message)
        advice_applies = not meaning.causes or not named_causes or not named_causes.isdisjoint(meaning.causes)
        if meaning.advice and advice_applies:
            advice = meaning.advice.format(key=self.key_name, secret=self.secret_name, **self.more_names)
            text = f"{text}. {advice}"
        return meaning.error(text)

    def _by_status(self, text: str, status: int, error: ErrorBody) -> ExchangeError:
        usual_cause = f". Usually {_STATUSES[status]}" if status in _STATUSES else ""
        if status in (401, 407):
            return AccessRefused(f"{text}{usual_cause}", f"Check {self.key_name} and the proxy")
        has_code_other_than_status = error.code is not None and error.code != status
        if error.is_markup or (status == 403 and not has_code_other_than_status):
            return Transient(f"{text}. {_FIREWALL}")
        # 201 to 299: a firewall's challenge, or the request took effect without a usable response.
        if status in (408, 425) or 200 < status < 300:
            return Transient(text)
        if status == 403:
            return AccessRefused(
                text, f"Check {self.key_name}, its permissions and its list of IP addresses at the exchange"
            )
        # The usual cause of a status does not apply if the exchange sent a code of its own.
        if error.code is not None and not error.http_status:
            return Refused(text)
        action = f"Check {self.base_url_name}" if status in (404, 405) else ""
        return Refused(f"{text}{usual_cause}", action)


def _causes_in(message: str) -> frozenset[str]:
    return frozenset(name for name, pattern in CAUSES.items() if re.search(pattern, message))


def describe(sender: str, response: Response, error: ErrorBody, code_name: str = "code") -> str:
    """The status, the code and the message as one sentence without its full stop."""
    status = response.status_code
    text = f"{sender} returned HTTP {status}"
    if status in _STATUSES:
        text += f" ({HTTPStatus(status).phrase})"
    if target := redirect_target(status, response.headers):
        text += f", a redirect to {target}"
    if error.code is not None:
        text += f", {code_name} {error.code}"
    if error.is_markup:
        text += " with a web page (HTML or XML)"

    if message := error.message.rstrip("."):
        return f"{text}: {message}"
    if error.code is not None:
        return f"{text}: no message"
    if error.is_markup or target:
        return text
    return f"{text}, without an explanation"


def error_of(response: Response) -> ErrorBody:
    """Code and message of the response's body."""
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
    pauses_s: list[float] = []
    retry_after_s = response.retry_after_s
    if retry_after_s is not None:
        pauses_s.append(retry_after_s)
    if banned_until := re.search(_BANNED_UNTIL, error.message):
        end_s = int(banned_until[1]) / 1000
        pauses_s.append(max(0.0, end_s - response.sent_s))
    return max(pauses_s, default=None)
