"""The third stage of landing: write a prepared day in one transaction and verify the table."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Final

import psycopg
from psycopg import Connection, sql

from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges import pending_actions
from affiliate_pipeline.exchanges.endpoint import ActionLog, Endpoint
from affiliate_pipeline.exchanges.fetching import DayBatch
from affiliate_pipeline.exchanges.spool import Spool
from affiliate_pipeline.landing import endpoint_tables, ledger, quarantine
from affiliate_pipeline.landing.endpoint_tables import DayStats, stats_of
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.landing.prepare import Block, PreparedDay, Summary
from affiliate_pipeline.postgres.errors import as_store_unavailable, is_unusable
from affiliate_pipeline.postgres.locks import Lock
from affiliate_pipeline.schema.fingerprint import Fingerprint

SUPERSEDED: Final = "affiliate.superseded_row"
UNKNOWN_FIELDS: Final = "affiliate.unknown_field"
PRIVILEGES = {SUPERSEDED: "insert", UNKNOWN_FIELDS: "select insert"}


class StoreError(AffiliateError):
    """A day could not be written; its stored rows are unchanged."""

    action = "Fix the cause, then materialize with run config from_rejected: true"

    def __init__(self, what: str) -> None:
        super().__init__(what, self.action)


class Shrunken(StoreError):
    """Landed rows would be removed because the source no longer sends them."""

    action = (
        "If the source is correct, materialize with run config allow_shrink: true; the removed rows are then stored in "
        f"{SUPERSEDED}"
    )


@dataclass(frozen=True)
class Landed:
    """The table has exactly the rows of the source for the day.

    `changed`: rows were written. `restated`: the previous stats of a settled day that the source has changed.
    `new_fields`: unknown fields seen for the first time. `note` and `warnings` are for people; a warning fails the
    day's check.
    """

    day: date
    stats: DayStats
    content_hash: str
    settled: bool
    source: str
    changed: bool
    requests: int
    unknown_fields: Mapping[str, int]
    new_fields: Sequence[str]
    note: str
    warnings: Sequence[str]
    restated: DayStats | None = None


class _Rows:
    """The COPY text of blocks, readable once; `summary` covers the blocks read so far."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = blocks
        self.summary = Summary()

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.summary += block.summary
            yield block.copy_text


def asset_lock(asset: str) -> Lock:
    """The session lock that a run holds while it lands the asset."""
    return Lock("affiliate_pipeline.asset", asset)


