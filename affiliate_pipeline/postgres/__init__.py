"""PostgreSQL: connections, locks, rate limits and migrations, for modules that own tables."""
