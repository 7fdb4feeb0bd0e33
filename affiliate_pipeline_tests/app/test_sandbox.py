"""The sandbox that `up` serves: with `--fail-day`, one day fails and all others land."""

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.sandbox import failing_days, serving
from affiliate_pipeline.domain.days import DAY
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import KEY


def test_a_day_that_was_chosen_to_fail_fails_alone(database_url, monkeypatch, capsys):
    settings.home().mkdir()
    chosen = failing_days(["yesterday=503", "2020-01-01"])
    (yesterday, status), (old, default) = sorted(chosen.items(), reverse=True)
    assert (f"{old}", default, status) == ("2020-01-01", 500, 503)
    with serving(chosen):
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        for name, value in settings.sandbox_variables().items():
            monkeypatch.setenv(name, value)
        run = land(KEY, [yesterday - DAY, yesterday])
    assert ([*run.landed], [*run.failed]) == ([yesterday - DAY], [yesterday])
    assert "HTTP 503" in run.failed[yesterday]
    assert f"the sandbox fails every request for {yesterday} (at Binance with HTTP 503" in capsys.readouterr().out