@dataclass(frozen=True)
class DayWriter:
    """Writes days of one endpoint; `connection` has to hold the `asset_lock`."""

    connection: Connection
    endpoint: Endpoint
    # The source of the API key in use, and the sources of all keys of its account.
    source: str
    sources: Sequence[str]
    run_id: str
    allow_shrink: bool

    def write(self, day: PreparedDay, *, settled: bool) -> Landed:
        """Replace the day's rows, or append them to an action log, in one transaction.

        An unchanged day is not rewritten; a changed one is verified before the commit. Raises `Invalid`, `Shrunken`,
        `StoreError` or `StoreUnavailable`; the day is then unchanged.
        """
        with as_store_unavailable():
            try:
                with self.connection.transaction():
                    return self._write(day, settled)
            except psycopg.Error as error:
                if self.connection.closed or is_unusable(error):
                    raise
                raise StoreError(f"PostgreSQL rejected the rows: {_reason_of(error)}") from None

    def _write(self, prepared: PreparedDay, settled: bool) -> Landed:
        batch, day, asset = prepared.batch, prepared.batch.day, self.endpoint.key
        altering_features = self._lock_and_inspect(day)
        entry = ledger.entries(self.connection, asset, [day]).get(day)
        # The stored rows that remain: only an action log's, to which rows are appended.
        existing = Summary()
        if entry and isinstance(self.endpoint, ActionLog):
            existing = Summary(entry.rows, Fingerprint.parse(entry.content_hash))

        rows = _Rows(prepared.blocks)
        # Spool the texts only if a comparison with the stored rows may read them again: otherwise COPY loads each block
        # while the next ones are decoded.
        texts: Iterable[bytes] = Spool(rows) if entry or altering_features else rows

        # How the table differs from the rows that had landed, filled only if the source still has exactly these rows.
        # If the table differs, the day is landed again.
        difference = ""
        shrinking = ""
        restated: DayStats | None = None
        if entry:
            # The spool has read all rows, so their summary is complete.
            total = existing + rows.summary
            is_unchanged = (entry.rows, entry.content_hash) == (total.rows, str(total.fingerprint))
            if is_unchanged:
                stats = self._stats(day)
                difference = _count_difference(stats, total)
                # `texts` lacks the existing rows of an action log, so compare only its row count.
                if not difference and not existing.rows:
                    difference = self._content_difference(day, texts)
                if not difference:
                    ledger.confirm(self.connection, asset, day, settled=settled)
                    return self._finish(batch, total, stats, settled, changed=False)

            shrinking = self._shrinking(batch, entry, total.rows, settled=settled)
            if shrinking and not self.allow_shrink:
                raise Shrunken(shrinking)
            if entry.settled and not difference:
                restated = self._stats(day)

        store_superseded = bool(restated or difference or shrinking)
        self._replace(day, texts, is_appended=bool(existing.rows), store_superseded=store_superseded)
        # Again, since without a spool the rows have been read only by COPY.
        total = existing + rows.summary
        ledger.write(self.connection, asset, day, self.run_id, total.rows, str(total.fingerprint), settled, self.source)
        stats = self._stats(day)
        self._verify(day, texts, total, stats, altering_features)

        if difference:
            warning = (
                f"the table had {difference}, although the source has not changed the day: it was landed again, and the "
                f"stored rows that differed are in {SUPERSEDED}"
            )
            batch = replace(batch, warnings=(*batch.warnings, warning))
        landed = self._finish(batch, total, stats, settled, changed=True)
        return replace(landed, restated=restated)

    def _finish(self, batch: DayBatch, total: Summary, stats: DayStats, settled: bool, *, changed: bool) -> Landed:
        """Drop the day's rejected rows and record its unknown fields; return the outcome."""
        quarantine.drop(self.connection, self.endpoint.key, batch.day)
        damaged = (
            f"{name} has U+FFFD in {count_of(count, 'row')}: the exchange sent invalid text there, such as "
            "half an emoji. Everything else landed as sent"
            for name, count in total.damaged.items()
        )
        return Landed(
            day=batch.day,
            stats=stats,
            content_hash=str(total.fingerprint),
            settled=settled,
            source=self.source,
            changed=changed,
            requests=batch.requests,
            unknown_fields=total.unknown_fields,
            new_fields=self._record_new_fields(total, batch.day),
            note=batch.note,
            warnings=[*batch.warnings, *damaged],
        )

    def _lock_and_inspect(self, day: date) -> list[str]:
        """Lock the day and the table's definition for this transaction.

        The transaction-level lock protects the day even if session-level locks are lost. Returns the features of the
        table that could change rows as they are written (triggers, column types). Raises `StoreError` if the session has
        lost the asset's lock.
        """
        with self.connection.cursor() as cursor:
            # Separate statements, so that those after the lock see all that an earlier landing committed.
            cursor.execute(
                sql.SQL(
                    "select pg_advisory_xact_lock({day}); "
                    # From here on, no other session can change the table's definition.
                    "lock table {table} in row exclusive mode; "
                    "select exists (select {from_pg_locks} and pid = pg_backend_pid()), ({altering_features})"
                ).format(
                    day=ledger.day_lock(self.endpoint.key, day).key,
                    table=endpoint_tables.table(self.endpoint),
                    from_pg_locks=asset_lock(self.endpoint.key).from_pg_locks,
                    altering_features=endpoint_tables.altering_features_query(self.connection, self.endpoint),
                )
            )
            # Only the last statement's result is needed.
            while cursor.nextset():
                pass
            ((has_asset_lock, altering_features),) = cursor.fetchall()
        if not has_asset_lock:
            raise StoreError(
                "this run no longer holds the asset's lock, so another run may be landing the same day. The usual cause is a "
                "pooler that runs each transaction in another session: use the direct address of the server"
            )
        return altering_features

    def _stats(self, day: date) -> DayStats:
        return stats_of(self.connection, self.endpoint, day)

    def _content_difference(self, day: date, texts: Iterable[bytes], *, only_new: bool = False) -> str:
        """What to report if the day's rows, or only those that this transaction wrote, differ from `texts`; else empty."""
        names = endpoint_tables.data_columns(self.endpoint.schema)
        self.connection.execute(
            sql.SQL("create temporary table received ({}) on commit drop").format(
                endpoint_tables.definitions(self.endpoint.schema)
            )
        )
        self._copy(sql.Identifier("received"), names, texts)

        received = sql.SQL("select {} from received").format(names)
        stored = sql.SQL("select {} from {}").format(names, endpoint_tables.rows_of(self.endpoint, day))
        if only_new:
            # Rows of this transaction: now() is its start, and the default of `landed_at`.
            stored += sql.SQL(" and landed_at = now()")
        # Compare as text: as `numeric`, 1.0 and 1.00 are equal.
        content = "select count(*) || ' ' || coalesce(sum(hashtextextended(each::text, 0)), 0) from ({}) each"
        comparison = sql.SQL(f"select ({content}) = ({content})").format(received, stored)
        ((is_same,),) = self.connection.execute(comparison).fetchall()
        self.connection.execute("drop table received")
        return "" if is_same else "different values"

    def _verify(
        self, day: date, texts: Iterable[bytes], total: Summary, stats: DayStats, altering_features: Sequence[str]
    ) -> None:
        """Raise `StoreError` unless the table has exactly the rows that were to be written.

        The content is read back only if a feature of the table (see `_lock_and_inspect`) could have changed it.
        """
        difference = _count_difference(stats, total)
        if altering_features and not difference:
            # Otherwise deferred triggers would run after the comparison.
            self.connection.execute("set constraints all immediate")
            difference = _count_difference(self._stats(day), total)
            if not difference:
                difference = self._content_difference(day, texts, only_new=True)
        if difference:
            features = f" ({', '.join(altering_features)})" if altering_features else ""
            raise StoreError(
                f"{self.endpoint.table} would have {difference} for the day, so it was not changed. Something "
                f"else writes to this table or changes what is written to it{features}: stop or remove it"
            )

    def _shrinking(self, batch: DayBatch, entry: LedgerEntry, rows: int, *, settled: bool) -> str:
        """Why landed rows that would be removed may still be at the source; empty if there is no reason."""
        matching = partial(endpoint_tables.matching_values, self.connection, self.endpoint, batch.day)
        without_list = matching(batch.without_list)
        if without_list:
            what = ", ".join(f"{name} {value}" for name, value in without_list[0].items())
            example = f", for example of {what}" if what else ""
            return f"the exchange sent no list (null) where rows had landed{example}"

        if rows < entry.rows and settled:
            return f"{count_of(entry.rows, 'row')} had landed and the source now has {rows}"

        excluded = matching(batch.excluded)
        if excluded:
            users = ", ".join(value for values in excluded for value in values.values())
            return f"the exchange now refuses {users}, whose rows had landed"
        return ""

    def _replace(self, day: date, texts: Iterable[bytes], *, is_appended: bool, store_superseded: bool) -> None:
        """Write `texts` as the day's only rows or, if `is_appended`, in addition to its stored rows.

        With `store_superseded`, stored rows that are no longer there, or differ, are copied to `SUPERSEDED`.
        """
        execute = self.connection.execute
        table, names = endpoint_tables.table(self.endpoint), endpoint_tables.data_columns(self.endpoint.schema)
        rows = endpoint_tables.rows_of(self.endpoint, day)
        stored = sql.SQL("select {} from {}").format(names, rows)
        if store_superseded:
            execute(sql.SQL("create temporary table superseded on commit drop as {}").format(stored))

        if not is_appended:
            execute(sql.SQL("delete from {}").format(rows))
        # The defaults of the columns that COPY omits read these settings.
        execute(
            "select set_config('affiliate.partition_date', %s, true), set_config('affiliate.account', %s, true), "
            "set_config('affiliate.run_id', %s, true)",
            (day.isoformat(), self.endpoint.alias, self.run_id),
        )
        self._copy(table, names, texts)
        if isinstance(self.endpoint, ActionLog):
            pending_actions.drop_landed(self.connection, self.endpoint.key, self.sources)

        if store_superseded:
            # Compare as text: as `numeric`, 1.0 and 1.00 are equal. Equal rows are numbered: each copy counts.
            execute(
                sql.SQL(
                    "with old as ("
                    "select to_jsonb(s) payload, s::text line, row_number() over (partition by s::text) copy_number "
                    "from superseded s), "
                    "new as ("
                    "select s::text line, row_number() over (partition by s::text) copy_number "
                    "from ({stored}) s) "
                    f"insert into {SUPERSEDED} "
                    "select %s, %s, %s, now(), payload from old "
                    "where not exists (select from new where new.line = old.line and new.copy_number = old.copy_number)"
                ).format(stored=stored),
                (self.endpoint.key, day, self.run_id),
            )

    def _copy(self, table: sql.Identifier, names: sql.Composed, texts: Iterable[bytes]) -> None:
        copy = sql.SQL("copy {} ({}) from stdin (format csv)").format(table, names)
        with self.connection.cursor() as cursor, cursor.copy(copy) as copying:
            for text in texts:
                copying.write(text)

    def _record_new_fields(self, total: Summary, day: date) -> list[str]:
        """Record the unknown fields; return those seen for the first time."""
        if not total.unknown_fields:
            return []
        new = self.connection.execute(
            f"insert into {UNKNOWN_FIELDS} "
            "select %s, name, %s, now() from unnest(%s::text[]) name "
            "on conflict do nothing returning name",
            (self.endpoint.key, day, list(total.unknown_fields)),
        )
        return sorted(name for (name,) in new)


def _count_difference(stats: DayStats, total: Summary) -> str:
    """How the table's row count differs from the total; empty if it does not."""
    return "" if stats.rows == total.rows else f"{count_of(stats.rows, 'row')} instead of {total.rows}"


def _reason_of(error: psycopg.Error) -> str:
    """PostgreSQL's reason with row and column, without the fields that quote whole rows."""
    in_copy = re.search(r"^COPY .*?, line ([0-9]+)(?:, column (\w+))?", error.diag.context or "")
    row, copied_column = in_copy.groups() if in_copy else (None, None)
    column = error.diag.column_name or copied_column
    position: list[str] = []
    if row:
        position.append(f"row {row}")
    if column:
        position.append(f"column {column}")

    reason = redact(error.diag.message_primary or type(error).__name__)
    return f"{reason} ({', '.join(position)})" if position else reason
