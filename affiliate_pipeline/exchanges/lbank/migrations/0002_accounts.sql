-- One roster per account. Rows of earlier releases belong to the default account, whose alias is empty.
alter table lbank.roster add column account text not null default '';
alter table lbank.roster drop constraint roster_pkey, add primary key (account, open_id);
comment on column lbank.roster.account is 'The alias of the account; empty: the default account.';
comment on table lbank.roster is 'Every user ever seen in the team list of an account: only these can have rows.';
