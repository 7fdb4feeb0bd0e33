-- The account of each API key, so that a rotated key continues the days of the one before.
create table affiliate.account (
    exchange text not null,
    role text not null,
    alias text not null,
    identity text not null,
    fingerprint text not null,
    first_seen timestamptz not null,
    last_seen timestamptz,
    primary key (exchange, role, alias, fingerprint)
);
comment on table affiliate.account is 'One row per API key: the keys of an alias with the same identity are of one account.';
comment on column affiliate.account.role is 'The role of the key: partner, client or affiliate.';
comment on column affiliate.account.alias is 'The alias of the account; empty: the default account.';
comment on column affiliate.account.identity is 'The account as the exchange states it: the uid at Binance, the openId at LBank. If it states none, the fingerprint of one of the keys.';
comment on column affiliate.account.fingerprint is 'The first 12 hex digits of the SHA-256 of the API key.';
comment on column affiliate.account.last_seen is 'When the identity was last verified; null: not since the upgrade of the database.';
-- Keys that have landed days: `host role fingerprint` at Binance, `host fingerprint` at LBank.
insert into affiliate.account
    select split_part(asset, '/', 1),
        case when source like '% % %' then split_part(source, ' ', 2) else 'affiliate' end,
        case when asset like '%/%/%' then split_part(asset, '/', 2) else '' end,
        substring(source from '[^ ]*$'), substring(source from '[^ ]*$'), min(landed_at), null
    from affiliate.landing where source ~ ' [0-9a-f]{12}$' group by 1, 2, 3, 4;
