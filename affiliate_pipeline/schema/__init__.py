"""Rows of the endpoints: columns, COPY text, hashes, and the parsing and validation of JSON.

The schemas themselves are declared by the exchanges; nothing here depends on one of them.
"""
