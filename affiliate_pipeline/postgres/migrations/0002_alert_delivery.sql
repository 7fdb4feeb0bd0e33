-- One row per alert and target, in place of arrays in the alert and one row per target.
create table affiliate.alert_delivery (
    alert text not null references affiliate.alert on delete cascade,
    target text not null,
    attempts int not null,
    next_attempt_at timestamptz not null,
    delivered_at timestamptz,
    primary key (alert, target)
);
comment on table affiliate.alert_delivery is 'What was sent, or tried to be, to each target of ALERT_URLS (its fingerprint). No row: not tried yet.';
comment on column affiliate.alert_delivery.attempts is 'How often it was sent, the last one included.';
comment on column affiliate.alert_delivery.next_attempt_at is 'When the target may be sent this alert again or, once this one is delivered, any other.';
insert into affiliate.alert_delivery
    select key, target, 1, now(), coalesce(delivered_at, now()) from affiliate.alert, unnest(reached) target
    on conflict do nothing;
insert into affiliate.alert_delivery
    select key, target, count::int, coalesce(next_try_at, now()), null
    from affiliate.alert, jsonb_each_text(missed) missing (target, count) left join affiliate.alert_target using (target)
    where delivered_at is null
    on conflict do nothing;
alter table affiliate.alert drop column reached, drop column missed;
drop table affiliate.alert_target;
comment on table affiliate.alert is 'What people are told: delivered once every target of ALERT_URLS has taken it, recovered once all failed days have landed.';
