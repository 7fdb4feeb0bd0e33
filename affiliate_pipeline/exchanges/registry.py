"""Every endpoint of the product."""

from affiliate_pipeline.exchanges.binance import endpoints as binance
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.lbank import endpoints as lbank

ENDPOINTS = (*binance.ENDPOINTS, *lbank.ENDPOINTS)
EARNING = tuple(endpoint for endpoint in ENDPOINTS if isinstance(endpoint, Records) and endpoint.money)
