comment on table affiliate.superseded_row is 'Landed rows that were replaced or removed when a day landed again: a day that had landed as settled, a day whose rows something else had changed, or a day that landed only because of allow_shrink.';
comment on column affiliate.daily_commission.unvalued is 'The number of records that are not part of `usdt_value`.';
comment on column affiliate.daily_customer_commission.unvalued is 'The number of records that are not part of `usdt_value`.';
