-- Every table of the releases before schema_migration, some of which may exist with fewer columns.
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
create table if not exists affiliate.daily_commission (
    partition_date date not null,
    exchange text not null,
    zone text not null,
    coin text not null,
    kind text not null,
    count bigint not null,
    amount numeric not null,
    usdt_value numeric,
    unvalued bigint not null,
    settled bool not null,
    asset text not null,
    computed_at timestamptz not null default now(),
    run_id text not null,
    primary key (partition_date, exchange, coin, kind)
);
comment on table affiliate.daily_commission is 'What was earned a day, added up from the endpoints'' tables.';
comment on column affiliate.daily_commission.partition_date is 'The day, in `zone`.';
comment on column affiliate.daily_commission.exchange is 'Who paid it.';
comment on column affiliate.daily_commission.zone is 'The zone of the exchange''s days.';
comment on column affiliate.daily_commission.coin is 'The coin of `amount`, as the exchange spells it.';
comment on column affiliate.daily_commission.kind is 'rebate, kickback, commission spot or commission futures.';
comment on column affiliate.daily_commission.count is 'How many records.';
comment on column affiliate.daily_commission.amount is 'Their exact sum.';
comment on column affiliate.daily_commission.usdt_value is 'The exact sum in USDT of those that the exchange values or that are USDT; null if none.';
comment on column affiliate.daily_commission.unvalued is 'How many records have no value in USDT.';
comment on column affiliate.daily_commission.settled is 'Whether the day is final.';
comment on column affiliate.daily_commission.asset is 'The asset that it was added up from.';
comment on column affiliate.daily_commission.computed_at is 'When it was added up.';
comment on column affiliate.daily_commission.run_id is 'The Dagster run that did.';
create table if not exists affiliate.computed_day (
    partition date primary key,
    inputs text not null
);
comment on table affiliate.computed_day is 'From which content of the endpoints'' tables a day was added up.';
