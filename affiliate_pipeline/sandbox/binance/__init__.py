"""Binance Link in the sandbox: `exchange` responds to calls with what the other modules supply.

`signing` verifies calls, `parameters` has the refusal codes, `records` stores rows by day; `rebates`, `kickbacks` and
`customers` generate data.
"""
