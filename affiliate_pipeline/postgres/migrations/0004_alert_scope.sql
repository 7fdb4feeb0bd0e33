-- Several Dagster projects, or several sets of definitions of one project, may share a database.
alter table affiliate.alert add column scope text not null default '';
comment on column affiliate.alert.scope is 'The set of definitions that raised it and delivers it; empty: the code location of affiliate_pipeline itself.';
