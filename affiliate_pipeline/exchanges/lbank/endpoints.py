"""The endpoints of the LBank affiliate API: a new one takes a schema and a declaration."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import time, timedelta
from functools import partial

from affiliate_pipeline.exchanges.endpoint import Endpoint, Money, Probe, Records, ReferenceTable, Snapshot, Users
from affiliate_pipeline.exchanges.fetching import RequestPlan
from affiliate_pipeline.exchanges.lbank import roster, schemas
from affiliate_pipeline.exchanges.lbank.exchange import LBANK, TRADE_USER, LBankSession
from affiliate_pipeline.exchanges.lbank.fan_out import FanOut, request_plan
from affiliate_pipeline.exchanges.lbank.pagination import PAGE_SIZE, by_id, by_offset
from affiliate_pipeline.exchanges.lbank.queries import Query
from affiliate_pipeline.exchanges.lbank.roster import TEAM_LIST, USER_PAGING, Roster
from affiliate_pipeline.schema.raw_row import is_false, new_row, with_fields

USER_LIST = "/affiliate-api/v2/invite/user/list"
USER_INFO = "/affiliate-api/v2/invite/user/info"
COMMISSION = "/affiliate-api/v2/commission/stats/symbol/list"
TRADE_TEAM = "/affiliate-api/v2/trade/user/team"
TRADE_FUTURE = "/affiliate-api/v2/trade/future"
MONEY = "/affiliate-api/v2/money/detail/list"

TRADE_TYPES = ({"tradeType": 0}, {"tradeType": 1})
BOTH_TRADE_TYPES = 10
USER_TYPES = ("SELF", "SUB", "SELF_SUB", "ALL")
SUB_IN_OUT_TYPES = (
    "IN_DEPOSIT",
    "OUT_WITHDRAW",
    "IN_OTC_BUY",
    "OUT_OTC_SELL",
    "IN_INNER_TRANSFER_IN",
    "OUT_INNER_TRANSFER_OUT",
)


def _single_query(_session: LBankSession, _not_before_ms: int) -> Sequence[Query]:
    return [Query({})]


def _per_open_id(
    open_ids: Callable[[Roster], list[str]],
    params: Mapping[str, object],
    variants: Sequence[Mapping[str, object]] = ({},),
    *,
    adds_open_id: bool = False,
) -> Callable[[LBankSession, int], Sequence[Query]]:
    """A function for `FanOut.queries`: one query per openId and variant.

    The variant's parameters, and with `adds_open_id` the openId, are also added to the rows.
    """

    def queries(session: LBankSession, not_before_ms: int) -> Sequence[Query]:
        result: list[Query] = []
        for open_id in open_ids(session.roster(not_before_ms)):
            for variant in variants:
                query_params = {"openId": open_id, **params, **variant}
                fields = {"openId": open_id, **variant} if adds_open_id else variant
                result.append(Query(query_params, fields, open_id))
        return result

    return queries


def _user_with_fields(row: bytes, fields: Mapping[str, object]) -> bytes:
    # If a user is not under us, the row's other fields are not valid, whatever they contain: drop them.
    if is_false(row, "inviteResult"):
        return new_row(schemas.InviteUserInfo, {**fields, "inviteResult": False})
    return with_fields(row, fields)


def _futures(session: LBankSession, _not_before_ms: int) -> Sequence[Query]:
    own = session.open_id
    scopes = [{"openId": own, "userType": user_type} for user_type in USER_TYPES]
    return [Query(params=scope, fields=scope, open_id=own) for scope in scopes]


def _money(session: LBankSession, _not_before_ms: int) -> Sequence[Query]:
    own = session.open_id
    return [
        Query(
            params={"openId": own, "userType": "ALL", "subInOutType": kind},
            fields={"userType": "ALL", "requestedSubInOutType": kind},
        )
        for kind in SUB_IN_OUT_TYPES
    ]


_FACTS = (
    ("registered", "create_time"),
    ("level", "user_level"),
    ("invited directly", "direct_invitation"),
    ("has deposited", "deposit"),
    ("has traded", "transaction"),
)
_USERS = Users(("open_id",), _FACTS)
_records = partial(Records[LBankSession], exchange=LBANK, role="affiliate", lands_at=time(0, 35))

TEAM = _records(
    name="invite_user_team_list",
    description="Users who registered that day. Days in UTC+8.",
    schema=schemas.User,
    strategy=FanOut(TEAM_LIST, _single_query, paging=USER_PAGING, time_field="createTime"),
    settles_after=timedelta(0),
    probe=Probe(lambda _, now_ms: {"startTime": now_ms - 1000, "endTime": now_ms, "start": 0, "pageSize": 1}),
    time_column="create_time",
    users=_USERS,
)

ENDPOINTS: tuple[Endpoint[LBankSession], ...] = (
    _records(
        name="invite_user_list",
        description="Users who registered that day, by the endpoint that LBank calls deprecated. Days in UTC+8.",
        schema=schemas.InviteUserList,
        strategy=FanOut(USER_LIST, _single_query, paging=by_id, time_field="createTime"),
        settles_after=timedelta(0),
        time_column="create_time",
        users=_USERS,
    ),
    TEAM,
    Snapshot(
        exchange=LBANK,
        role="affiliate",
        name="invite_user_info",
        description="Agents and traders as they are now, a snapshot of today. Days in UTC+8.",
        schema=schemas.InviteUserInfo,
        strategy=FanOut(
            USER_INFO,
            _per_open_id(Roster.agents_and_traders, {}, adds_open_id=True),
            timeless=True,
            add_fields=_user_with_fields,
        ),
        lands_at=time(0, 35),
        users=Users(("open_id",), (("under us", "invite_result"), *_FACTS)),
    ),
    _records(
        name="commission_stats_symbol_list",
        description="Commission by receiver, coin and trade type. It is paid after 10:00 UTC+8 of the next day. Days in UTC+8.",
        schema=schemas.CommissionStatsSymbolList,
        strategy=FanOut(
            COMMISSION,
            _per_open_id(Roster.agents, {"tradeType": BOTH_TRADE_TYPES, "coin": ""}),
            paging=partial(
                by_offset, time_field="statsDate", id_fields=("openId", "coinSymbol", "tradeType", "statsDate")
            ),
            time_field="statsDate",
        ),
        settles_after=timedelta(hours=10.5),
        lands_at=time(10, 35),
        time_column="stats_date",
        sum_by=("amount", "coin_symbol"),
        money=Money(
            "commission",
            earners=("open_id",),
            usdt="usdt_amount",
            kind_by=("trade_type", ((0, "spot"), (1, "futures"))),
        ),
    ),
    _records(
        name="trade_user",
        description="Volume and fee of each user who ever traded, one row per trade type. Days in UTC+8.",
        schema=schemas.TradeUser,
        strategy=FanOut(TRADE_USER, _per_open_id(Roster.traders, {}, TRADE_TYPES), time_field="statsDate"),
        settles_after=timedelta(hours=0.5),
        time_column="stats_date",
        sum_by=("fee_amt", "trade_type"),
        volume_and_fee=("trade_amt", "fee_amt"),
        users=Users(("open_id",)),
    ),
    _records(
        name="trade_user_team",
        description="Volume and fee of each agent's team, one row per trade type. Days in UTC+8.",
        schema=schemas.TradeUserTeam,
        strategy=FanOut(TRADE_TEAM, _per_open_id(Roster.agents, {}, TRADE_TYPES), time_field="statsDate"),
        settles_after=timedelta(hours=0.5),
        time_column="stats_date",
        sum_by=("fee_amt", "trade_type"),
        volume_and_fee=("trade_amt", "fee_amt"),
    ),
    _records(
        name="trade_future",
        description="Futures volume and fee by scope, of our own openId. Days in UTC+8.",
        schema=schemas.TradeFuture,
        strategy=FanOut(TRADE_FUTURE, _futures),
        settles_after=timedelta(hours=0.5),
        sum_by=("fee", "user_type"),
        probe=Probe(
            lambda session, now_ms: {
                "openId": session.open_id,
                "userType": "SELF",
                "startTime": now_ms - 1000,
                "endTime": now_ms,
            },
            tested_variable="LBANK_OPEN_ID",
        ),
        volume_and_fee=("turnover", "fee"),
    ),
    _records(
        name="money_detail_list",
        description="Deposits and withdrawals of all users under the affiliate. Days in UTC+8.",
        schema=schemas.MoneyDetailList,
        strategy=FanOut(MONEY, _money, paging=partial(by_offset, time_field="createTime"), time_field="createTime"),
        settles_after=timedelta(hours=72),
        time_column="create_time",
        sum_by=("asset_num", "asset_code"),
    ),
)


def _roster_plan(session: LBankSession) -> RequestPlan:
    """One request per page of the known users, and an unknown number for new ones or a second walk (`by_offset`)."""
    # 0: a roster of any age, so nothing is refreshed.
    known_users = len(session.roster(0).members)
    pages = max(1, math.ceil(known_users / PAGE_SIZE))
    return request_plan(session, min_requests=pages, max_requests=None)


REFERENCE_TABLES: tuple[ReferenceTable[LBankSession], ...] = (
    ReferenceTable(
        name=roster.NAME,
        description=(
            "Every user ever seen under the affiliate, from the whole team list.\n\n"
            "Runs that request data of single users refresh it by themselves; no user is ever removed."
        ),
        endpoint=TEAM,
        refresh=lambda session: session.roster(session.now_ms()).counts(),
        plan=_roster_plan,
        columns=roster.COLUMNS,
        users=Users(("open_id",), _FACTS, as_of="last_seen"),
        read_by=("invite_user_info", "commission_stats_symbol_list", "trade_user", "trade_user_team"),
    ),
)
