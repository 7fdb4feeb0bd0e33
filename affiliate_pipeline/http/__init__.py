"""HTTP clients with retries and rate limits, classified errors, and downloads.

What is specific to one exchange, such as its signature and its error codes, is in `exchanges`.
"""
