"""Landing: fetched days are validated, written and verified, each in one transaction.

It works without Dagster. How an endpoint is fetched is declared in `exchanges`.
"""
