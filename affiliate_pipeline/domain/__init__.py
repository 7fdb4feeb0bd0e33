"""Days, expected partitions, problems, redaction and settings: used by all other packages except the sandbox.

Nothing in it imports another package of the product, opens a connection or reads a clock.
"""
