-- Three roles, each with only the rights that it needs. Run it once, connected to the database, as a superuser or a role
-- that may create roles and owns the database:
--
--   psql -v ON_ERROR_STOP=1 -f docs/least_privilege.sql "postgresql://…/affiliate"
--
-- Then set passwords (\password affiliate_owner, and so on). If the tables already existed, also give them to the
-- owner: alter table … owner to affiliate_owner, or reassign owned by … to affiliate_owner.

-- Creates and alters tables: the role of AFFILIATE_DATABASE_URL for `affiliate-pipeline migrate`, before the first start and
-- after each upgrade, and for nothing else.
create role affiliate_owner login;
-- Everything else: runs, schedules, sensors, Dagster's own tables, every command. It can neither create nor drop tables.
create role affiliate_runtime login;
-- For analysts: reads what has landed. Enough for psql, `affiliate-pipeline export`, `report` and `who`.
create role affiliate_analyst login;

-- A role that is not a superuser has to be a member of the owner for the statements that follow.
grant affiliate_owner to current_user;
do $$ begin
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect, create, temporary on database %I to affiliate_owner', current_database());
    execute format('grant connect, temporary on database %I to affiliate_runtime', current_database());
    execute format('grant connect on database %I to affiliate_analyst', current_database());
end $$;

create schema if not exists affiliate authorization affiliate_owner;
create schema if not exists binance authorization affiliate_owner;
create schema if not exists lbank authorization affiliate_owner;
-- Dagster's tables are in public.
grant usage, create on schema public to affiliate_owner;
grant usage on schema public, affiliate, binance, lbank to affiliate_runtime;
grant usage on schema affiliate, binance, lbank to affiliate_analyst;

-- Tables that exist, and those that the owner creates later.
grant select, insert, update, delete on all tables in schema public, affiliate, binance, lbank to affiliate_runtime;
grant usage, select, update on all sequences in schema public, affiliate, binance, lbank to affiliate_runtime;
grant select on all tables in schema affiliate, binance, lbank to affiliate_analyst;
alter default privileges for role affiliate_owner grant select, insert, update, delete on tables to affiliate_runtime;
alter default privileges for role affiliate_owner grant usage, select, update on sequences to affiliate_runtime;
alter default privileges for role affiliate_owner in schema affiliate, binance, lbank grant select on tables to affiliate_analyst;
