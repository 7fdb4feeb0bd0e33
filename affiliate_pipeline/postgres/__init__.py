"""PostgreSQL: connections, locks, rate limits and migrations, for the owners of tables."""
