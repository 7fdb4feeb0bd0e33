"""The command `who`: what has landed about one user."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Annotated

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import CommandError, app, console
from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.commission.customers import PERIODS_DAYS, Earned
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.commission.users import Source, User, find, sources
from affiliate_pipeline.domain.days import DAY, format_days
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.wording import count_of, up_command
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.registry import EXCHANGES, configured_catalog
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.store import Store

# The fact that states whether a user is under us.
OURS = "under us"


@app.command()
def who(
    user: Annotated[
        str, typer.Argument(metavar="ID|EMAIL", help="A customerId, an openId, or an email, masked or not.")
    ],
) -> None:
    """Print whether a user is ours, since when, its level, its volume and its earnings, from what has landed. Requests nothing.

    The exit code is 1 if no row names the user.
    """
    user = user.strip()
    if not user:
        raise CommandError("no user was given", "Give an id or an email")
    environment = start_database(application())
    now = datetime.now(UTC)
    today_by_exchange = {exchange.name: now.astimezone(exchange.zone).date() for exchange in EXCHANGES}
    with Store(environment.database_url()) as store:
        catalog = configured_catalog(environment.variables, ledger.assets(store.connection))
        landed_sources = sources(store, catalog.endpoints, today_by_exchange)
        if not landed_sources:
            raise CommandError("nothing about users has landed yet", f"Land some days first: `{up_command()}`")

        commission = Commission(store, catalog.earning, has_prices=environment.has_prices)
        first = min(source.first for source in landed_sources)
        last = max(today_by_exchange.values()) - DAY
        stale = commission.stale(first, last)
        matches = find(store, catalog, user, today_by_exchange)

    for line in [*_verdict(user, matches), *_described(user, matches), "", *_coverage(landed_sources, stale)]:
        console.print(escape(line))
    raise typer.Exit(0 if matches else 1)


def _verdict(text: str, matches: Sequence[User]) -> Iterator[str]:
    shown = _redacted(text)
    if not matches:
        yield f"{shown} is not known: no row that has landed names this user."
    elif not any(_is_certain(text, user) for user in matches):
        customers = count_of(len(matches), "customer has", "customers have")
        yield (
            f"{shown} may be ours: {customers} an email that fits. The exchange masks emails, so it may be another "
            "user's."
        )
    elif all(_has_left(user) for user in matches):
        yield f"{shown} is no longer under us."
    else:
        yield f"{shown} is ours."


def _is_certain(text: str, user: User) -> bool:
    """Whether the text is an id or the whole email of the user, rather than an email that fits but is partly masked."""
    if "@" in text and "*" in text:
        return False
    names = [user.name, *user.other_names]
    return text.casefold() in [name.casefold() for name in names]


def _has_left(user: User) -> bool:
    """Whether a fact states that the user is no longer under us; without this fact, the user is ours."""
    if OURS not in user.facts:
        return False
    is_ours, _as_of = user.facts[OURS]
    return is_ours is False


def _described(text: str, matches: Sequence[User]) -> Iterator[str]:
    for user in matches:
        yield ""
        yield _heading(text, user)
        for label, (value, _) in user.facts.items():
            yield _line(label, _fact(value))
        if user.volumes:
            yield _line("volume", _periods(user.volumes))
        for earned in user.earned:
            yield _line("earning", f"since {earned.first}, last on {earned.last}")
            yield from _earnings(earned)


def _heading(text: str, user: User) -> str:
    account = f"{user.exchange}/{user.account}" if user.account else user.exchange
    heading = f"{account}, {user.column} {_redacted(user.name)}"
    if user.other_names:
        others = ", ".join(_redacted(name) for name in sorted(user.other_names))
        heading += f" ({others})"
    if not _is_certain(text, user):
        heading += ", perhaps another user"
    return heading


def _earnings(earned: Earned) -> Iterator[str]:
    periods = [*(f"{days} days" for days in PERIODS_DAYS), "all days"]
    for period, total in zip(periods, earned.totals, strict=True):
        text = f"{total.usdt} USDT, {count_of(total.records, 'record')}"
        if total.lacking:
            text += f", of which {total.lacking} have no value in USDT"
        yield _line(f"  {period}", text)


def _coverage(landed_sources: Iterable[Source], stale: Collection[date]) -> Iterator[str]:
    yield "This rests on the days that have landed:"
    for source in landed_sources:
        missing = f", missing {format_days(source.missing)}" if source.missing else ""
        yield f"  {source.asset}: {source.first} to {source.last}{missing}"
    if stale:
        yield f"  {format_days(stale)}: some landed rows or prices have not been added up yet, so they are missing from the earnings"


def _line(label: str, text: str) -> str:
    return f"  {label:18}{text}"


def _periods(texts: Sequence[str]) -> str:
    return ", ".join(f"{text} in {days} days" for days, text in zip(PERIODS_DAYS, texts, strict=True))


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d}"
    return _redacted(f"{value}")


def _redacted(text: str) -> str:
    """The text, redacted if it is an email that the exchange has not masked."""
    local, at, _ = text.partition("@")
    is_unmasked_email = at and "*" not in local
    return redact(text) if is_unmasked_email else text
