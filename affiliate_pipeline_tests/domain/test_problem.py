"""Problems have separate fields, are rendered in one place, and survive JSON."""

from datetime import date

import pytest

from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.app.embedded_server.server import ServerError
from affiliate_pipeline.domain.problem import AffiliateError, Problem, SettingsError, grouped
from affiliate_pipeline.exchanges.spool import SpoolFull
from affiliate_pipeline.http.errors import AccessRefused, ExchangeError, RateLimited, Transient
from affiliate_pipeline.landing.day_writer import Shrunken, StoreError
from affiliate_pipeline.postgres.errors import StoreUnavailable

REFUSED = Problem("refused", "Binance returned HTTP 500", "Nothing of this day has landed", "Materialize it again")


def test_a_problem_is_rendered_as_what_impact_and_action():
    assert str(REFUSED) == "Binance returned HTTP 500. Nothing of this day has landed. Materialize it again"
    assert str(Problem("refused", "it failed", action="Try again")) == "it failed. Try again"


def test_added_sentences_follow_the_existing_ones():
    assert REFUSED.adding(impact="Others landed").impact == "Nothing of this day has landed. Others landed"
    assert Problem("", "it failed").adding(action="Try again").action == "Try again"


def test_a_problem_survives_json():
    assert Problem.from_json(REFUSED.to_json()) == REFUSED


def test_days_with_the_same_problem_are_grouped():
    first, second, third = (date(2026, 11, day) for day in (1, 2, 3))
    other = Problem("settings_error", "A is not set")
    assert grouped({third: REFUSED, second: other, first: REFUSED}) == {REFUSED: [first, third], other: [second]}


@pytest.mark.parametrize(
    "error",
    [SettingsError, StoreUnavailable, StoreError, Shrunken, ServerError, SpoolFull, ExchangeError, CommandError],
)
def test_every_error_is_an_affiliate_error(error):
    assert issubclass(error, AffiliateError)


def test_an_error_contains_its_problem():
    assert AccessRefused("refused").problem == Problem("access_refused", "refused")
    assert RateLimited("too many.").problem.what == "too many"
    assert isinstance(RateLimited("too many"), Transient)
    error = SettingsError("A is not set", "Set it", impact="Nothing has landed")
    assert error.problem == Problem("settings_error", "A is not set", "Nothing has landed", "Set it")
    assert str(error) == "A is not set. Nothing has landed. Set it"
