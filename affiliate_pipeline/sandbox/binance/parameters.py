"""Binance's error codes and messages."""

import json

from affiliate_pipeline.sandbox.exchange import Response
from affiliate_pipeline.sandbox.parameters import Parameters

MESSAGES = {
    -1000: "An unknown error occurred while processing the request.",
    -1001: "Internal error; unable to process your request. Please try again.",
    -1003: "Too much request weight used; please wait.",
    -1021: "Timestamp for this request is outside of the recvWindow.",
    -1022: "Signature for this request is not valid.",
    -1100: "Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
    -1101: "Too many parameters, or duplicate values for a parameter detected.",
    -1102: "Mandatory parameter '{name}' was not sent, was empty/null, or malformed.",
    -1105: "Parameter '{name}' was empty.",
    -1120: "Invalid interval.",
    -1121: "Invalid symbol.",
    -1127: "More than 7 days between startTime and endTime.",
    -1128: "Combination of optional parameters invalid.",
    -1130: "Data sent for parameter '{name}' is not valid.",
    -1131: "recvWindow must be less than 60000",
    -2015: "Invalid API-key, IP, or permissions for action.",
}
# The usual code for a status.
CODES = {418: -1003, 429: -1003, 500: -1001}


class BinanceParameters(Parameters):
    """Parameters with Binance's codes."""

    missing = empty = -1102
    malformed = -1100
    end_before_start = -1128
    max_digits = 20
    # The host that the request was sent to.
    host = ""


def refusal(status: int, code: int | None, name: str, headers: dict[str, str]) -> Response:
    """The response to a refused call; the code defaults to the usual one for the status."""
    code = CODES.get(status, -1000) if code is None else code
    message = MESSAGES.get(code, MESSAGES[-1000]).format(name=name)
    body = json.dumps({"code": code, "msg": message}, separators=(",", ":"))
    return Response(status, body.encode(), headers=headers, code=code)
