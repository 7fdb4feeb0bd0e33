"""Rows of the endpoints: columns, parsing and validation of JSON, COPY text and hashes.

The schemas themselves are declared by the exchanges; nothing here depends on one of them.
"""
