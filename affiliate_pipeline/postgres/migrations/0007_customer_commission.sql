-- The daily sums of each customer.
create table affiliate.daily_customer_commission (
    partition_date date not null,
    exchange text not null,
    account text not null,
    zone text not null,
    customer text not null,
    identified_by text not null,
    coin text not null,
    kind text not null,
    count bigint not null,
    amount numeric not null,
    usdt_value numeric,
    unvalued bigint not null,
    market_value_usdt numeric,
    settled bool not null,
    asset text not null,
    computed_at timestamptz not null default now(),
    run_id text not null
);
-- No primary key, which would double the time to add up a day. The lines of a day are the groups of one query, and replace
-- the day in one transaction.
create index daily_customer_commission_customer on affiliate.daily_customer_commission (customer, partition_date);
create index daily_customer_commission_partition_date on affiliate.daily_customer_commission (partition_date);
comment on table affiliate.daily_customer_commission is 'The earnings of each day and customer. affiliate.daily_commission is added up from them in the same transaction.';
comment on column affiliate.daily_customer_commission.partition_date is 'The day, in `zone`.';
comment on column affiliate.daily_customer_commission.exchange is 'The exchange that paid it.';
comment on column affiliate.daily_customer_commission.account is 'The alias of the account that earned it; empty: the default account.';
comment on column affiliate.daily_customer_commission.zone is 'The zone of the exchange''s days.';
comment on column affiliate.daily_customer_commission.customer is 'The customer, as the exchange names it; empty: the records name no customer.';
comment on column affiliate.daily_customer_commission.identified_by is 'The column that `customer` is from: customer_id, else open_id, else email, which the exchange has masked, so that several customers may have the same one. Empty: no customer.';
comment on column affiliate.daily_customer_commission.coin is 'The coin of `amount`, as the exchange spells it.';
comment on column affiliate.daily_customer_commission.kind is 'rebate, kickback, commission spot or commission futures.';
comment on column affiliate.daily_customer_commission.count is 'The number of records.';
comment on column affiliate.daily_customer_commission.amount is 'The exact sum of the records.';
comment on column affiliate.daily_customer_commission.usdt_value is 'The exact sum in USDT of the records that are in USDT or that the exchange values; null if there are none.';
comment on column affiliate.daily_customer_commission.unvalued is 'The number of records without a value in USDT.';
comment on column affiliate.daily_customer_commission.market_value_usdt is 'The value of `amount` at the close of the same day in UTC, rounded once to 8 places (half even); null if there is no price.';
comment on column affiliate.daily_customer_commission.settled is 'Whether the day is final.';
comment on column affiliate.daily_customer_commission.asset is 'The asset whose rows were added up.';
comment on column affiliate.daily_customer_commission.computed_at is 'When the row was computed.';
comment on column affiliate.daily_customer_commission.run_id is 'The Dagster run that wrote the row.';
comment on column affiliate.daily_commission.asset is 'The asset whose rows were added up.';
-- Days that have been added up are stale: they lack the sums of their customers.
update affiliate.computed_day set inputs = '';
