"""Earnings: daily sums, exports and the report."""
