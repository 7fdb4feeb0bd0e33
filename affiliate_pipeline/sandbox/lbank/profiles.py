"""What LBank shows of a user, as members of a JSON object."""

from functools import lru_cache

from affiliate_pipeline.sandbox.amounts import ONE, Amount
from affiliate_pipeline.sandbox.lbank.days import day_of, start_of
from affiliate_pipeline.sandbox.lbank.draws import draw_amount, draws
from affiliate_pipeline.sandbox.lbank.trades import FUTURES, SPOT, commission_rate
from affiliate_pipeline.sandbox.lbank.users import User
from affiliate_pipeline.sandbox.rows import encode

USERS_CACHED = 4096
# Of the largest users, in USDT.
MEAN_BALANCE = 20_000


def profile(user: User, now: int) -> str:
    """The user as of now, as the members from openId to contractFeeAmt."""
    has_deposited = user.first_deposit_ms is not None and user.first_deposit_ms <= now
    has_traded = user.first_trade_ms is not None and user.first_trade_ms <= now
    return _profile(user, has_deposited, has_traded)


@lru_cache(USERS_CACHED)
def _profile(user: User, has_deposited: bool, has_traded: bool) -> str:
    draw_below = draws("profile", user.id)
    members = {
        "openId": user.open_id,
        "code": user.code,
        "createTime": user.registered_ms,
        "directInvitation": user.parent is not None and user.parent.parent is None,
        "deposit": has_deposited,
        "transaction": has_traded,
        "kycStatus": draw_below(2),
        "userLevel": user.level,
        "currencyFeeAmt": f"{commission_rate(user, SPOT)}" if user.is_agent else None,
        "contractFeeAmt": f"{commission_rate(user, FUTURES)}" if user.is_agent else None,
    }
    return encode(members)[1:-1].decode()


def balances(user: User, now: int) -> str:
    """The user's balances as of the last UTC+8 midnight, as the members with amounts."""
    midnight = start_of(day_of(now))
    had_deposited = user.first_deposit_ms is not None and user.first_deposit_ms < midnight
    return _balances(user, midnight if had_deposited else None)


@lru_cache(USERS_CACHED)
def _balances(user: User, midnight: int | None) -> str:
    """The members with amounts; `midnight` is None if the user had not deposited by then."""
    spot = usdt = futures = bonus = "0.0000"
    if midnight is not None:
        draw_below = draws("balances", user.id, midnight)
        mean = MEAN_BALANCE * ONE * user.size // 100
        balance = draw_amount(draw_below, mean)
        spot = str(balance)
        usdt = str(Amount(balance.units // (1 + draw_below(3)), balance.scale))
        futures = str(draw_amount(draw_below, mean))
        if draw_below(10) == 0:
            bonus = "10.0000"
    return (
        f'"currencyTotalFeeAmt":"{spot}","currencyTotalFeeAmtUsdt":"{usdt}"'
        f',"contractTotalFeeAmt":"{futures}","reserveAmt":"{bonus}"'
    )
