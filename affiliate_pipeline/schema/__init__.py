"""Rows of the endpoints: their columns, and how JSON is parsed, validated, stored and hashed.

The schemas themselves are declared by the exchanges; nothing here depends on one of them.
"""
