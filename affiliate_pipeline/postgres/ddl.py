"""The tables as SQL, from the endpoints' schemas. Knows no endpoint by name and runs nothing."""

from hashlib import sha256

from psycopg import sql

from affiliate_pipeline.schema.columns import Row, columns

BOOKKEEPING = """
create schema if not exists affiliate;
create table if not exists affiliate.landing (
    asset text not null,
    partition date not null,
    rows bigint not null,
    content_hash text not null,
    settled bool not null,
    source text not null,
    landed_at timestamptz not null,
    checked_at timestamptz not null,
    run_id text not null,
    primary key (asset, partition)
);
comment on table affiliate.landing is 'One row per asset and day that has landed: the truth about what has landed.';
create table if not exists affiliate.rejected_row (
    asset text not null,
    partition date not null,
    run_id text not null,
    source text not null,
    rejected_at timestamptz not null,
    reason text not null,
    payload jsonb not null
);
create index if not exists rejected_row_day on affiliate.rejected_row (asset, partition);
-- The table may be older than this column.
alter table affiliate.rejected_row add column if not exists complete bool not null default true;
comment on table affiliate.rejected_row is 'Rows, as received, of days that could not land.';
comment on column affiliate.rejected_row.payload is 'The row; where jsonb cannot hold it, a string with its JSON text. A response that is no JSON: a string with its text, or {"$base64": …}.';
comment on column affiliate.rejected_row.complete is 'Whether these are all rows of the day: only then can they land with from_rejected.';
create table if not exists affiliate.superseded_row (
    asset text not null,
    partition date not null,
    run_id text not null,
    superseded_at timestamptz not null,
    payload jsonb not null
);
create index if not exists superseded_row_day on affiliate.superseded_row (asset, partition);
comment on table affiliate.superseded_row is 'Rows that a restatement after settling changed or removed.';
create table if not exists affiliate.unknown_field (
    asset text not null,
    name text not null,
    first_partition date not null,
    first_seen_at timestamptz not null,
    primary key (asset, name)
);
comment on table affiliate.unknown_field is 'Fields of answers that a schema does not know, each warned of once.';
create table if not exists affiliate.lease (
    scope text not null,
    slot int not null,
    returns_at timestamptz not null,
    primary key (scope, slot)
);
create table if not exists affiliate.answer (
    asset text not null,
    source text not null,
    request text not null,
    payload bytea not null,
    asked_at timestamptz not null,
    primary key (asset, source, request)
);
comment on table affiliate.answer is 'Answers of runs that have not ended: a killed one is resumed from them.';
create table if not exists affiliate.attempt (
    asset text not null,
    source text not null,
    name text not null,
    payload bytea not null,
    primary key (asset, source, name)
);
comment on table affiliate.attempt is 'Rows of what was done at an exchange, until they land.';
comment on table affiliate.lease is 'Rate limits shared by all processes: a slot is free once returns_at has passed.';
create table if not exists affiliate.alert (
    key text primary key,
    title text not null,
    text text not null,
    failed jsonb not null,
    good_news bool not null,
    raised_at timestamptz not null,
    reached text[] not null default '{}',
    delivered_at timestamptz,
    recovered_at timestamptz
);
-- The table may be older than this column.
alter table affiliate.alert add column if not exists missed jsonb not null default '{}';
comment on table affiliate.alert is 'What people are told: delivered once every target of ALERT_URLS is among the reached, recovered once all failed days have landed. Missed: how often each target has not taken it.';
create table if not exists affiliate.alert_target (
    target text primary key,
    failures int not null,
    next_try_at timestamptz not null
);
comment on table affiliate.alert_target is 'Targets of ALERT_URLS (their fingerprints): how often each has not taken a message since it last took one, and when it may be sent to again.';
create table if not exists affiliate.watch (
    asset text not null,
    partition date not null,
    tries int not null,
    asked_at timestamptz,
    said text not null,
    primary key (asset, partition)
);
comment on table affiliate.watch is 'Missing days: how often the watch has asked for them, and what it has said of them.';
"""
DAILY_COMMISSION = (
    ("partition_date", "date not null", "The day, in `zone`."),
    ("exchange", "text not null", "Who paid it."),
    ("zone", "text not null", "The zone of the exchange's days."),
    ("coin", "text not null", "The coin of `amount`, as the exchange spells it."),
    ("kind", "text not null", "rebate, kickback, commission spot or commission futures."),
    ("count", "bigint not null", "How many records."),
    ("amount", "numeric not null", "Their exact sum."),
    (
        "usdt_value",
        "numeric",
        "The exact sum in USDT of those that the exchange values or that are USDT; null if none.",
    ),
    ("unvalued", "bigint not null", "How many records have no value in USDT."),
    ("settled", "bool not null", "Whether the day is final."),
    ("asset", "text not null", "The asset that it was added up from."),
    ("computed_at", "timestamptz not null default now()", "When it was added up."),
    ("run_id", "text not null", "The Dagster run that did."),
)
_DAILY_COMMISSION = ", ".join(f"{name} {kind}" for name, kind, _ in DAILY_COMMISSION)
_DAILY_COMMENTS = "".join(
    f"comment on column affiliate.daily_commission.{name} is '{about.replace(chr(39), chr(39) * 2)}';\n"
    for name, _, about in DAILY_COMMISSION
)

