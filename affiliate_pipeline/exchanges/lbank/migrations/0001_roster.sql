create table if not exists lbank.roster (
    open_id text primary key,
    user_level smallint,
    transaction boolean,
    deposit boolean,
    direct_invitation boolean,
    code text,
    create_time timestamptz,
    first_seen timestamptz not null,
    last_seen timestamptz not null,
    ever_agent boolean not null default false,
    source text
);
comment on table lbank.roster is 'Everybody ever seen in the team list: who can have rows at all.';
