"""LBank as an exchange: the settings of its account, and how a session is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr

from affiliate_pipeline.domain.settings import BaseUrl, RateScale, Settings, as_settings_error, malformed
from affiliate_pipeline.exchanges.endpoint import Endpoint, Exchange
from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.exchanges.identity import KeyRefused
from affiliate_pipeline.exchanges.lbank import responses
from affiliate_pipeline.exchanges.lbank.response_cache import ResponseCache
from affiliate_pipeline.exchanges.lbank.roster import TEAM_LIST, Roster, RosterStore
from affiliate_pipeline.exchanges.lbank.signing import LBankAuth, OtherKindOfSecret
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.client import Client, Clock
from affiliate_pipeline.http.encoding import check_api_key
from affiliate_pipeline.http.errors import Fatal, Refused
from affiliate_pipeline.http.network import Network

# The settings that differ between accounts; the others are the same for all of them.
ACCOUNT_VARIABLES = ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_SIGNATURE_METHOD", "LBANK_OPEN_ID")
CREDENTIALS = ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID")
TRADE_USER = "/affiliate-api/v2/trade/user"
REQUESTS_PER_WINDOW = 5
WINDOW_S = 10


class LBank(Settings):
    """LBank's settings, each from the variable of its upper-case name."""

    lbank_base_url: BaseUrl = "https://affiliate.lbankverify.com"
    lbank_api_key: SecretStr | None = None
    lbank_api_secret: SecretStr | None = None
    lbank_signature_method: Annotated[Literal["HmacSHA256", "RSA"], Field(description="HmacSHA256 or RSA")] = (
        "HmacSHA256"
    )
    lbank_open_id: str = ""
    affiliate_rate_scale: RateScale = 1.0


@dataclass(frozen=True)
class LBankSession(Session):
    """A session with our own openId, the roster, and the cached responses of unfinished runs."""

    open_id: str
    response_cache: Callable[[], ResponseCache]
    slots_per_s: float
    # Returns the roster, refreshed if it is older than the given instant (ms).
    roster: Callable[[int], Roster]
    now_ms: Callable[[], int]

    def finished(self) -> None:
        """Delete the cached responses."""
        self.response_cache().clear()


def connect(endpoint: Endpoint, shared: SharedState, variables: Mapping[str, str]) -> LBankSession:
    """A session for the endpoint; raises SettingsError. Sends nothing yet."""
    endpoint.refuse_shared_key(variables)
    settings = LBank.load(variables, *CREDENTIALS, variable=endpoint.variable)
    own_open_id = settings.lbank_open_id
    clock, network = Clock(), Network(variables)
    auth = _auth(endpoint, settings, clock)
    window_s = WINDOW_S / settings.affiliate_rate_scale

    # The functions below use `identity`, which is created after them, because it uses `client` itself.
    def client(path: str) -> Client:
        # Each endpoint has its own rate limit, and so has each account's key.
        limit = shared.limit(f"lbank {identity.source} {path}", REQUESTS_PER_WINDOW, window_s)
        read = partial(responses.read, variable=endpoint.variable)
        return Client(settings.lbank_base_url, auth, clock, limit, read, default_pause_s=window_s, network=network)

    # Filled by the function `roster`: it adds the roster's counts if it refreshes the roster (see `Session.refreshed`).
    refreshed: dict[str, Mapping[str, int]] = {}

    def roster(not_before_ms: int) -> Roster:
        team_list = partial(client, TEAM_LIST)
        store = shared.open(RosterStore, endpoint.alias, identity.source, identity.sources, team_list, clock.now_ms)
        return store.read(own_open_id, not_before_ms, refreshed)

    def response_cache() -> ResponseCache:
        return shared.open(ResponseCache, endpoint.key, identity.source, identity.sources)

    identity = endpoint.key_identity(
        shared,
        origin=str(urlsplit(settings.lbank_base_url).hostname),
        api_key=settings.secret("LBANK_API_KEY"),
        request_identity=lambda: _accepted_open_id(endpoint, client, own_open_id, clock.now_ms()),
        expected=own_open_id,
    )
    return LBankSession(
        client(endpoint.path),
        identity,
        own_open_id,
        cache(response_cache),
        slots_per_s=REQUESTS_PER_WINDOW / window_s,
        roster=cache(roster),
        now_ms=clock.now_ms,
        refreshed=refreshed,
    )


def _auth(endpoint: Endpoint, settings: LBank, clock: Clock) -> LBankAuth:
    """The signer of requests; raises SettingsError if the key, the secret or the method is unusable."""
    api_key, secret = settings.secret("LBANK_API_KEY"), settings.secret("LBANK_API_SECRET")
    with as_settings_error(endpoint.variable("LBANK_API_KEY")):
        check_api_key(api_key, secret)

    secret_name = endpoint.variable("LBANK_API_SECRET")
    with as_settings_error(secret_name):
        try:
            return LBankAuth(api_key, secret, settings.lbank_signature_method, clock.now_ms)
        except OtherKindOfSecret as error:
            both = f"{secret_name} or {endpoint.variable('LBANK_SIGNATURE_METHOD')}"
            raise malformed(both, f"cannot be used: {error}") from None


def _accepted_open_id(endpoint: Endpoint, client: Callable[[str], Client], own_open_id: str, now_ms: int) -> str | None:
    """Request a record of our own openId; return the openId if LBank accepts it for the session's key.

    None: the response does not show whether it does. LBank never states which openId a key has; it only refuses the
    openId of another account, which raises `KeyRefused`.
    """
    params = {"openId": own_open_id, "tradeType": 0, "startTime": now_ms - 1000, "endTime": now_ms}
    try:
        with client(TRADE_USER) as probe:
            probe.get(TRADE_USER, params, bytes)
    except Fatal as error:
        if error.code == responses.CLOSED_CODE:
            return None
        # LBank sends the same code if the IP address is not on the key's list. Only then does its message mention the
        # address, so that "address" is in `causes`.
        if error.code != responses.STRANGER_CODE or "address" in error.causes:
            raise
        key_name, open_id_name = endpoint.variable("LBANK_API_KEY"), endpoint.variable("LBANK_OPEN_ID")
        raise KeyRefused(
            f"{key_name} is the key of another account than {open_id_name}: {error.problem.what}",
            f"Set the key and the openId of one account in {key_name} and {open_id_name}",
        ) from None
    except Refused:
        return None
    return own_open_id


LBANK = Exchange(
    name="lbank",
    title="LBank affiliate",
    zone=ZoneInfo("Asia/Shanghai"),
    connect=connect,
    account_variables=ACCOUNT_VARIABLES,
    credentials=lambda _: CREDENTIALS,
)
