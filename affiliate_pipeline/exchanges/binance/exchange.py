"""Binance as an exchange: the settings of its accounts, and how a session is opened."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, SecretStr

from affiliate_pipeline.domain.settings import BaseUrl, RateScale, Settings, as_settings_error
from affiliate_pipeline.exchanges.binance import responses
from affiliate_pipeline.exchanges.binance.kickback_export.exports import LANDED_BY, KickbackExports
from affiliate_pipeline.exchanges.binance.signing import BinanceAuth
from affiliate_pipeline.exchanges.endpoint import Endpoint, Exchange
from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.exchanges.pending_actions import PendingActions
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.client import Client, Clock, Limit
from affiliate_pipeline.http.encoding import check_api_key
from affiliate_pipeline.http.errors import AccessRefused, Refused
from affiliate_pipeline.http.network import Network, host_of

BASE_URL = "https://api.binance.com"
WEIGHT_WINDOW_S = 60
# The weight of the request for the uid; any other request of a session has weight 1.
UID_WEIGHT = 20
# The settings that differ between accounts; the others are the same for all of them.
ACCOUNT_VARIABLES = (
    "BINANCE_PARTNER_API_KEY",
    "BINANCE_PARTNER_API_SECRET",
    "BINANCE_CLIENT_API_KEY",
    "BINANCE_CLIENT_API_SECRET",
    "BINANCE_API_AGENT_CODE",
    "BINANCE_CUSTOMER_IDS",
    "BINANCE_USER_CUSTOMER_ID",
)


def _host_suffixes(text: str) -> tuple[str, ...]:
    entries = [entry.strip().lower() for entry in text.split(",") if entry.strip()]
    suffixes = tuple(entry.removeprefix("*").removeprefix(".") for entry in entries)
    # IP addresses and whole top-level domains are rejected.
    if not all(re.fullmatch(r"([a-z0-9-]+\.)+[a-z][a-z0-9-]+", each) for each in suffixes):
        raise ValueError("is not a list of host names, such as `files.example.com`, separated by commas")
    return suffixes


class Binance(Settings):
    """Binance's settings, each from the variable of its upper-case name."""

    binance_base_url: BaseUrl = BASE_URL
    # Further hosts of history files; each also permits its subdomains.
    binance_file_hosts: Annotated[tuple[str, ...], BeforeValidator(_host_suffixes)] = ()
    binance_partner_api_key: SecretStr | None = None
    binance_partner_api_secret: SecretStr | None = None
    binance_client_api_key: SecretStr | None = None
    binance_client_api_secret: SecretStr | None = None
    binance_api_agent_code: str | None = None
    # The path of a CSV `customerId,email`.
    binance_customer_ids: str | None = None
    binance_user_customer_id: str | None = None
    binance_weight_per_minute: Annotated[int, Field(ge=1, le=12000, description="a whole number from 1 to 12000")] = (
        6000
    )
    affiliate_rate_scale: RateScale = 1.0


@dataclass(frozen=True)
class BinanceSession(Session):
    """A session with Binance's settings, pending actions and kickback exports."""

    settings: Binance
    now_ms: Callable[[], int]
    pending_actions: Callable[[], PendingActions]
    exports: Callable[[], KickbackExports]
    lands_exports: bool
    # The asset key of the account's endpoint of this name.
    key_of: Callable[[str], str]
    # The name that the account uses instead of a default account's variable.
    variable: Callable[[str], str]

    def finished(self) -> None:
        """Mark the exports that have landed."""
        if self.lands_exports:
            self.exports().refresh()


def credentials(role: str) -> tuple[str, str]:
    """The default account's variables of a role's API key and secret."""
    return f"BINANCE_{role.upper()}_API_KEY", f"BINANCE_{role.upper()}_API_SECRET"


def connect(endpoint: Endpoint, shared: SharedState, variables: Mapping[str, str]) -> BinanceSession:
    """A session with the endpoint's account; raises SettingsError. Sends nothing yet."""
    endpoint.refuse_shared_key(variables)
    default_names = credentials(endpoint.role)
    settings = Binance.load(variables, *default_names, *endpoint.requires, variable=endpoint.variable)
    api_key, secret = map(settings.secret, default_names)
    key_name, secret_name = endpoint.credentials
    clock = Clock()
    with as_settings_error(key_name):
        check_api_key(api_key, secret)
    with as_settings_error(secret_name):
        auth = BinanceAuth(api_key, secret, clock.now_ms)

    base_url = settings.binance_base_url
    host = host_of(base_url)
    # The weight is counted per IP address, for the keys of all accounts together.
    limit = shared.limit(
        f"binance {host}", settings.binance_weight_per_minute, WEIGHT_WINDOW_S / settings.affiliate_rate_scale
    )
    client = Client(
        base_url,
        auth,
        clock,
        limit,
        read=lambda response: responses.read(response, key_name, secret_name),
        network=Network(variables),
        server_time=(responses.SERVER_TIME_PATH, responses.server_time_ms),
    )

    identity = endpoint.key_identity(
        shared, f"{host} {endpoint.role}", api_key, request_identity=lambda: _request_uid(client, limit)
    )

    def exports() -> KickbackExports:
        asset = endpoint.key_of(LANDED_BY)
        return shared.open(
            KickbackExports, endpoint.alias, asset, identity.source, identity.sources, shared.landed_or_rejected_at
        )

    return BinanceSession(
        client,
        identity,
        settings,
        clock.now_ms,
        pending_actions=lambda: shared.open(PendingActions, endpoint.key, identity.source, identity.sources),
        exports=cache(exports),
        lands_exports=endpoint.name == LANDED_BY,
        key_of=endpoint.key_of,
        variable=endpoint.variable,
    )


def _request_uid(client: Client, limit: Limit) -> str | None:
    """The account's uid; None if the key has no permission to read it, or Binance refuses the request."""
    # A slot counts as weight 1, and the client itself takes one for the request.
    for _ in range(UID_WEIGHT - 1):
        with limit.slot():
            pass
    try:
        return client.get(responses.UID_PATH, {"omitZeroBalances": "true"}, responses.uid)
    except Refused:
        return None
    except AccessRefused as error:
        if error.code in responses.PERMISSION_CODES:
            return None
        raise


BINANCE = Exchange(
    name="binance",
    title="Binance Link",
    zone=ZoneInfo("UTC"),
    connect=connect,
    account_variables=ACCOUNT_VARIABLES,
    credentials=credentials,
)
