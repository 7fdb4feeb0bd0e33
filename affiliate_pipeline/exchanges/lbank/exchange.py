"""LBank as an exchange: its zone, and how a session is made."""

from collections.abc import Mapping
from functools import cache, partial
from hashlib import sha256
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.settings import naming
from affiliate_pipeline.exchanges.endpoint import Endpoint, Exchange
from affiliate_pipeline.exchanges.lbank import responses
from affiliate_pipeline.exchanges.lbank.account import CREDENTIALS, LBank
from affiliate_pipeline.exchanges.lbank.response_cache import ResponseCache
from affiliate_pipeline.exchanges.lbank.roster.members import Roster
from affiliate_pipeline.exchanges.lbank.roster.refresh import TEAM_LIST, read_roster
from affiliate_pipeline.exchanges.lbank.roster.store import RosterStore
from affiliate_pipeline.exchanges.lbank.session import LBankSession
from affiliate_pipeline.exchanges.lbank.signing import LBankAuth
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.client import Client, Clock
from affiliate_pipeline.http.encoding import check_api_key
from affiliate_pipeline.http.network import Network

REQUESTS_PER_WINDOW = 5
WINDOW_S = 10


def connect(endpoint: Endpoint, shared: SharedState, variables: Mapping[str, str]) -> LBankSession:
    """A session for the endpoint; raises SettingsError. Sends nothing yet."""
    settings = LBank.load(variables, *CREDENTIALS)
    open_id = settings.lbank_open_id
    api_key, secret = settings.secret("LBANK_API_KEY"), settings.secret("LBANK_API_SECRET")
    clock = Clock()
    with naming("LBANK_API_KEY"):
        check_api_key(api_key, secret)
    with naming("LBANK_API_SECRET"):
        auth = LBankAuth(api_key, secret, settings.lbank_signature_method, clock.now_ms)
    host = urlsplit(settings.lbank_base_url).hostname
    network = Network(variables)
    fingerprint = sha256(api_key.encode()).hexdigest()[:12]
    window_s = WINDOW_S / settings.affiliate_rate_scale

    def client(path: str) -> Client:
        # Each endpoint has a budget of its own.
        limit = shared.limit(f"lbank {host} {fingerprint} {path}", REQUESTS_PER_WINDOW, window_s)
        return Client(
            settings.lbank_base_url, auth, clock, limit, responses.read, default_pause_s=window_s, network=network
        )

    source = f"{host} {fingerprint}"

    def roster(not_before_ms: int) -> Roster:
        return read_roster(
            shared.open(RosterStore, source),
            open_id,
            lambda: client(TEAM_LIST),
            clock.now_ms,
            min(not_before_ms, clock.now_ms()),
        )

    return LBankSession(
        client(endpoint.path),
        source,
        open_id,
        cache(partial(shared.open, ResponseCache, endpoint.key, source)),
        slots_per_s=REQUESTS_PER_WINDOW / window_s,
        burst=REQUESTS_PER_WINDOW,
        roster=cache(roster),
        now_ms=clock.now_ms,
    )


LBANK = Exchange(
    name="lbank",
    title="LBank affiliate",
    zone=ZoneInfo("Asia/Shanghai"),
    connect=connect,
    credentials=lambda account: CREDENTIALS,
)
