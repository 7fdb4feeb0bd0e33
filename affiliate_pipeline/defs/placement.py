"""How the package's definitions appear in a code location: keys, names, owners, tags and initial status."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from affiliate_pipeline.defs.resources import PipelineResource


@dataclass(frozen=True)
class Placement:
    """The place of these definitions in a code location; by default, that of this package's own.

    Only Dagster's asset keys have the prefix: tables, ledger, run state and the texts of alerts use the key without it,
    so that they stay the same when the prefix changes.
    """

    key_prefix: tuple[str, ...] = ()
    # Begins the names of schedules, sensors and resources, which are unique in a code location.
    name_prefix: str = ""
    # Follows the prefix in names that contain no account (such as the sensor `watch`), so that a second set of
    # definitions, for other accounts, has other names.
    scope: str = ""
    # Without `group_name`, there is one group per account; without `owners`, one team per account and role.
    group_name: str | None = None
    owners: tuple[str, ...] = ()
    op_tags: Mapping[str, Any] = field(default_factory=dict[str, Any])
    schedules: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED
    # Sensors that request runs in normal operation, as schedules do: of kickback exports and of stale commission days.
    requesting: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING
    # Sensors that request overdue days, raise alerts and deliver them.
    monitoring: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING

    def key(self, asset: str) -> dg.AssetKey:
        """Dagster's key of the asset: `binance/if_new_user`, below the prefix."""
        return dg.AssetKey([*self.key_prefix, *asset.split("/")])

    def asset(self, key: dg.AssetKey) -> str:
        """The asset that has this key, without the prefix."""
        return "/".join(key.path[len(self.key_prefix) :])

    def name_without_scope(self, name: str) -> str:
        """The name, in this code location, of what belongs to the account in `name`; so `scope` is not added."""
        return f"{self.name_prefix}{name}"

    def name_of_schedule(self, name: str, at: time, zone: ZoneInfo) -> str:
        """The name in this code location of a daily schedule: `binance_records_0015_utc`.

        Released names do not change: Dagster stores by name whether a schedule is running.
        """
        zone_name = re.sub(r"[^a-z0-9]+", "_", zone.key.lower())
        return self.name_without_scope(f"{name}_{at:%H%M}_{zone_name}")

    def name(self, name: str) -> str:
        """The name in this code location of a sensor or resource that serves all accounts."""
        return f"{self.common_prefix}{name}"

    @property
    def common_prefix(self) -> str:
        """What the names that serve all accounts begin with."""
        return f"{self.name_prefix}{self.scope}"

    def group_of(self, own: str) -> str:
        """The group of an asset that is in the group `own` by default."""
        return self.group_name or own

    def owners_of(self, team: str) -> list[str]:
        """The owners of an asset that this team owns by default."""
        return [*self.owners] or [f"team:{team}"]

    @property
    def resource(self) -> str:
        """The key of the resource that assets, schedules and sensors require."""
        return self.name("pipeline")

    @property
    def rows(self) -> str:
        """The key of the IO manager that loads landed rows for downstream assets."""
        return self.name("rows")

    @property
    def required(self) -> set[str]:
        """The keys of the resources that assets, schedules and sensors require."""
        return {self.resource}

    def pipeline(
        self, context: dg.AssetExecutionContext | dg.SensorEvaluationContext | dg.ScheduleEvaluationContext
    ) -> PipelineResource:
        """The resource of the run or tick."""
        pipeline: PipelineResource = getattr(context.resources, self.resource)
        return pipeline


# This package's own code location, where names and keys have no prefix.
OWN = Placement()
