"""Binance Link in the sandbox: `exchange` answers calls, the other modules are what it answers with.

`signing` verifies, `parameters` has the codes of refusals, `records` keeps rows by day, `rebates`, `kickbacks` and
`customers` generate data.
"""
