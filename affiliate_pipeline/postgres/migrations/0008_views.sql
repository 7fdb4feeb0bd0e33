-- Views for other tools. Their columns stay as they are; further ones may follow at the end.
create view affiliate.v_daily as
    select partition_date as day, exchange, account, zone, coin, kind, count as records, amount,
        coalesce(market_value_usdt, case when abs(usdt_value - trunc(usdt_value, 8)) = 0.000000005 and mod(trunc(usdt_value * 100000000), 2) = 0
            then trunc(usdt_value, 8) else round(usdt_value, 8) end) as total_usdt,
        case when market_value_usdt is not null then 'market' when usdt_value is not null then 'stated' end as valued_by,
        case when market_value_usdt is null then unvalued else 0 end as records_without_value,
        market_value_usdt, usdt_value as stated_value_usdt, settled, computed_at
    from affiliate.daily_commission;
comment on view affiliate.v_daily is 'The earnings of each day, account, coin and kind, with their value in USDT.';
comment on column affiliate.v_daily.day is 'The day, in `zone`.';
comment on column affiliate.v_daily.exchange is 'The exchange that paid it.';
comment on column affiliate.v_daily.account is 'The alias of the account that earned it; empty: the default account.';
comment on column affiliate.v_daily.zone is 'The zone of the exchange''s days.';
comment on column affiliate.v_daily.coin is 'The coin of `amount`, as the exchange spells it.';
comment on column affiliate.v_daily.kind is 'rebate, kickback, commission spot or commission futures.';
comment on column affiliate.v_daily.records is 'The number of records.';
comment on column affiliate.v_daily.amount is 'The exact sum of the records, in `coin`.';
comment on column affiliate.v_daily.total_usdt is 'The value in USDT, to 8 places (half even): at the market price of the day, otherwise what the exchange states; null if there is neither.';
comment on column affiliate.v_daily.valued_by is 'market or stated: which of the two `total_usdt` is.';
comment on column affiliate.v_daily.records_without_value is 'The number of records that `total_usdt` lacks.';
comment on column affiliate.v_daily.market_value_usdt is 'The value at the market price of the day, to 8 places.';
comment on column affiliate.v_daily.stated_value_usdt is 'The exact sum in USDT of the records that are in USDT or that the exchange values.';
comment on column affiliate.v_daily.settled is 'Whether the day is final.';
comment on column affiliate.v_daily.computed_at is 'When the row was computed.';
create view affiliate.v_customer_daily as
    select partition_date as day, exchange, account, zone, customer, identified_by, coin, kind, count as records, amount,
        coalesce(market_value_usdt, case when abs(usdt_value - trunc(usdt_value, 8)) = 0.000000005 and mod(trunc(usdt_value * 100000000), 2) = 0
            then trunc(usdt_value, 8) else round(usdt_value, 8) end) as total_usdt,
        case when market_value_usdt is not null then 'market' when usdt_value is not null then 'stated' end as valued_by,
        case when market_value_usdt is null then unvalued else 0 end as records_without_value,
        market_value_usdt, usdt_value as stated_value_usdt, settled, computed_at
    from affiliate.daily_customer_commission;
comment on view affiliate.v_customer_daily is 'The earnings of each day, account, customer, coin and kind, with their value in USDT, rounded per line.';
comment on column affiliate.v_customer_daily.day is 'The day, in `zone`.';
comment on column affiliate.v_customer_daily.exchange is 'The exchange that paid it.';
comment on column affiliate.v_customer_daily.account is 'The alias of the account that earned it; empty: the default account.';
comment on column affiliate.v_customer_daily.zone is 'The zone of the exchange''s days.';
comment on column affiliate.v_customer_daily.customer is 'The customer, as the exchange names it; empty: the records name no customer.';
comment on column affiliate.v_customer_daily.identified_by is 'The column that `customer` is from: customer_id, else open_id, else email, which the exchange has masked, so that several customers may have the same one. Empty: no customer.';
comment on column affiliate.v_customer_daily.coin is 'The coin of `amount`, as the exchange spells it.';
comment on column affiliate.v_customer_daily.kind is 'rebate, kickback, commission spot or commission futures.';
comment on column affiliate.v_customer_daily.records is 'The number of records.';
comment on column affiliate.v_customer_daily.amount is 'The exact sum of the records, in `coin`.';
comment on column affiliate.v_customer_daily.total_usdt is 'The value in USDT, to 8 places (half even): at the market price of the day, otherwise what the exchange states; null if there is neither.';
comment on column affiliate.v_customer_daily.valued_by is 'market or stated: which of the two `total_usdt` is.';
comment on column affiliate.v_customer_daily.records_without_value is 'The number of records that `total_usdt` lacks.';
comment on column affiliate.v_customer_daily.market_value_usdt is 'The value at the market price of the day, to 8 places.';
comment on column affiliate.v_customer_daily.stated_value_usdt is 'The exact sum in USDT of the records that are in USDT or that the exchange values.';
comment on column affiliate.v_customer_daily.settled is 'Whether the day is final.';
comment on column affiliate.v_customer_daily.computed_at is 'When the row was computed.';
create view affiliate.v_health as
    select asset, min(partition) as first_day, max(partition) as last_day, count(*) as landed_days,
        max(partition) - min(partition) + 1 - count(*) as missing_days, count(*) filter (where not settled) as unsettled_days,
        max(landed_at) as last_landed_at, max(checked_at) as last_checked_at
    from affiliate.landing group by asset;
comment on view affiliate.v_health is 'What each asset has landed, and what is missing in between.';
comment on column affiliate.v_health.asset is 'The asset, as in Dagster.';
comment on column affiliate.v_health.first_day is 'The first landed day.';
comment on column affiliate.v_health.last_day is 'The last landed day.';
comment on column affiliate.v_health.landed_days is 'The number of landed days.';
comment on column affiliate.v_health.missing_days is 'The number of days between the first and the last one that have not landed.';
comment on column affiliate.v_health.unsettled_days is 'The number of landed days that may still change.';
comment on column affiliate.v_health.last_landed_at is 'When rows last landed.';
comment on column affiliate.v_health.last_checked_at is 'When a day last landed or was confirmed to be unchanged.';
