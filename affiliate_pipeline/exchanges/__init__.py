"""The exchanges: their endpoints, and how requests to them are signed, sent and paged.

Fetching yields days of rows as received. Of the assets' tables, only the roster is written here; `landing` writes the
others.
"""
