"""The command `rotate-key`: confirm that a new API key is of the same account as the earlier ones."""

import sys
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import CommandError, app, console
from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.exchanges.identity import KeyIdentity, UnconfirmedKey
from affiliate_pipeline.exchanges.registry import configured_catalog
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store


@app.command("rotate-key")
def rotate_key(
    exchange: Annotated[str, typer.Argument(help="binance or lbank")],
    account: Annotated[str, typer.Option(help="The alias of the account; by default the default account.")] = "",
    role: Annotated[str, typer.Option(help="partner or client, at Binance.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Confirm without a question.")] = False,
) -> None:
    """Verify the configured API key, and record it as a key of the account whose days have landed.

    Only needed where the exchange does not state the account of a key: otherwise runs record a new key by themselves.
    """
    environment = start_database(application())
    endpoint = _endpoint(environment.variables, exchange, account, role)
    with Store(environment.database_url()) as store, connected(endpoint, store, environment.variables) as session:
        identity = session.identity
        try:
            _ = identity.sources  # verifies the key
        except UnconfirmedKey as error:
            console.print(escape(f"{error.problem.what}."))
        unconfirmed = identity.unconfirmed()
        if not unconfirmed:
            console.print(escape(f"{identity.key.variable} needs no confirmation: its account is known."))
            return

        console.print(escape(f"Keys to be recorded as keys of one account, {identity.key.account}:"))
        for key in unconfirmed:
            console.print(f"  {key.fingerprint}, since {key.first_seen:%Y-%m-%d %H:%M} UTC")
        console.print(escape(f"  {identity.key.fingerprint}, the value of {identity.key.variable}"))

        if not (yes or _confirmed(identity)):
            raise CommandError("nothing was recorded", "Set the former key, or confirm the new one")
        identity.confirm()
        console.print("Recorded: the next runs land with this key.")


def _endpoint(variables: Mapping[str, str], exchange: str, account: str, role: str) -> Endpoint:
    """An endpoint of the account and role, which may be empty if the account has only one; raises `CommandError`."""
    endpoints = configured_catalog(variables).endpoints
    of_account = [each for each in endpoints if (each.exchange.name, each.alias) == (exchange, account)]
    if not of_account:
        accounts = sorted({f"{each.exchange.name} {each.alias}".strip() for each in endpoints})
        raise CommandError(f"there is no account {exchange} {account}".rstrip(), f"There are {', '.join(accounts)}")

    roles = dict.fromkeys(each.role for each in of_account)
    if not role and len(roles) == 1:
        return of_account[0]
    for endpoint in of_account:
        if endpoint.role == role:
            return endpoint
    raise CommandError(f"{exchange} has keys of the roles {', '.join(roles)}", "Name one with --role")


def _confirmed(identity: KeyIdentity) -> bool:
    """Whether the user confirms the keys; raises `CommandError` without a terminal."""
    if not sys.stdin.isatty():
        raise CommandError(
            "without a terminal, the keys cannot be confirmed",
            f"If they are of one account: `{identity.key.rotation} --yes`",
        )
    return typer.confirm("Are they all keys of the same account?")
