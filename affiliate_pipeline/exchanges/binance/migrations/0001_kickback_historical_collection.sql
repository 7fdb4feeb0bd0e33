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
