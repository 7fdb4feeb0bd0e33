"""The endpoints of Binance Link: a new one takes a schema and a declaration."""

from datetime import time, timedelta
from functools import partial

from affiliate_pipeline.exchanges.binance import responses, schemas
from affiliate_pipeline.exchanges.binance.customer_ids import (
    FILE_VARIABLE,
    Assignment,
    desired_of_client,
    desired_of_partner,
    rejected_lines,
)
from affiliate_pipeline.exchanges.binance.exchange import BINANCE, BinanceSession
from affiliate_pipeline.exchanges.binance.kickback_export.advance import requested_in_time
from affiliate_pipeline.exchanges.binance.kickback_export.exports import LANDED_BY, REQUESTED_BY, RETENTION
from affiliate_pipeline.exchanges.binance.kickback_export.fetch import ExportFile, ExportRequest
from affiliate_pipeline.exchanges.binance.snapshot import CurrentState
from affiliate_pipeline.exchanges.endpoint import (
    ActionLog,
    Endpoint,
    Money,
    Probe,
    Records,
    ReferenceTable,
    Retention,
    Snapshot,
    Users,
)
from affiliate_pipeline.exchanges.window_walk import WindowWalk

# At most one row of the last second.
_PROBE = Probe[BinanceSession](lambda _, now_ms: {"startTime": now_ms - 1000, "endTime": now_ms, "limit": 1})
_CUSTOMIZATION = "/sapi/v1/apiReferral/customization"
_USER_CUSTOMIZATION = "/sapi/v1/apiReferral/userCustomization"
_AGENT = ("BINANCE_API_AGENT_CODE",)
_of_agent = partial(
    Probe[BinanceSession],
    lambda session, _: {"apiAgentCode": session.settings.binance_api_agent_code},
    tested_variable="BINANCE_API_AGENT_CODE",
)
_DAILY = time(0, 15)
_RECENT_KICKBACKS = "kickback_recent_record"
# Fees on the client's own trades that are paid back to it.
_kickbacks = partial(
    Records[BinanceSession],
    exchange=BINANCE,
    role="client",
    schema=schemas.Kickback,
    time_column="time",
    sum_by=("income", "asset"),
    money=Money("kickback", earners=()),
    settles_after=timedelta(hours=24),
)

HISTORY_REQUEST = Records(
    exchange=BINANCE,
    name=REQUESTED_BY,
    role="client",
    description=(
        "Requests an export of kickbacks of the last 30 days, whose file `kickback_historical_record` lands: one row "
        "per requested day, in UTC. A range of days is one request; while one is being collected, another waits."
    ),
    schema=schemas.KickbackHistoricalRequest,
    strategy=ExportRequest(),
    # A day may be requested again for as long as the source retains it.
    settles_after=RETENTION,
    retention=Retention(RETENTION, is_final=True),
)
HISTORY = _kickbacks(
    name=LANDED_BY,
    description=(
        "Kickbacks of the last 30 days from the file that `kickback_historical_request` requests; days in UTC. The sensor "
        "`kickback_history` waits for the file and lands it; a manual run waits up to 10 minutes. For days that "
        "`kickback_recent_record` could not land in time."
    ),
    strategy=ExportFile(schemas.Kickback),
    retention=Retention(RETENTION, requested_in_time=requested_in_time, is_final=True),
    compared_with=_RECENT_KICKBACKS,
)
RECENT_KICKBACKS = _kickbacks(
    name=_RECENT_KICKBACKS,
    description=(
        "Kickbacks that the client gets on its own trades, one row per trade; days in UTC. Only the last 7 days exist; "
        "`kickback_historical_record` has 30."
    ),
    strategy=WindowWalk("/sapi/v1/apiReferral/kickback/recentRecord", row_limit=1000, max_days=7),
    probe=_PROBE,
    retention=Retention(timedelta(days=7), fallback=HISTORY),
    compared_with=HISTORY.name,
    lands_at=_DAILY,
)

