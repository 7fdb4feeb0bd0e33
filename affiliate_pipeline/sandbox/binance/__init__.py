"""Binance in the sandbox: `exchange` responds to calls with the data of the other modules.

`signing` verifies calls, `weight` limits them, `parameters` has the refusal codes, `records` stores rows by day;
`rebates`, `kickbacks`, `customers` and `market_data` generate data.
"""
