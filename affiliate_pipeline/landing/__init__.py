"""Landing: fetched days are checked, written in one transaction each, and recorded in the ledger.

It works without Dagster. How an endpoint is fetched is declared in `exchanges`.
"""
