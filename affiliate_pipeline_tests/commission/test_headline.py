"""The headline: exact totals, a change against complete days only, and everything that a total lacks."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.commission.figures import Figures, Incomplete
from affiliate_pipeline.commission.headline import completeness, gaps, headline, lacks, text
from affiliate_pipeline.commission.rollup import DayTotal

DAYS = [date(2026, 10, 31) + timedelta(days=number) for number in range(30)]
DAY = DAYS[-1]
COMPLETE = "All 30 days have landed and will not change"


def earned(amounts: dict[date, str], exchange: str = "binance") -> list[DayTotal]:
    return [DayTotal(day, exchange, "", 1, Decimal(amount), Decimal(0)) for day, amount in amounts.items()]


def figures(by_day: list[DayTotal], *incomplete: Incomplete) -> Figures:
    return Figures(DAY, DAYS, datetime(2026, 11, 30, 6, tzinfo=UTC), [], [], [], incomplete, by_day=by_day)


def gap(missing: list[date], unsettled: list[date], exchange: str = "binance") -> Incomplete:
    """These missing and unsettled days of one kind of earnings, which the exchange retains for seven days."""
    deadlines = {
        day: int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + 7 * 86_400) * 1000 for day in missing
    }
    return Incomplete(f"{exchange}/records", missing, unsettled, exchange, "", "rebate", deadlines)


EVERY_DAY = earned(dict.fromkeys(DAYS, "100"))


def test_a_day_is_compared_with_the_mean_of_the_seven_days_before():
    found = headline(
        figures(earned({**dict.fromkeys(DAYS[:22], "7"), **dict.fromkeys(DAYS[22:29], "100"), DAY: "112.5"}))
    )

    assert found.total.usdt == Decimal("112.5") and found.usual == 100
    assert found.change == "+12.5 % against the mean of the 7 days before"
    assert (found.week.usdt, found.month.usdt) == (Decimal("712.5"), Decimal("966.5"))


def test_a_day_without_earnings_counts_in_the_mean():
    assert (
        headline(figures(earned({DAYS[28]: "70", DAY: "5"}))).change == "−50.0 % against the mean of the 7 days before"
    )


def test_incomplete_days_are_left_out_of_the_comparison():
    whole = figures(EVERY_DAY, gap([DAYS[27]], [DAYS[26]]))
    found = headline(replace(whole, stale=[DAYS[25]], unpriced=[DAYS[24]]))

    # DAYS[26] may still change, but has landed, so it counts as complete.
    assert found.compared_days == 4
    assert found.change == "±0.0 % against the mean of 4 complete days of the 7 before"
    nothing = headline(figures(EVERY_DAY, gap(DAYS[:29], [])))
    assert nothing.change == "no complete day before to compare with" and nothing.usual is None


def test_a_week_is_compared_with_the_week_before():
    found = headline(figures(earned({**dict.fromkeys(DAYS[16:23], "10"), **dict.fromkeys(DAYS[23:], "15")})), days=7)

    assert found.total.usdt == 105 and found.days == DAYS[23:]
    assert found.change == "+50.0 % against the 7 days before"


def test_a_week_after_an_incomplete_one_is_compared_with_seven_times_the_mean_of_its_complete_days():
    by_day = earned({**dict.fromkeys(DAYS[16:23], "10"), **dict.fromkeys(DAYS[23:], "15")})
    found = headline(figures(by_day, gap([DAYS[16]], [])), days=7)

    assert found.usual == 70
    assert found.change == "+50.0 % against 7 times the mean of 6 complete days of the 7 before"


def test_what_a_day_lacks_is_listed():
    partial = replace(figures(EVERY_DAY, gap([DAY], []), gap([], [DAY], "lbank")), stale=[DAY], unpriced=[DAY])

    assert lacks(partial, [DAY]) == [
        "not landed: binance rebate (fetchable until 2026-12-05 23:59 UTC)",
        "may still change: lbank rebate",
        "not added up yet: some landed rows",
        "not landed: market prices, so values may be missing",
    ]
    assert headline(partial).is_partial
    assert lacks(partial, [DAYS[0]]) == [] and not headline(figures(EVERY_DAY, gap([], [DAY]))).is_partial


def test_the_days_that_a_week_lacks_are_named():
    assert lacks(figures(EVERY_DAY, gap(DAYS[26:28], [])), DAYS[23:]) == [
        "not landed: binance rebate of 2026-11-26, 27 (the first fetchable until 2026-12-02 23:59 UTC)"
    ]


def test_one_line_states_whether_the_days_are_complete():
    assert completeness(figures(EVERY_DAY)) == COMPLETE
    assert completeness(replace(figures(EVERY_DAY), days=DAYS[-1:])) == "The day has landed and will not change"
    assert completeness(figures(EVERY_DAY, gap(DAYS[27:29], [DAY]), gap(DAYS[28:29], [], "lbank"))) == (
        "2 days missing: 2026-11-27, 28 (the first fetchable until 2026-12-03 23:59 UTC). 1 day may still change: 2026-11-29"
    )
    assert completeness(replace(figures(EVERY_DAY), stale=[DAY], unpriced=[DAYS[28]])) == (
        "Not added up yet: 2026-11-29. Market prices missing: 2026-11-28"
    )


def test_a_day_that_has_expired_is_not_called_fetchable():
    assert completeness(figures(EVERY_DAY, gap([DAYS[0]], []))) == "1 day missing: 2026-10-31 (no longer fetchable)"
    assert completeness(figures(EVERY_DAY, gap([DAYS[0], DAYS[28]], []))) == (
        "2 days missing: 2026-10-31, 2026-11-28 (fetchable until 2026-12-04 23:59 UTC; 2026-10-31 no longer fetchable)"
    )
    retained_for_30_days = replace(
        gap([DAYS[1]], [], "lbank"), deadlines_ms={DAYS[1]: int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) * 1000}
    )
    assert completeness(figures(EVERY_DAY, gap([DAYS[0], DAYS[1]], []), retained_for_30_days)) == (
        "2 days missing: 2026-10-31, 2026-11-01 (fetchable until 2026-11-30 23:59 UTC; "
        "2026-10-31 no longer fetchable; a part of 2026-11-01 no longer fetchable)"
    )
    unlimited = replace(gap([DAY], []), deadlines_ms={DAY: None})
    assert completeness(figures(EVERY_DAY, unlimited)) == "1 day missing: 2026-11-29"


def test_each_kind_of_earnings_has_its_gaps():
    assert gaps(figures(EVERY_DAY)) == []
    assert gaps(replace(figures(EVERY_DAY, gap(DAYS[:2], DAYS[3:4])), stale=[DAY], unpriced=[DAY])) == [
        "binance rebate: 2026-10-31, 2026-11-01 not landed (no longer fetchable)",
        "binance rebate: 2026-11-03 landed, may still change",
        "2026-11-29: some landed rows or prices have not been added up yet",
        "market prices: 2026-11-29 not landed, so some values in USDT may be missing",
    ]


def test_the_text_has_the_total_in_its_first_line_and_what_it_lacks():
    by_day = [*EVERY_DAY, DayTotal(DAY, "lbank", "", 5, Decimal("12.5"), Decimal("2.5"), ["OLD", "NEW"])]

    assert text(figures(by_day, gap([], [DAY], "lbank"))).splitlines() == [
        "2026-11-29: 112.50 USDT, +12.5 % against the mean of the 7 days before.",
        "binance 100.00, lbank 12.50 USDT.",
        "7 days 712.50, 30 days 3,012.50 USDT.",
        "May still change: lbank rebate.",
        "2.50 USDT of the total as stated by exchanges: no market price.",
        "Without a value in USDT, so not in the total: NEW, OLD.",
        "1 day may still change: 2026-11-29.",
    ]
    unvalued = DayTotal(DAYS[9], "lbank", "", 5, Decimal(0), Decimal(0), ["OLD"])
    assert "Without a value in USDT on earlier days, so not in the longer totals: OLD." in text(
        figures([*EVERY_DAY, unvalued])
    )
    assert text(replace(figures(EVERY_DAY), is_sandbox=True)).startswith(
        "Sandbox data. Not real earnings.\n2026-11-29: 100"
    )
    assert text(figures(EVERY_DAY), days=7).splitlines() == [
        "2026-11-23…29: 700.00 USDT, ±0.0 % against the 7 days before.",
        "30 days 3,000.00 USDT.",
        f"{COMPLETE}.",
    ]


def test_a_partial_total_is_not_presented_as_the_whole():
    assert "2026-11-29: 100.00 USDT so far, " in text(figures(EVERY_DAY, gap([DAY], [])))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(DAYS),
            st.sampled_from(["binance", "lbank"]),
            st.sampled_from(["", "acme"]),
            st.decimals(allow_nan=False, allow_infinity=False, places=18),
        ),
        unique_by=lambda line: line[:3],
    )
)
def test_totals_are_exact_sums(lines):
    by_day = [DayTotal(day, exchange, account, 1, usdt, Decimal(0)) for day, exchange, account, usdt in lines]

    found = headline(figures(by_day))

    for total, days in ((found.total, [DAY]), (found.week, DAYS[-7:]), (found.month, DAYS)):
        assert Fraction(total.usdt) == sum(Fraction(each.usdt) for each in by_day if each.day in days)
