"""Days, expected partitions, problems, redaction and settings: used by all other packages.

Nothing in it imports another package of the product, opens a connection or reads a clock.
"""
