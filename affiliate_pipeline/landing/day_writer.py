"""The only runner of SQL on the data: lands a day in one transaction, and keeps the ledger of what has landed."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.exchanges import pending_actions
from affiliate_pipeline.exchanges.endpoint import ActionLog, Endpoint, Records
from affiliate_pipeline.exchanges.fetching import DayBatch
from affiliate_pipeline.exchanges.spool import Spool
from affiliate_pipeline.landing import endpoint_tables, ledger, quarantine
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.landing.prepare import Block, PreparedDay, Summary
from affiliate_pipeline.postgres import rate_limiter, readiness
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable as StoreUnavailable
from affiliate_pipeline.postgres.errors import is_unusable, unavailable
from affiliate_pipeline.postgres.locks import Lock, locked
from affiliate_pipeline.postgres.table_store import TableStore
from affiliate_pipeline.schema.columns import columns
from affiliate_pipeline.schema.fingerprint import Fingerprint

SUPERSEDED: Final = "affiliate.superseded_row"
UNKNOWN_FIELDS: Final = "affiliate.unknown_field"
_ASSET = "affiliate_pipeline.asset"
_RUN = "affiliate_pipeline.run"


class StoreError(AffiliateError):
    """The database rejected a day, which is unchanged."""


@dataclass(frozen=True)
class DayStats:
    """What the table holds for a day: exact sums (text) by group, the first and last instant (UTC), and in how many rows
    the fee is above the volume."""

    rows: int
    first: datetime | None
    last: datetime | None
    sums: Mapping[str, str]
    fee_above_volume: int = 0


@dataclass(frozen=True)
class Written:
    """A written day: its rows in total, whether any were written, and what the table then holds.

    `restated` is what it held before if the day had settled, `new_fields` are the unknown fields that no earlier day had,
    and `difference` says how the table differed from the ledger before.
    """

    total: Summary
    changed: bool
    stats: DayStats
    restated: DayStats | None
    new_fields: Sequence[str]
    difference: str = ""


class _Rows:
    """The COPY text of blocks, which can be read once; `summary` adds up what was read."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = blocks
        self.summary = Summary()

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.summary += block.summary
            yield block.copy_text


@dataclass(frozen=True)
class Difference:
    """Where two assets that tell of the same rows do not agree: number of rows and exact sum (text) in each."""

    name: str | None
    rows: int
    total: str
    other_rows: int
    other_total: str

    def __str__(self) -> str:
        return f"{self.name}: {self.rows} rows, {self.total} in all, against {self.other_rows} rows, {self.other_total}"


class Shrunken(StoreError):
    """The source has fewer rows than had landed."""


def rights(assets: Iterable[str]) -> dict[str, str]:
    """What landing days of these assets needs to do with which tables."""
    tables = {SUPERSEDED: "insert", UNKNOWN_FIELDS: "select insert", **rate_limiter.RIGHTS}
    endpoints = {asset.replace("/", "."): endpoint_tables.RIGHTS for asset in assets}
    return tables | ledger.RIGHTS | quarantine.RIGHTS | endpoints


def is_worked_for(url: str, run_id: str) -> bool:
    """Whether a process that said so (`Store.work_for`) is alive and connected."""
    with connect(url, autocommit=True) as connection, unavailable():
        row = connection.execute(sql.SQL("select pg_try_advisory_lock({})").format(Lock(_RUN, run_id).key)).fetchone()
        return not (row and row[0])