_REBATE_WALK = WindowWalk("/sapi/v1/apiReferral/rebate/recentRecord", row_limit=500, max_days=7)

ENDPOINTS: tuple[Endpoint[BinanceSession], ...] = (
    Records(
        exchange=BINANCE,
        name="rebate_recent_record",
        role="partner",
        description=(
            "Rebates that the partner earns on its clients' trades, one row per trade; days in UTC. "
            "`distribute_time` and the columns after it are null until the rebate is paid out, so a day has settled 48 hours "
            "after its end. The exchange promises 7 days."
        ),
        schema=schemas.RebateRecentRecord,
        strategy=_REBATE_WALK,
        time_column="time",
        sum_by=("income", "asset"),
        # No column has the amount in USDT: commission is in commission_asset, and convert_price converts that to asset.
        money=Money("rebate", earners=("customer_id", "email")),
        users=Users(("customer_id", "email")),
        probe=_PROBE,
        settles_after=timedelta(hours=48),
        retention=Retention(timedelta(days=7), proof=_REBATE_WALK.oldest_before),
        lands_at=_DAILY,
    ),
    Snapshot(
        exchange=BINANCE,
        name="if_new_user",
        role="client",
        strategy=CurrentState("/sapi/v1/apiReferral/ifNewUser", of_agent=True),
        schema=schemas.IfNewUser,
        description="Whether the client is new to the agent and the agent's code works: a snapshot of today (UTC).",
        requires=_AGENT,
        probe=_of_agent(problem=responses.agent_problem),
        users=Users(facts=(("new to the agent", "if_new_user"), ("agent's code works", "rebate_working"))),
        lands_at=_DAILY,
    ),
    Snapshot(
        exchange=BINANCE,
        name="customization",
        role="partner",
        strategy=CurrentState(_CUSTOMIZATION),
        schema=schemas.Customization,
        description="All ids that the partner gave, requested without a filter: a snapshot of today (UTC).",
        users=Users(("customer_id", "email")),
        lands_at=_DAILY,
    ),
    Snapshot(
        exchange=BINANCE,
        name="user_customization",
        role="client",
        strategy=CurrentState(_USER_CUSTOMIZATION, of_agent=True),
        schema=schemas.UserCustomization,
        description="The id that the client has with the agent: a snapshot of today (UTC).",
        users=Users(("customer_id",), (("client of agent", "api_agent_code"),)),
        requires=_AGENT,
        probe=_of_agent(),
        lands_at=_DAILY,
    ),
    ActionLog(
        exchange=BINANCE,
        name="customization_assignment",
        role="partner",
        strategy=Assignment(_CUSTOMIZATION, "email", desired_of_partner, FILE_VARIABLE, lists_all=True),
        file_check=(FILE_VARIABLE, rejected_lines),
        schema=schemas.CustomizationAssignment,
        description=(
            "Gives the partner's clients the ids of the CSV file BINANCE_CUSTOMER_IDS, unless they have them already; "
            "only on request, only today (UTC). One row per attempt, appended. `affiliate-pipeline plan` shows what "
            "would be done."
        ),
    ),
    ActionLog(
        exchange=BINANCE,
        name="user_customization_assignment",
        role="client",
        strategy=Assignment(
            _USER_CUSTOMIZATION, "apiAgentCode", desired_of_client, "BINANCE_USER_CUSTOMER_ID", lists_all=False
        ),
        schema=schemas.UserCustomizationAssignment,
        description=(
            "Gives the client the id BINANCE_USER_CUSTOMER_ID with its agent, unless it has it already; only on "
            "request, only today (UTC). One row per attempt, appended. `affiliate-pipeline plan` shows what would be "
            "done."
        ),
        requires=_AGENT,
    ),
    RECENT_KICKBACKS,
    HISTORY_REQUEST,
    HISTORY,
)
REFERENCE_TABLES: tuple[ReferenceTable[BinanceSession], ...] = ()
