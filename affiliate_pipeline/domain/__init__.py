"""Days, expected partitions, problems, redaction and settings, which all other packages use.

Nothing in it imports another package of the product, opens a connection or reads a clock.
"""
