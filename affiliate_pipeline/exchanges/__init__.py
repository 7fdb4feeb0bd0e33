"""The exchanges: their endpoints, and how requests to them are signed, sent and paged.

Fetching yields days of rows as received, and `landing` writes them to the endpoints' tables. The roster is the only
asset whose table is written here.
"""
