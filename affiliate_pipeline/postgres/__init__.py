"""PostgreSQL: the only place with SQL, and the embedded server."""
