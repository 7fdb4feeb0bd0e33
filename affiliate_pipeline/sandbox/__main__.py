"""The sandbox in the foreground: `python -m affiliate_pipeline.sandbox`."""

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from datetime import date

from affiliate_pipeline.sandbox.exchange import alias_of
from affiliate_pipeline.sandbox.faults import KINDS
from affiliate_pipeline.sandbox.server import Sandbox

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the variables of its accounts and serve until a signal arrives; returns 0 then, and 1 if the port is in use."""
    options = _parser().parse_args(argv)
    sandbox = Sandbox(
        accounts=options.account,
        port=options.port,
        rows_per_day=options.rows_per_day,
        users=options.users,
        rate_scale=options.rate_scale,
    )
    rate: float = options.error_rate / len(KINDS)
    for account in sandbox.accounts.values():
        for day, status in options.fail_day:
            account.faults.fail_day(day, status=status)
        account.faults.mix(**dict.fromkeys(KINDS, rate))
    # Block the signals before the threads start and inherit the mask, so that only sigwait receives them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with sandbox:
            print(f"The sandbox listens on {sandbox.url}")
            print("\n".join(f"{name}={value}" for name, value in sandbox.variables.items()), flush=True)
            signal.sigwait(STOP_SIGNALS)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(f"Port {options.port} is in use: choose another one with --port.", file=sys.stderr)
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="affiliate-pipeline sandbox", description="Exchanges on loopback, with generated data."
    )
    parser.add_argument(
        "--account",
        type=alias_of,
        action="append",
        default=[],
        metavar="ALIAS",
        help="a further account at every exchange, with its own keys and data; may be repeated",
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, selects a free one")
    parser.add_argument("--rows-per-day", type=int, default=3000, help="about how many rebates Binance has per day")
    parser.add_argument("--users", type=int, default=60, help="users under LBank's affiliate")
    parser.add_argument("--rate-scale", type=_scale, default=1.0, help="factor for the real rate limits")
    parser.add_argument("--fail-day", type=_failing_day, action="append", default=[], metavar="YYYY-MM-DD[=STATUS]")
    parser.add_argument("--error-rate", type=_rate, default=0.0, help="share of faulty responses, 0 to 1")
    return parser


def _failing_day(text: str) -> tuple[date, int]:
    day, _, status = text.partition("=")
    return date.fromisoformat(day), int(status or 500)


def _rate(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError(text)
    return float(text)


def _scale(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


if __name__ == "__main__":
    raise SystemExit(main())
