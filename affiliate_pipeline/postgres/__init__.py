"""PostgreSQL: connections, locks, rate limits and migrations, for modules that own tables.

Nothing here depends on an exchange or an asset; only migrations and the rate limiter use tables of their own.
"""
