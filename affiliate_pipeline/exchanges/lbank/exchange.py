"""LBank as an exchange: its zone, how a session is made, and how its roster is kept fresh."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from hashlib import sha256
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.settings import naming
from affiliate_pipeline.exchanges.endpoint import Endpoint, Exchange
from affiliate_pipeline.exchanges.lbank import responses
from affiliate_pipeline.exchanges.lbank.account import CREDENTIALS, LBank
from affiliate_pipeline.exchanges.lbank.pagination import by_offset
from affiliate_pipeline.exchanges.lbank.response_cache import ResponseCache
from affiliate_pipeline.exchanges.lbank.roster.members import Roster
from affiliate_pipeline.exchanges.lbank.roster.store import RosterStore
from affiliate_pipeline.exchanges.lbank.session import LBankSession, rows_of
from affiliate_pipeline.exchanges.lbank.signing import LBankAuth
from affiliate_pipeline.exchanges.lists import get_list
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.http.clock import Clock
from affiliate_pipeline.http.encoding import check_api_key
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.http.network import Network
from affiliate_pipeline.schema import columns as schema
from affiliate_pipeline.schema.columns import Amount, Flag, Instant, Row, SmallInt, Text
from affiliate_pipeline.schema.decode import Invalid, parse

REQUESTS_PER_WINDOW = 5
WINDOW_S = 10
TEAM_LIST = "/affiliate-api/v2/invite/user/team/list"
USERS = partial(by_offset, instant="createTime", identity=("openId",))


class User(Row):
    """What every endpoint about users answers."""

    open_id: Text = schema.text("The user's openId.")
    code: Text = schema.text("The referral code used.", nullable=True)
    create_time: Instant = schema.instant("When the user registered.", nullable=True)
    direct_invitation: Flag = schema.flag("Whether we invited the user ourselves.", nullable=True)
    deposit: Flag = schema.flag("Whether the user has ever deposited.", nullable=True)
    transaction: Flag = schema.flag("Whether the user has ever traded.", nullable=True)
    kyc_status: SmallInt = schema.smallint("0 not verified, 1 verified.", nullable=True)
    user_level: SmallInt = schema.smallint("1 to 21 agents, 0 invitee, 99 regular user.", nullable=True)
    currency_fee_amt: Amount = schema.amount("Spot commission rate, if an agent.", nullable=True)
    contract_fee_amt: Amount = schema.amount("Contract commission rate, if an agent.", nullable=True)
    currency_total_fee_amt: Amount = schema.amount("Spot assets.", optional=True)
    contract_total_fee_amt: Amount = schema.amount("Futures assets.", optional=True)
    reserve_amt: Amount = schema.amount("Reserve.", optional=True)
    currency_total_fee_amt_usdt: Amount = schema.amount("Spot assets in USDT (since v1.6).", optional=True)


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


def read_roster(
    store: RosterStore, open_id: str, team_list: Callable[[], Client], now_ms: Callable[[], int], not_before_ms: int
) -> Roster:
    """The roster as of `not_before_ms` or later; one process at a time asks the exchange for it."""
    if other := store.other_source():
        raise Refused(
            f"the roster in this database is that of {other}, and only one LBank account can be kept in a database. Use its "
            "credentials and base URL, or another database"
        )
    if (store.as_of_ms() or 0) < not_before_ms:
        with store.refreshing():
            if (store.as_of_ms() or 0) < not_before_ms:
                refresh_roster(store, team_list, now_ms())
    return Roster(open_id, store.members())


def refresh_roster(store: RosterStore, team_list: Callable[[], Client], now_ms: int) -> None:
    """Asks the team list from the beginning of time, whatever the first partition is."""
    with team_list() as client:

        def get(page: Mapping[str, object]) -> list[bytes]:
            rows, is_unlisted = get_list(client, TEAM_LIST, {"startTime": 0, "endTime": now_ms, **page}, rows_of)
            if is_unlisted and store.members():
                raise Refused("LBank twice sent null instead of the list of users, which was not empty before")
            return rows

        try:
            table = parse(User, USERS(get)).table
        except (Refused, Invalid) as error:
            raise Refused(f"the team list, which says whom to ask about, cannot be read: {error}") from None
    store.update(table.to_pylist(), now_ms)


LBANK = Exchange(
    name="lbank",
    title="LBank affiliate",
    zone=ZoneInfo("Asia/Shanghai"),
    connect=connect,
    credentials=lambda account: CREDENTIALS,
)
