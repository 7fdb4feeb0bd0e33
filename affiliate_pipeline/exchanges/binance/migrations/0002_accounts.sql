-- Several accounts at the exchange. Exports of earlier releases belong to the default account, whose alias is empty.
alter table binance.kickback_historical_collection add column account text not null default '';
comment on column binance.kickback_historical_collection.account is
    'The alias of the account; empty: the default account.';
