-- A digest is neither a failure nor a recovery.
alter table affiliate.alert add column kind text;
update affiliate.alert set kind = case when good_news then 'recovery' else 'failure' end;
alter table affiliate.alert alter column kind set not null, drop column good_news;
comment on column affiliate.alert.kind is 'failure, recovery or digest.';