BOOKKEEPING += f"""
create table if not exists affiliate.daily_commission (
    {_DAILY_COMMISSION},
    primary key (partition_date, exchange, coin, kind)
);
comment on table affiliate.daily_commission is 'What was earned a day, added up from the endpoints'' tables.';
{_DAILY_COMMENTS}
create table if not exists affiliate.computed_day (
    partition date primary key,
    inputs text not null
);
comment on table affiliate.computed_day is 'From which content of the endpoints'' tables a day was added up.';
"""
# Said of the schema once all of it is there, so that it is not run again: even `if not exists` waits for writers.
BOOKKEEPING_VERSION = sha256(BOOKKEEPING.encode()).hexdigest()
BOOKKEEPING += f"comment on schema affiliate is '{BOOKKEEPING_VERSION}';"

ROSTER = """
create schema if not exists lbank;
create table if not exists lbank.roster (
    open_id text primary key,
    user_level smallint,
    transaction boolean,
    deposit boolean,
    direct_invitation boolean,
    code text,
    create_time timestamptz,
    first_seen timestamptz not null,
    last_seen timestamptz not null,
    ever_agent boolean not null default false,
    source text
);
comment on table lbank.roster is 'Everybody ever seen in the team list: who can have rows at all.';
"""

COLLECTION = """
create schema if not exists binance;
create table if not exists binance.kickback_historical_collection (
    id bigint generated always as identity primary key,
    source text not null,
    first_day date not null,
    last_day date not null check (last_day >= first_day),
    state text not null default 'waiting' check (state in ('waiting', 'collecting', 'ready', 'landed', 'expired')),
    created_at timestamptz not null default now(),
    requested_at timestamptz,
    code bigint,
    msg text,
    path_before text,
    polled_at timestamptz,
    expires_at timestamptz,
    path text,
    other_paths text[] not null default '{}',
    note text,
    file bytea,
    follows bigint references binance.kickback_historical_collection,
    told boolean not null default false
);
create unique index if not exists kickback_historical_collection_under_way
    on binance.kickback_historical_collection (source) where state = 'collecting';
create index if not exists kickback_historical_collection_days
    on binance.kickback_historical_collection (source, first_day, last_day);
comment on table binance.kickback_historical_collection is
    'What was asked of the history, one row per request to the exchange. At most one is collecting per key.';
comment on column binance.kickback_historical_collection.first_day is 'The first day asked for, in UTC.';
comment on column binance.kickback_historical_collection.last_day is 'The last day asked for, in UTC.';
comment on column binance.kickback_historical_collection.requested_at is 'When the exchange was asked.';
comment on column binance.kickback_historical_collection.path_before is
    'The path of the file that was offered before, which is not the one asked for.';
comment on column binance.kickback_historical_collection.expires_at is
    'When it is given up; null as long as the exchange was not asked in vain.';
comment on column binance.kickback_historical_collection.path is 'The path of the file. Its whole URL is a secret.';
comment on column binance.kickback_historical_collection.other_paths is 'Files that were refused as not the one asked for.';
comment on column binance.kickback_historical_collection.note is 'What happened last, for a person.';
comment on column binance.kickback_historical_collection.file is 'The file as received, if it could not be understood.';
comment on column binance.kickback_historical_collection.follows is 'The collection that expired, for which this one stands.';
comment on column binance.kickback_historical_collection.told is 'Whether people were told that it expired.';
"""


def data_columns(model: type[Row]) -> sql.Composed:
    """The names of the columns that come from the source, in the order they are copied."""
    return sql.SQL(", ").join(map(sql.Identifier, [*(column.name for column in columns(model)), "extra"]))


def temporary_table(name: str, model: type[Row]) -> sql.Composed:
    """Creates a table of the transaction with the endpoint's `data_columns`."""
    data = [*((column.name, column.kind.sql) for column in columns(model)), ("extra", "jsonb")]
    return sql.SQL("create temporary table {} ({}) on commit drop").format(
        sql.Identifier(name),
        sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in data),
    )


def table(name: sql.Identifier, model: type[Row], description: str) -> sql.Composed:
    """Creates the endpoint's table, or adds the columns that its schema has gained; never drops one."""
    # Nullability is the schema's matter, which may be mended: a table would keep what it was created with.
    data = [(column.name, column.kind.sql) for column in columns(model)]
    # The landing transaction sets both, so that COPY carries nothing but the source's own columns.
    kept = sql.SQL(
        "partition_date date not null default current_setting('affiliate.partition_date')::date, "
        "landed_at timestamptz not null default now(), "
        "run_id text not null default current_setting('affiliate.run_id')"
    )
    created = sql.SQL("create table if not exists {} ({}, extra jsonb, {});").format(
        name,
        sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in data),
        kept,
    )
    added = [
        sql.SQL("alter table {} add column if not exists {} {};").format(name, sql.Identifier(column), sql.SQL(kind))
        for column, kind in data
    ]
    schema_name, table_name = name._obj
    index = sql.SQL("create index if not exists {} on {} (partition_date);").format(
        sql.Identifier(f"{table_name}_partition_date"), name
    )
    comments = [
        sql.SQL("comment on column {}.{} is {};").format(name, sql.Identifier(column.name), column.description)
        for column in columns(model)
    ]
    return sql.SQL("\n").join(
        [
            sql.SQL("create schema if not exists {};").format(sql.Identifier(schema_name)),
            created,
            *added,
            index,
            sql.SQL("comment on table {} is {};").format(name, description),
            *comments,
        ]
    )
