"""What has landed about one user, whom an id or an email names, and which days are missing. Sends no requests.

`Endpoint.users` declares the columns. The earnings are those of `customers`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from psycopg import Connection, sql

from affiliate_pipeline.commission import customers
from affiliate_pipeline.commission.customers import PERIODS_DAYS, Earned, fits
from affiliate_pipeline.domain.days import DAY, days_from
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records, ReferenceTable, Users
from affiliate_pipeline.exchanges.registry import Catalog
from affiliate_pipeline.landing import endpoint_tables, ledger
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import as_store_unavailable


@dataclass
class User:
    """A user of one account, identified by the text of a column.

    `other_names`: texts in the other columns that name the user. `facts`: the newest value by label, and when it was
    current. `volumes`: in each of `PERIODS_DAYS`, as text; empty: no trades of these days have landed. `roles`: those
    whose endpoints have rows that name the user.
    """

    exchange: str
    account: str
    column: str
    name: str
    other_names: set[str] = field(default_factory=set[str])
    facts: dict[str, tuple[object, datetime]] = field(default_factory=dict[str, tuple[object, datetime]])
    volumes: Sequence[str] = ()
    earned: list[Earned] = field(default_factory=list[Earned])
    roles: set[str] = field(default_factory=set[str])

    def update(self, declared: Users, values: Sequence[object], as_of: datetime) -> None:
        """Add the facts, or replace those that are older; `values` are of the columns that `declared.facts` names."""
        for (label, _), value in zip(declared.facts, values, strict=True):
            if value is None:
                continue
            _, previous_as_of = self.facts.get(label, (None, None))
            if previous_as_of is None or as_of > previous_as_of:
                self.facts[label] = value, as_of


@dataclass(frozen=True)
class Source:
    """An asset that was searched: its first and last landed day, and the ended days after the first that are missing."""

    asset: str
    first: date
    last: date
    missing: Sequence[date]


def sources(store: Store, endpoints: Iterable[Endpoint], today: Mapping[str, date]) -> list[Source]:
    """The assets about users and earnings that have landed any day; `today` is by exchange."""
    landed_sources: list[Source] = []
    for endpoint in endpoints:
        is_earning = isinstance(endpoint, Records) and endpoint.money is not None
        if not endpoint.users and not is_earning:
            continue
        landed = store.ledger(endpoint)
        if not landed:
            continue
        first, last = min(landed), max(landed)
        expected: Sequence[date] = ()
        if endpoint.timetable.is_monitored:
            expected = days_from(first, today[endpoint.exchange.name] - DAY)
        missing = [day for day in expected if day not in landed]
        landed_sources.append(Source(endpoint.key, first, last, missing))
    return landed_sources


def find(store: Store, catalog: Catalog, text: str, today: Mapping[str, date]) -> list[User]:
    """The users that the text names or, if it is an email, may name: the exchanges mask emails. `today` is by exchange."""
    search = _Search(store.connection, text, today)
    with as_store_unavailable(), store.connection.transaction():
        newest = {asset: max(ledger.entries(store.connection, asset)) for asset in ledger.assets(store.connection)}
        landed = [endpoint for endpoint in catalog.endpoints if endpoint.key in newest]
        for endpoint in landed:
            search.add(endpoint, newest[endpoint.key])
        for table in catalog.reference_tables:
            search.add_table(table)
        search.add_earnings()
        for endpoint in landed:
            search.add_to_own_client(endpoint, newest[endpoint.key])
    return [search.users[key] for key in sorted(search.users)]


class _Search:
    def __init__(self, connection: Connection[Any], text: str, today: Mapping[str, date]) -> None:
        self._connection, self._text, self._today = connection, text, today
        self.users: dict[tuple[str, str, str, str], User] = {}

    def add(self, endpoint: Endpoint, newest: date) -> None:
        """Add the users found in the endpoint's rows, with their facts or volumes; `newest` is its last landed day."""
        declared = endpoint.users
        if not declared or not declared.names:
            return
        if not isinstance(endpoint, Records):
            self._add_users(endpoint, declared, endpoint_tables.rows_of(endpoint, newest))
            return

        first = date.min
        if endpoint.money or endpoint.volume_and_fee:
            # Rows about trades are many, so only those of the last days are read.
            first = self._today[endpoint.exchange.name] - max(PERIODS_DAYS) * DAY
        rows = endpoint_tables.rows_since(endpoint, first)
        if endpoint.volume_and_fee:
            volume_column, _ = endpoint.volume_and_fee
            self._add_volumes(endpoint, declared.names[0], volume_column, rows)
        else:
            self._add_users(endpoint, declared, rows)

    def add_table(self, table: ReferenceTable) -> None:
        """Add the users found in the reference table."""
        [(exists,)] = self._connection.execute("select to_regclass(%s) is not null", (table.table,)).fetchall()
        if table.users and exists:
            rows = sql.SQL("{} where account = {}").format(sql.Identifier(*table.table.split(".")), table.alias)
            self._add_users(table.endpoint, table.users, rows)

    def add_earnings(self) -> None:
        """Add what was earned with the users, and the users that only the earnings name."""
        names = {self._text, *(user.name for user in self.users.values())}
        if "@" in self._text:
            names.update(customers.fitting_emails(self._connection, self._text))
        for earned in customers.earned(self._connection, [*names]):
            key = earned.exchange, earned.account, earned.identified_by, earned.customer
            # An id that was found in one account may be another user's in another account.
            if key in self.users or earned.identified_by == "email" or earned.customer == self._text:
                self._user(*key).earned.append(earned)

    def add_to_own_client(self, endpoint: Endpoint, newest: date) -> None:
        """Add the facts and earnings of rows that name no user to the owner of the client key.

        The client key is that of the endpoint's account. If its owner has not been found, nothing is added.
        """
        account = endpoint.exchange.name, endpoint.alias
        for user in self.users.values():
            # Only a client's key returns rows that name no user. Such rows are about that client, who is named in other
            # rows of the same role.
            is_own_client = (user.exchange, user.account) == account and endpoint.role in user.roles
            if not is_own_client:
                continue
            if endpoint.users and not endpoint.users.names:
                for _, facts, as_of in self._rows(endpoint, endpoint.users, endpoint_tables.rows_of(endpoint, newest)):
                    user.update(endpoint.users, facts, as_of)
            elif isinstance(endpoint, Records) and endpoint.money and not endpoint.money.earners:
                self._add_own_earnings(user, endpoint.money.kind)

    def _add_own_earnings(self, user: User, kind: str) -> None:
        """Add the earnings of this kind in the user's account whose records name no customer."""
        for earned in customers.earned(self._connection, [""], [kind]):
            is_of_account = (earned.exchange, earned.account) == (user.exchange, user.account)
            # Another endpoint may report the same money.
            if is_of_account and earned not in user.earned:
                user.earned.append(earned)

    def _add_users(self, endpoint: Endpoint, declared: Users, rows: sql.Composed) -> None:
        for names, facts, as_of in self._rows(endpoint, declared, rows):
            # The first column that names the user identifies it.
            column, name = next((column, name) for column, name in zip(declared.names, names, strict=True) if name)
            user = self._user(endpoint.exchange.name, endpoint.alias, column, name)
            user.other_names |= {*filter(None, names)} - {name}
            user.roles.add(endpoint.role)
            user.update(declared, facts, as_of)

    def _rows(
        self, endpoint: Endpoint, declared: Users, rows: sql.Composed
    ) -> list[tuple[list[str | None], list[object], datetime]]:
        """Names, facts and their time of each distinct row that names the user, or of all if no column has names."""
        columns = [*declared.names, *(column for _, column in declared.facts)]
        conditions = [fits(sql.Identifier(name), self._text) for name in declared.names]
        is_email = "@" in self._text
        query = sql.SQL(
            "with distinct_row as {materialized} ("
            "select {columns}, max({as_of}) as as_of from {rows} group by {columns}) "
            "select * from distinct_row where {names_user}"
        ).format(
            # Emails are compared by patterns, which takes long, so equal rows are compared only once.
            materialized=sql.SQL("materialized" if is_email else "not materialized"),
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
            as_of=sql.Identifier(declared.as_of),
            rows=rows,
            names_user=sql.SQL(" or ").join(conditions or [sql.SQL("true")]),
        )

        zone = endpoint.exchange.zone
        name_count = len(declared.names)
        distinct_rows: list[tuple[list[str | None], list[object], datetime]] = []
        for *values, as_of in self._connection.execute(query):
            names, facts = values[:name_count], values[name_count:]
            zoned_facts: list[object] = [
                fact.astimezone(zone) if isinstance(fact, datetime) else fact for fact in facts
            ]
            distinct_rows.append((names, zoned_facts, as_of))
        return distinct_rows

    def _add_volumes(self, endpoint: Endpoint, column: str, volume_column: str, rows: sql.Composed) -> None:
        """Add the volumes, in each of `PERIODS_DAYS`, of the rows whose `column` equals the text searched for."""
        today = self._today[endpoint.exchange.name]
        sums = [
            sql.SQL("coalesce(trim_scale(sum({}) filter (where partition_date >= {})), 0)::text").format(
                sql.Identifier(volume_column), today - days * DAY
            )
            for days in PERIODS_DAYS
        ]
        # `rows` ends with a condition, to which another one is added.
        query = sql.SQL("select {} from {} and {} = {} having count(*) > 0").format(
            sql.SQL(", ").join(sums), rows, sql.Identifier(column), self._text
        )
        volumes = self._connection.execute(query).fetchone()
        if volumes:  # otherwise no row has the text
            self._user(endpoint.exchange.name, endpoint.alias, column, self._text).volumes = volumes

    def _user(self, exchange: str, account: str, column: str, name: str) -> User:
        return self.users.setdefault((exchange, account, column, name), User(exchange, account, column, name))