class Store(TableStore):
    """One connection to the database that holds the data of one or more endpoints."""

    def __init__(self, url: str) -> None:
        super().__init__(url, autocommit=False)
        self.url = url
        # The assets whose lock this store acquired; its session may have lost it since.
        self._exclusive: set[str] = set()

    @property
    def connection(self) -> psycopg.Connection:
        """For the other modules of this package."""
        return self._connection

    def require_ready(self, *endpoints: Endpoint) -> None:
        """Raises `StoreUnavailable` if days, of these endpoints among others, cannot land in the database."""
        readiness.require(self._connection, rights(endpoint.key for endpoint in endpoints))

    def work_for(self, run_id: str) -> None:
        """Marks the run as live until this connection ends. Raises `StoreUnavailable` if nothing can land."""
        self.require_ready()
        with unavailable(), self._connection.transaction():
            self._connection.execute(sql.SQL("select pg_advisory_lock_shared({})").format(Lock(_RUN, run_id).key))

    @contextmanager
    def exclusive(self, endpoint: Endpoint) -> Iterator[None]:
        """No other run lands the asset meanwhile; waits for the one that does.

        A lock of this connection, and not a Dagster pool: it is gone with the process that held it, however that ended.
        """
        with locked(self._connection, Lock(_ASSET, endpoint.key), endpoint.key):
            self._exclusive.add(endpoint.key)
            try:
                yield
            finally:
                self._exclusive.remove(endpoint.key)

    def create_table(self, endpoint: Endpoint) -> None:
        """The endpoint's table exists and has all columns of its schema."""
        endpoint_tables.ensure(self._connection, endpoint)

    def ledger(self, endpoint: Endpoint, days: Sequence[date] | None = None) -> dict[date, LedgerEntry]:
        """The days, among these if given, that have landed."""
        return ledger.entries(self._connection, endpoint.key, days)

    def write_day(
        self, endpoint: Endpoint, day: PreparedDay, *, settled: bool, source: str, run_id: str, allow_shrink: bool
    ) -> Written:
        """Replace the day by these rows, or append them to an action log, in one transaction; an unchanged day stays.

        What the day then holds is compared with these rows before the commit. Raises `Invalid`, `Shrunken`, `StoreError` or
        `StoreUnavailable`, each with nothing changed.
        """
        key = {"asset": endpoint.key, "partition": day.batch.day}
        entry = {**key, "settled": settled, "source": source, "run_id": run_id}
        with unavailable():
            try:
                with self._connection.transaction():
                    return self._write_day(endpoint, day, entry, allow_shrink)
            except psycopg.Error as error:
                if self._connection.closed or is_unusable(error):
                    raise
                raise StoreError(f"PostgreSQL refused the rows: {_refusal(error)}") from None

    def _write_day(self, endpoint: Endpoint, day: PreparedDay, entry: Mapping[str, Any], allow_shrink: bool) -> Written:
        batch = day.batch
        oddities = self._begin(endpoint, batch.day)
        held = self.ledger(endpoint, [batch.day]).get(batch.day)
        # What an action log holds already, which stays.
        existing = (
            Summary(held.rows, Fingerprint.parse(held.content_hash))
            if held and isinstance(endpoint, ActionLog)
            else Summary()
        )
        rows = _Rows(day.blocks)
        # Rows to be compared with what is stored are read more than once. Others are copied while the next are decoded.
        texts: Iterable[bytes] = Spool(rows) if held or oddities else rows
        difference = ""
        if held:
            total = existing + rows.summary
            if (held.rows, held.content_hash) == (total.rows, str(total.fingerprint)):
                stats = self._stats(endpoint, batch.day)
                difference = self._difference(
                    endpoint, batch.day, texts, total.rows, stats, is_complete=not existing.rows
                )
                if not difference:
                    ledger.confirm(self._connection, endpoint.key, batch.day, settled=bool(entry["settled"]))
                    quarantine.drop(self._connection, endpoint.key, batch.day)
                    return Written(total, False, stats, None, self._new_fields(total, entry))
            if not allow_shrink:
                self._refuse_shrinking(endpoint, batch, held, total.rows, is_final=bool(entry["settled"]))
        restated = self._stats(endpoint, batch.day) if held and held.settled and not difference else None
        self._replace(
            endpoint, texts, entry, is_appended=bool(existing.rows), keep_superseded=bool(restated or difference)
        )
        total = existing + rows.summary
        ledger.write(self._connection, rows=total.rows, content_hash=str(total.fingerprint), **entry)
        quarantine.drop(self._connection, endpoint.key, batch.day)
        stats = self._stats(endpoint, batch.day)
        self._refuse_difference(endpoint, batch.day, texts, total.rows, stats, oddities)
        return Written(total, True, stats, restated, self._new_fields(total, entry), difference)

    def _begin(self, endpoint: Endpoint, day: date) -> list[str]:
        """Begins the day's transaction: until it ends, no other one lands the day, even if session locks are lost.

        Returns the table's features that could change rows while they are written (triggers, column types). Raises
        `StoreError` if the session has lost the asset's lock.
        """
        kinds = {column.name: column.kind.sql for column in columns(endpoint.schema)} | {"extra": "jsonb"}
        with self._connection.cursor() as cursor:
            # Separate statements: those after the lock see all that an earlier landing committed.
            cursor.execute(
                sql.SQL(
                    "select pg_advisory_xact_lock({day}); "
                    # From here on, no other session can change the table's definition.
                    "lock table {table} in row exclusive mode; "
                    "select exists (select {held} and pid = pg_backend_pid()), array("
                    "select 'trigger ' || tgname from pg_trigger where tgrelid = t.oid and not tgisinternal union all "
                    "select 'a table that is not an ordinary one' where relkind <> 'r' union all "
                    "select 'column ' || attname || ' ' || format_type(atttypid, atttypmod) from pg_attribute "
                    "join unnest({names}::text[], {kinds}::regtype[]) as schema (name, kind) on name = attname "
                    "where attrelid = t.oid and not attisdropped and (atttypid, atttypmod) <> (kind::oid, -1)) "
                    "from pg_class t where t.oid = {name}::regclass"
                ).format(
                    day=ledger.day_lock(endpoint.key, day).key,
                    table=endpoint_tables.table(endpoint),
                    held=Lock(_ASSET, endpoint.key).held,
                    names=list(kinds),
                    kinds=list(kinds.values()),
                    name=endpoint_tables.table(endpoint).as_string(self._connection),
                )
            )
            while cursor.nextset():
                pass
            ((is_exclusive, oddities),) = cursor.fetchall()
        if endpoint.key in self._exclusive and not is_exclusive:
            raise StoreError(
                "this run no longer holds the asset's lock, so another one may be landing the day: a pooler that gives each "
                "transaction another session loses it. Use the direct address of the server in AFFILIATE_DATABASE_URL"
            )
        return oddities

    def _difference(
        self,
        endpoint: Endpoint,
        day: date,
        texts: Iterable[bytes],
        rows: int,
        stats: DayStats,
        *,
        is_complete: bool = True,
        written: bool = False,
    ) -> str:
        """How the day's rows in the table differ from these; empty if they do not.

        Args:
            is_complete: `texts` are all `rows`; otherwise only numbers are compared.
            written: compare only the rows that this transaction has written.
        """
        if stats.rows != rows:
            return f"{stats.rows} rows instead of {rows}"
        if not is_complete:
            return ""
        names = endpoint_tables.data_columns(endpoint.schema)
        self._connection.execute(endpoint_tables.temporary_table("received", endpoint.schema))
        self._copy(sql.Identifier("received"), names, texts)
        # Compared as texts: to `numeric`, 1.0 and 1.00 are the same.
        content = "select count(*) || ' ' || coalesce(sum(hashtextextended(each::text, 0)), 0) from ({}) each"
        received = sql.SQL("select {} from received").format(names)
        stored = sql.SQL("select {} from {} where partition_date = {} and {}").format(
            names, endpoint_tables.table(endpoint), day, sql.SQL("landed_at = now()" if written else "true")
        )
        same = sql.SQL(f"select ({content}) = ({content})").format(received, stored)
        row = self._connection.execute(same).fetchone()
        self._connection.execute("drop table received")
        return "" if row and row[0] else "other values"

    def _refuse_difference(
        self,
        endpoint: Endpoint,
        day: date,
        texts: Iterable[bytes],
        rows: int,
        stats: DayStats,
        oddities: Sequence[str],
    ) -> None:
        """Raises `StoreError` unless the day holds what was to be written.

        The content is read back only where something of the table (see `_begin`) could have changed it.
        """
        difference = "" if stats.rows == rows else f"{stats.rows} rows instead of {rows}"
        if oddities and not difference:
            # Deferred triggers would act after the comparison.
            self._connection.execute("set constraints all immediate")
            difference = self._difference(endpoint, day, texts, rows, self._stats(endpoint, day), written=True)
        if difference:
            named = f" ({', '.join(oddities)})" if oddities else ""
            raise StoreError(
                f"{endpoint.key.replace('/', '.')} would hold {difference} for the day, so it was not changed. Something else "
                f"writes to this table or changes what is written to it{named}: "
                "stop or remove it"
            )

    def _refuse_shrinking(
        self, endpoint: Endpoint, batch: DayBatch, held: LedgerEntry, rows: int, *, is_final: bool
    ) -> None:
        """Raises `Shrunken` if rows that had landed would be removed although the source may still have them."""
        self._refuse_unlisted(endpoint, batch)
        if rows < held.rows and is_final:
            raise Shrunken(f"{held.rows} rows had landed and the source now has {rows}")
        if not batch.excluded:
            return
        found = self._connection.execute(
            sql.SQL("select distinct open_id from {} where partition_date = %s and open_id = any(%s)").format(
                endpoint_tables.table(endpoint)
            ),
            (batch.day, list(batch.excluded)),
        ).fetchall()
        if found:
            names = ", ".join(open_id for (open_id,) in found)
            raise Shrunken(f"the exchange now refuses {names}, whose rows had landed")

    def _refuse_unlisted(self, endpoint: Endpoint, batch: DayBatch) -> None:
        if not batch.unlisted:
            return
        names = {column.json_name: column.name for column in columns(endpoint.schema)}
        compared = [names[name] for name in batch.unlisted[0]]
        found = self._connection.execute(
            sql.SQL("select distinct {} from {} where partition_date = %s").format(
                sql.SQL(", ").join([sql.SQL("''"), *(sql.SQL("{}::text").format(sql.Identifier(n)) for n in compared)]),
                endpoint_tables.table(endpoint),
            ),
            (batch.day,),
        ).fetchall()
        landed = {tuple(values) for _, *values in found}
        lost = [each for each in batch.unlisted if tuple(map(str, each.values())) in landed]
        if lost:
            what = ", ".join(f"{names[name]} {value}" for name, value in lost[0].items())
            raise Shrunken(
                f"the exchange sent no list (null) where rows had landed{f', such as of {what}' if what else ''}"
            )

    def _replace(
        self,
        endpoint: Endpoint,
        texts: Iterable[bytes],
        entry: Mapping[str, Any],
        *,
        is_appended: bool,
        keep_superseded: bool,
    ) -> None:
        run = self._connection.execute
        day = entry["partition"]
        table, names = endpoint_tables.table(endpoint), endpoint_tables.data_columns(endpoint.schema)
        held = sql.SQL("select {} from {} where partition_date = {}").format(names, table, day)
        if keep_superseded:
            run(sql.SQL("create temporary table superseded on commit drop as {}").format(held))
        if not is_appended:
            run(sql.SQL("delete from {} where partition_date = {}").format(table, day))
        run(
            "select set_config('affiliate.partition_date', %s, true), set_config('affiliate.run_id', %s, true)",
            (day.isoformat(), entry["run_id"]),
        )
        self._copy(table, names, texts)
        if isinstance(endpoint, ActionLog):
            pending_actions.drop_landed(self._connection, endpoint.key, entry["source"])
        if keep_superseded:
            # Compared as texts: to `numeric`, 1.0 and 1.00 are the same.
            run(
                sql.SQL(
                    "with old as (select to_jsonb(s) payload, s::text line, row_number() over (partition by s::text) n "
                    "from superseded s), "
                    "new as (select h::text line, row_number() over (partition by h::text) n from ({held}) h) "
                    f"insert into {SUPERSEDED} "
                    "select %(asset)s, %(partition)s, %(run_id)s, now(), payload from old "
                    "where not exists (select from new where new.line = old.line and new.n = old.n)"
                ).format(held=held),
                entry,
            )

    def _copy(self, table: sql.Identifier, names: sql.Composed, texts: Iterable[bytes]) -> None:
        copy = sql.SQL("copy {} ({}) from stdin (format csv)").format(table, names)
        with self._connection.cursor() as cursor, cursor.copy(copy) as copying:
            for text in texts:
                copying.write(text)

    def _new_fields(self, total: Summary, key: Mapping[str, Any]) -> list[str]:
        if not total.unknown_fields:
            return []
        new = self._connection.execute(
            f"insert into {UNKNOWN_FIELDS} select %(asset)s, name, %(partition)s, now() from unnest(%(names)s::text[]) name "
            "on conflict do nothing returning name",
            {**key, "names": list(total.unknown_fields)},
        )
        return sorted(name for (name,) in new)

    def stats(self, endpoint: Endpoint, day: date) -> DayStats:
        """What the table holds for the day."""
        with unavailable(), self._connection.transaction():
            return self._stats(endpoint, day)

    def _stats(self, endpoint: Endpoint, day: date) -> DayStats:
        parts = {
            "group": sql.SQL("null"),
            "amount": sql.SQL("null::numeric"),
            "instant": sql.SQL("null::timestamptz"),
            "wrong": sql.SQL("false"),
            "table": endpoint_tables.table(endpoint),
            "day": day,
        }
        if isinstance(endpoint, Records):
            if endpoint.sum_by:
                parts["amount"], parts["group"] = map(sql.Identifier, endpoint.sum_by)
            if endpoint.day_of:
                parts["instant"] = sql.Identifier(endpoint.day_of)
            if endpoint.volume_and_fee:
                parts["wrong"] = sql.SQL("{1} > {0}").format(*map(sql.Identifier, endpoint.volume_and_fee))
        statement = sql.SQL(
            "select {group}::text, sum({amount})::text, count(*), count(*) filter (where {wrong}), min({instant}), "
            "max({instant}) from {table} "
            "where partition_date = {day} group by 1 order by 1"
        ).format(**parts)
        groups = self._connection.execute(statement).fetchall()
        return DayStats(
            rows=sum(count for _, _, count, *_ in groups),
            fee_above_volume=sum(wrong for *_, wrong, _, _ in groups),
            first=min((first for *_, first, _ in groups if first), default=None),
            last=max((last for *_, last in groups if last), default=None),
            sums={name: total for name, total, *_ in groups if total is not None},
        )

    def differences(self, endpoint: Records, other: str, day: date) -> list[Difference] | None:
        """Where the day's rows differ in number or exact sum from those of the asset `other`, by what they are summed by;
        None if that has not landed the day."""
        assert endpoint.sum_by is not None
        amount, group = map(sql.Identifier, endpoint.sum_by)
        sums = sql.SQL("select {} name, count(*) rows, sum({}) total from {} where partition_date = %(day)s group by 1")
        own, others = (sums.format(group, amount, sql.Identifier(*key.split("/"))) for key in (endpoint.key, other))
        if not ledger.entries(self._connection, other, [day]):
            return None
        with unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(
                    "select name, coalesce(own.rows, 0), coalesce(own.total, 0)::text, "
                    "coalesce(others.rows, 0), coalesce(others.total, 0)::text "
                    "from ({}) own full join ({}) others using (name) "
                    "where (own.rows, own.total) is distinct from (others.rows, others.total) order by 1"
                ).format(own, others),
                {"day": day},
            )
            return [Difference(*row) for row in cursor]

    def reject(
        self,
        endpoint: Endpoint,
        day: date,
        run_id: str,
        source: str,
        reason: str,
        rows: Callable[[], Iterable[str]],
        received_ms: int,
        *,
        complete: bool = True,
    ) -> None:
        """Stores what was received for the day, replacing what `reject` stored before. Each call of `rows` yields the JSON
        texts anew. Incomplete rows never replace complete rows, nor a larger number of rows."""
        quarantine.keep(
            self._connection,
            endpoint.key,
            day,
            rows,
            run_id=run_id,
            source=source,
            reason=reason,
            received_ms=received_ms,
            complete=complete,
        )

    def rejected(self, endpoint: Endpoint, day: date) -> quarantine.Rejected | None:
        """The rows kept by `reject`."""
        return quarantine.rejected(self._connection, endpoint.key, day)


def _refusal(error: psycopg.Error) -> str:
    """PostgreSQL's message about rows that it rejected, with row and column; its other fields quote whole rows."""
    place = re.search(r"^COPY .*?, line ([0-9]+)(?:, column (\w+))?", error.diag.context or "")
    column = error.diag.column_name or (place and place[2])
    named = [*([f"row {place[1]}"] if place else []), *([f"column {column}"] if column else [])]
    return redact(error.diag.message_primary or type(error).__name__) + (f" ({', '.join(named)})" if named else "")
