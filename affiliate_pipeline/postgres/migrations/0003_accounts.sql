-- Several accounts at one exchange. Rows of earlier releases belong to the default account, whose alias is empty.
alter table affiliate.daily_commission add column account text not null default '';
alter table affiliate.daily_commission drop constraint daily_commission_pkey,
    add primary key (partition_date, exchange, account, coin, kind);
comment on column affiliate.daily_commission.account is 'The alias of the account that earned it; empty: the default account.';
-- The tables of endpoints, which are recognized by the default of their partition_date.
do $$
declare
    endpoint_table regclass;
begin
    for endpoint_table in
        select adrelid from pg_attrdef join pg_attribute on attrelid = adrelid and attnum = adnum
        where attname = 'partition_date' and pg_get_expr(adbin, adrelid) like '%affiliate.partition_date%'
        order by adrelid
    loop
        execute format('alter table %s add column if not exists account text not null default ''''', endpoint_table);
    end loop;
end $$;
-- Comments in plain English.
comment on column affiliate.daily_commission.exchange is 'The exchange that paid it.';
comment on column affiliate.daily_commission.count is 'The number of records.';
comment on column affiliate.daily_commission.amount is 'The exact sum of the records.';
comment on column affiliate.daily_commission.usdt_value is 'The exact sum in USDT of the records that are in USDT or that the exchange values; null if there are none.';
comment on column affiliate.daily_commission.unvalued is 'The number of records without a value in USDT.';
comment on column affiliate.daily_commission.computed_at is 'When the row was computed.';
comment on column affiliate.daily_commission.run_id is 'The Dagster run that wrote the row.';
comment on table affiliate.daily_commission is 'The earnings of each day, added up from the tables of the endpoints.';
comment on table affiliate.landing is 'The ledger: one row per asset and day that has landed.';
comment on table affiliate.unknown_field is 'Fields of responses that are not in the schema; each is reported once.';
comment on table affiliate.answer is 'Responses of runs that have not ended, so that a run resumes after a crash.';
comment on table affiliate.attempt is 'Actions taken at an exchange whose rows have not landed yet.';
comment on table affiliate.alert is 'Alerts: delivered once every target of ALERT_URLS has accepted it, recovered once all its failed days have landed.';
comment on table affiliate.alert_delivery is 'The delivery of each alert to each target of ALERT_URLS (by fingerprint). No row: not attempted yet.';
comment on column affiliate.alert_delivery.attempts is 'How many attempts, the last one included.';
comment on column affiliate.alert_delivery.next_attempt_at is 'When this alert may be sent again or, once it is delivered, any other.';
comment on table affiliate.watch is 'Overdue days: how many runs the monitor has requested, and what it has reported.';
comment on table affiliate.computed_day is 'The landed content from which each day was added up.';
