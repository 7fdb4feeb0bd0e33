"""Every endpoint of the product."""

from affiliate_pipeline.exchanges.binance import endpoints as binance

ENDPOINTS = (*binance.ENDPOINTS,)
