"""The exchanges: their endpoints, and how requests to them are signed, sent and paged.

Fetching yields days of rows as received. Nothing here writes to an asset's table; that is `landing`.
"""
