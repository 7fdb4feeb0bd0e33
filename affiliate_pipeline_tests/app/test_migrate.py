"""The roles of `docs/least_privilege.sql`: an owner of the tables, a role for everything else, and one for analysts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline_tests.app.totals import add_up
from affiliate_pipeline_tests.defs.affiliates import DAYS as LBANK_DAYS
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import KEY, SETTLED, landed, rebates, sent

ROOT = Path(__file__).parents[2]
STATEMENTS = (ROOT / "docs" / "least_privilege.sql").read_bytes()
ROLES = [sql.Identifier(f"affiliate_{name}") for name in ("owner", "runtime", "analyst")]


@pytest.fixture
def use_role(both_exchanges, database_url, monkeypatch) -> Iterator[Callable[[str], str]]:
    """Configures the database's URL with one of the roles, and returns it."""
    with psycopg.connect(database_url, autocommit=True) as superuser:
        superuser.execute(STATEMENTS)
        for role in ROLES:
            superuser.execute(sql.SQL("alter role {} password 'p'").format(role))

        def use(role: str) -> str:
            url = f"postgresql://affiliate_{role}:p@{database_url.partition('@')[2]}"
            monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
            return url

        yield use
        superuser.execute("grant connect, temporary on database test to public")
        for role in ROLES:
            superuser.execute(sql.SQL("drop owned by {} cascade").format(role))
            superuser.execute(sql.SQL("drop role {}").format(role))


@pytest.mark.empty_database
def test_the_documented_roles_suffice_for_everything(sandbox, query, use_role, capfd, tmp_path, monkeypatch):
    use_role("owner")
    app(["migrate"], standalone_mode=False)
    app(["migrate"], standalone_mode=False)

    runtime = use_role("runtime")
    rows = rebates(SETTLED, 10)
    sandbox.binance.set_rebates(rows)
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(home)) as instance:

        @dg.asset
        def thing() -> None: ...

        assert dg.materialize([thing], instance=instance).success
    for key, day in ((KEY, SETTLED), ("lbank/trade_user", LBANK_DAYS[0])):
        run = land(key, [day])
        assert run.success, run.message
    assert landed(query, SETTLED) == sent(rows)
    add_up([SETTLED])
    unusable = (
        "select oid::regclass::text from pg_class where relkind in ('r', 'v', 'S') "
        "and relnamespace::regnamespace::text = any('{public,affiliate,binance,lbank}') and not case relkind "
        "when 'S' then has_sequence_privilege('affiliate_runtime', oid, 'usage') "
        "else has_table_privilege('affiliate_runtime', oid, 'select') and has_table_privilege('affiliate_runtime', oid, 'insert') "
        "and has_table_privilege('affiliate_runtime', oid, 'update') and has_table_privilege('affiliate_runtime', oid, 'delete') end"
    )
    assert query(unusable) == []
    with psycopg.connect(runtime) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("drop table affiliate.landing")

    analyst = use_role("analyst")
    capfd.readouterr()
    app(["export", KEY, f"{SETTLED}"], standalone_mode=False)
    assert len(capfd.readouterr().out.splitlines()) == 1 + len(rows)
    app(["report", f"{SETTLED}"], standalone_mode=False)
    assert "reports" in capfd.readouterr().out
    app(["who", "abc123"], standalone_mode=False)
    assert "abc123 is ours" in capfd.readouterr().out
    with psycopg.connect(analyst) as session:
        for view in ("v_daily", "v_customer_daily", "v_health"):
            assert session.execute(f"select * from affiliate.{view}".encode()).rowcount > 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("delete from binance.rebate_recent_record")


@pytest.mark.empty_database
def test_what_the_tables_owner_has_to_do_is_reported_with_the_command_or_statement(sandbox, query, use_role):
    use_role("owner")
    app(["migrate"], standalone_mode=False)
    query("alter table binance.rebate_recent_record drop column symbol")
    use_role("runtime")
    sandbox.binance.set_rebates(rebates(SETTLED, 1))
    [reason] = land(KEY, [SETTLED]).failed.values()
    assert "the database's role lacks a privilege" in reason
    assert "`affiliate-pipeline migrate`" in reason

    use_role("owner")
    app(["migrate"], standalone_mode=False)
    use_role("runtime")
    query("revoke insert on affiliate.landing from affiliate_runtime")
    assert "Run `grant insert on affiliate.landing to affiliate_runtime`" in land(KEY, [SETTLED]).failed[SETTLED]
    query("grant insert on affiliate.landing to affiliate_runtime")
    assert land(KEY, [SETTLED]).success

    query("revoke insert on affiliate.computed_day from affiliate_runtime")
    with pytest.raises(AffiliateError) as raised:
        add_up([SETTLED])
    assert "permission denied for table computed_day" in f"{raised.value}"
    assert "grant select, insert, update, delete on table computed_day to" in f"{raised.value}"
