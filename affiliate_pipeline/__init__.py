"""Commission records of exchange affiliate programmes, exact and complete, as Dagster assets in PostgreSQL."""
