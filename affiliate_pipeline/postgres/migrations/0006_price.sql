-- Market prices of the coins that are earned.
create table affiliate.price (
    coin text not null,
    day date not null,
    usdt numeric not null,
    market text not null,
    source text not null,
    open_time timestamptz not null,
    close_time timestamptz not null,
    primary key (coin, day)
);
comment on table affiliate.price is 'The close in USDT of each coin and day (UTC). A price never changes once it has landed.';
comment on column affiliate.price.coin is 'The coin, in upper case.';
comment on column affiliate.price.day is 'The day, in UTC.';
comment on column affiliate.price.usdt is 'The close in USDT: a product of closes is exact, a quotient has 18 digits (half even).';
comment on column affiliate.price.market is 'How the close was computed: BTCUSDT, or XYZBTC*BTCUSDT for a coin without a market in USDT, or 1/USDTTRY for a market that is quoted the other way round.';
comment on column affiliate.price.source is 'The host that the close was requested from.';
comment on column affiliate.price.open_time is 'When the day''s candle opened.';
comment on column affiliate.price.close_time is 'When the day''s candle closed.';
create table affiliate.price_market (
    coin text primary key,
    market text,
    since date not null,
    checked_at timestamptz not null
);
comment on table affiliate.price_market is 'The market of each coin, or that it has none, which is looked up again after 30 days.';
comment on column affiliate.price_market.market is 'The market, as in affiliate.price; null: there is none on any day from `since` on.';
create table affiliate.priced_day (
    partition date primary key,
    inputs text not null,
    prices text not null
);
comment on table affiliate.priced_day is 'The landed content for which each day''s prices were requested, and a fingerprint of the prices.';
alter table affiliate.daily_commission add column market_value_usdt numeric;
comment on column affiliate.daily_commission.market_value_usdt is 'The value of `amount` at the close of the same day in UTC, rounded once to 8 places (half even); null if there is no price.';
