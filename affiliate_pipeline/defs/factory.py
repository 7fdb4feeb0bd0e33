"""All definitions of some accounts, for this package's own code location and for any other."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Literal

import dagster as dg

from affiliate_pipeline.commission.rollup import derived_assets
from affiliate_pipeline.defs.accounts import Account
from affiliate_pipeline.defs.accounts_pipeline import AccountsPipeline
from affiliate_pipeline.defs.arguments import AffiliateDatabase, Alerts, InvalidArgument
from affiliate_pipeline.defs.commission_assets import build_earnings, build_stale_days
from affiliate_pipeline.defs.endpoint_assets import build_asset, build_reference_table
from affiliate_pipeline.defs.landed_rows import landed_rows
from affiliate_pipeline.defs.placement import Placement
from affiliate_pipeline.defs.resources import require_running
from affiliate_pipeline.defs.schedules import build_schedules
from affiliate_pipeline.defs.sensors.alert_delivery import build_alert_delivery
from affiliate_pipeline.defs.sensors.digest import build_digest
from affiliate_pipeline.defs.sensors.failures import build_failed_run_alert, build_failing_tick_alert
from affiliate_pipeline.defs.sensors.kickback_history import (
    build_kickback_history,
    build_missed_days_schedule,
    export_endpoints,
)
from affiliate_pipeline.defs.sensors.overdue import build_heartbeat, build_watch
from affiliate_pipeline.domain.settings import DEFAULT_START_DATE, Digest
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records, ReferenceTable
from affiliate_pipeline.exchanges.registry import DEFAULT, Catalog

# Whether schedules or sensors run without being started in the UI; None: there are none.
Status = Literal["running", "stopped"] | None


def build_definitions(
    accounts: Sequence[Account],
    *,
    database: AffiliateDatabase,
    endpoints: Sequence[str] | None = None,
    start_date: str | date = DEFAULT_START_DATE,
    key_prefix: Sequence[str] = (),
    group_name: str | None = None,
    owners: Sequence[str] = (),
    op_tags: Mapping[str, Any] | None = None,
    schedules: Status = "stopped",
    monitoring: Status = "stopped",
    alerts: Alerts | None = None,
    commission: bool = False,
    prices: bool = False,
) -> dg.Definitions:
    """The definitions of these accounts, to be merged into those of a Dagster project.

    They read only the environment variables that the arguments name, and those of proxies and certificates. They
    contain no executor. Raises `InvalidArgument`.

    Args:
        accounts: At most one per exchange and alias. The first one is part of the names of sensors, by which Dagster
            stores their state, so add others after it.
        database: Where records land, whatever Dagster's own storage is.
        endpoints: Names such as `trade_user`, for every account that can reach them; by default all that an account can.
        start_date: The first partition.
        key_prefix: Begins each asset key, `<key_prefix>/<exchange>[/<alias>]/<endpoint>`.
        group_name: The group of all assets; by default one per account, `<exchange>[_<alias>]`.
        owners: The owners of all assets; by default a team per account and role.
        op_tags: Tags of each asset's op.
        schedules: The initial status of schedules, and of the sensors that request runs as schedules do. None: there
            are none.
        monitoring: The initial status of the sensors that request overdue days, raise alerts and deliver them. None:
            there are none, and no alerts.
        alerts: Where alerts about these assets go; without it, no sensor raises or delivers any.
        commission: Whether to add `affiliate/daily_commission`, the same per customer, and `affiliate/daily_report`.
        prices: Whether `commission` also adds `affiliate/price`, from Binance's public markets.
    """
    _check(accounts, database)
    if alerts:
        alerts.check(has_commission=commission)

    prefix = _listed(key_prefix)
    name_parts = ["affiliate", *map(_identifier, prefix)]
    start = date.fromisoformat(start_date) if isinstance(start_date, str) else start_date
    placement = Placement(
        key_prefix=prefix,
        name_prefix="_".join(name_parts) + "_",
        scope=f"{accounts[0].group}_",
        group_name=group_name,
        owners=_listed(owners),
        op_tags=op_tags or {},
        schedules=_schedule_status(schedules),
        requesting=_sensor_status(schedules),
        monitoring=_sensor_status(monitoring),
    )

    # Without monitoring, no sensor would deliver what is raised.
    active_alerts = None if monitoring is None else alerts
    endpoint_names = None if endpoints is None else _listed(endpoints)
    return assemble(
        catalog_of(accounts, endpoint_names),
        lambda _: start,
        placement,
        _resources(accounts, database, start, active_alerts, placement),
        has_schedules=schedules is not None,
        has_monitoring=monitoring is not None,
        has_alerts=active_alerts is not None,
        has_commission=commission,
        has_prices=prices,
        digest=active_alerts.digest if active_alerts else "off",
    )


def catalog_of(accounts: Sequence[Account], names: Sequence[str] | None = None) -> Catalog:
    """Endpoints and reference tables that the accounts can reach; with `names`, only these and the tables they read.

    Raises `InvalidArgument` if a name is unknown or no account can reach it.
    """
    declared: list[Endpoint | ReferenceTable] = [*DEFAULT.endpoints, *DEFAULT.reference_tables]
    known = [each.name for each in declared]
    explicit_names = names or ()
    unknown = [name for name in explicit_names if name not in known]
    if unknown:
        raise InvalidArgument(f"unknown endpoints: {', '.join(unknown)}. Known are {', '.join(known)}")

    endpoints: list[Endpoint] = []
    tables: list[ReferenceTable] = []
    for account in accounts:
        reachable = [endpoint for endpoint in DEFAULT.endpoints if account.reaches(endpoint)]
        selected = [endpoint for endpoint in reachable if names is None or endpoint.name in names]
        endpoints += [endpoint.for_account(account.alias, account.names) for endpoint in selected]

        # Tables are selected by their own name, or by that of an endpoint that reads them.
        selected_names = {endpoint.name for endpoint in selected} | set(explicit_names)
        for table in DEFAULT.reference_tables:
            if account.reaches(table.endpoint) and selected_names & {table.name, *table.read_by}:
                tables.append(table.for_account(account.alias, account.names))

    reached = {each.name for each in (*endpoints, *tables)}
    unreached = [name for name in explicit_names if name not in reached]
    if unreached:
        raise InvalidArgument(f"no account has what {', '.join(unreached)} requires")
    return Catalog(tuple(endpoints), tuple(tables))


def _resources(
    accounts: Sequence[Account], database: AffiliateDatabase, start: date, alerts: Alerts | None, placement: Placement
) -> dict[str, dg.ResourceDefinition]:
    """The resources by key: the database, the accounts and, made of both, the pipeline.

    Assets, schedules and sensors require only the pipeline. Database and accounts are resources so that Dagster's UI
    shows them.
    """
    database_key = placement.name("database")
    accounts_by_key = {placement.name_without_scope(each.group): each for each in accounts}

    def pipeline(context: dg.InitResourceContext) -> AccountsPipeline:
        require_running(context.run)
        resources: Any = context.resources
        return AccountsPipeline(
            [getattr(resources, key) for key in accounts_by_key],
            getattr(resources, database_key),
            start,
            alerts,
            # Separates these alerts from those of other definitions in the database.
            alert_scope=placement.common_prefix,
        )

    return {
        database_key: database.resource(),
        **{key: account.resource() for key, account in accounts_by_key.items()},
        placement.resource: dg.ResourceDefinition(
            pipeline,
            description="Sessions with the accounts, and the database; credentials are read when a session is opened.",
            required_resource_keys={database_key, *accounts_by_key},
        ),
    }


def _check(accounts: Sequence[Account], database: AffiliateDatabase) -> None:
    if not accounts:
        raise InvalidArgument("no account is given")
    for each in (*accounts, database):
        each.check()

    accounts_per_group = Counter(account.group for account in accounts)
    duplicates = sorted(group for group, count in accounts_per_group.items() if count > 1)
    if duplicates:
        raise InvalidArgument(
            f"{', '.join(duplicates)}: two accounts have the same exchange and alias. Give one an alias"
        )

    # Each account is compared with the first one of the same exchange and base URL.
    first_accounts: dict[tuple[str, str | None], Account] = {}
    for account in accounts:
        first = first_accounts.setdefault((account.exchange.name, account.base_url), account)
        if first.shared_limit != account.shared_limit:
            raise InvalidArgument(
                f"{first.title} and {account.title} share a rate limit, so weight_per_minute and rate_scale must be "
                "equal"
            )


def _listed(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts; a single one may be given without a list."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text, flags=re.ASCII)


def _schedule_status(status: Status) -> dg.DefaultScheduleStatus:
    return dg.DefaultScheduleStatus.RUNNING if status == "running" else dg.DefaultScheduleStatus.STOPPED


def _sensor_status(status: Status) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if status == "running" else dg.DefaultSensorStatus.STOPPED


def assemble(
    catalog: Catalog,
    first_day: Callable[[Endpoint], date],
    placement: Placement,
    resources: Mapping[str, Any],
    *,
    executor: dg.ExecutorDefinition | None = None,
    has_schedules: bool = True,
    has_monitoring: bool = True,
    has_alerts: bool = True,
    has_commission: bool = True,
    has_prices: bool = False,
    digest: Digest = "off",
) -> dg.Definitions:
    """The definitions of the catalog's assets, of what is derived from them, and of their schedules and sensors.

    Args:
        first_day: Returns an endpoint's first partition.
        resources: By key; one is `placement.resource`.
    """
    endpoints = catalog.endpoints
    earning = catalog.earning if has_commission else ()
    assets = _assets(catalog, earning, first_day, placement, has_prices=has_prices)

    schedules: list[dg.ScheduleDefinition] = []
    sensors: list[dg.SensorDefinition] = []
    if has_schedules:
        schedules += build_schedules(endpoints, placement)
        endpoint_keys = {endpoint.key for endpoint in endpoints}
        for kickbacks in export_endpoints(endpoints):
            if {kickbacks.recent.key, kickbacks.request.key} <= endpoint_keys:
                schedules.append(build_missed_days_schedule(kickbacks, placement))
            sensors.append(build_kickback_history(kickbacks, placement))
        if earning:
            sensors.append(build_stale_days(earning, placement, has_prices=has_prices))

    # Without a monitored asset, the sensor's selection would be empty, which Dagster rejects.
    if has_monitoring and any(endpoint.timetable.is_monitored for endpoint in endpoints):
        sensors.append(build_watch(endpoints, placement))

    if has_alerts:
        derived = derived_assets(has_prices=has_prices) if earning else ()
        sensors += [
            build_failed_run_alert(catalog, derived, placement),
            build_alert_delivery(endpoints, placement),
            build_heartbeat(endpoints, placement),
        ]
        if earning and digest != "off":
            sensors.append(build_digest(earning, digest, placement, has_prices=has_prices))
        sensors.append(build_failing_tick_alert([*schedules, *sensors], placement))

    return dg.Definitions(
        assets=assets,
        resources={**resources, placement.rows: landed_rows(placement)},
        schedules=schedules,
        sensors=sensors,
        executor=executor,
    )


def _assets(
    catalog: Catalog,
    earning: Sequence[Records],
    first_day: Callable[[Endpoint], date],
    placement: Placement,
    *,
    has_prices: bool,
) -> list[dg.AssetsDefinition]:
    """The catalog's assets, and the assets derived from the endpoints `earning`."""
    # Each asset's backfill policy is in beta: a warning per asset and process would bury everything else in the logs.
    with warnings.catch_warnings(action="ignore", category=dg.BetaWarning):
        assets: list[dg.AssetsDefinition] = []
        for endpoint in catalog.endpoints:
            tables = [table for table in catalog.reference_tables if table.is_read_by(endpoint)]
            assets.append(build_asset(endpoint, first_day(endpoint), placement, tables))
        assets += [build_reference_table(table, placement) for table in catalog.reference_tables]
        if earning:
            start = min(map(first_day, earning))
            assets.append(build_earnings(earning, start, placement, has_prices=has_prices))
        return assets
