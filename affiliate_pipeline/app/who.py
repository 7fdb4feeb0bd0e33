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
        searched = sources(store, catalog.endpoints, today_by_exchange)
        if not searched:
            raise CommandError("nothing about users has landed yet", f"Land some days first: `{up_command()}`")
        commission = Commission(store, catalog.earning, has_prices=environment.has_prices)
        stale = commission.stale(min(each.first for each in searched), max(today_by_exchange.values()) - DAY)
        found = find(store, catalog, user, today_by_exchange)
    for line in [*_verdict(user, found), *_described(user, found), "", *_coverage(searched, stale)]:
        console.print(escape(line))
    raise typer.Exit(0 if found else 1)


def _verdict(text: str, found: Sequence[User]) -> Iterator[str]:
    shown = _redacted(text)
    if not found:
        yield f"{shown} is not known: no row that has landed names this user."
    elif not any(_is_certain(text, each) for each in found):
        matches = count_of(len(found), "customer has", "customers have")
        yield f"{shown} may be ours: {matches} an email that fits. The exchange masks emails, so it may be another user's."
    # A fact is a value and its time; a user without this fact is ours.
    elif all(each.facts.get(OURS, (True,))[0] is False for each in found):
        yield f"{shown} is no longer under us."
    else:
        yield f"{shown} is ours."


def _is_certain(text: str, user: User) -> bool:
    """Whether the text is an id or the whole email of the user, rather than an email that fits but is partly masked."""
    is_masked = "@" in text and "*" in text
    return not is_masked and text.casefold() in map(str.casefold, (user.name, *user.other_names))


def _described(text: str, found: Sequence[User]) -> Iterator[str]:
    for each in found:
        yield ""
        others = f" ({', '.join(map(_redacted, sorted(each.other_names)))})" if each.other_names else ""
        account = "/".join(filter(None, (each.exchange, each.account)))
        doubt = "" if _is_certain(text, each) else ", perhaps another user"
        yield f"{account}, {each.column} {_redacted(each.name)}{others}{doubt}"
        for label, (value, _) in each.facts.items():
            yield _line(label, _fact(value))
        if each.volumes:
            yield _line("volume", _periods(each.volumes))
        for earned in each.earned:
            yield _line("earning", f"since {earned.first}, last on {earned.last}")
            yield from _earnings(earned)


def _earnings(earned: Earned) -> Iterator[str]:
    for period, total in zip((*(f"{days} days" for days in PERIODS_DAYS), "all days"), earned.totals, strict=True):
        lacking = f", of which {total.lacking} have no value in USDT" if total.lacking else ""
        yield _line(f"  {period}", f"{total.usdt} USDT, {count_of(total.records, 'record')}{lacking}")


def _coverage(searched: Iterable[Source], stale: Collection[date]) -> Iterator[str]:
    yield "This rests on the days that have landed:"
    for each in searched:
        missing = f", missing {format_days(each.missing)}" if each.missing else ""
        yield f"  {each.asset}: {each.first} to {each.last}{missing}"
    if stale:
        yield f"  {format_days(stale)}: some landed rows or prices have not been added up yet, so they are missing from the earnings"


def _line(label: str, text: str) -> str:
    return f"  {label:18}{text}"


def _periods(texts: Sequence[str]) -> str:
    return ", ".join(f"{text} in {days} days" for days, text in zip(PERIODS_DAYS, texts, strict=True))


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:%Y-%m-%d}" if isinstance(value, datetime) else _redacted(f"{value}")


def _redacted(text: str) -> str:
    """The text, an email in it cut to its first characters unless the exchange has masked it."""
    local, at, _ = text.partition("@")
    return text if not at or "*" in local else redact(text)
