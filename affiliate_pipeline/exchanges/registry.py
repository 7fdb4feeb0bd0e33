"""Every endpoint of the product."""

from affiliate_pipeline.exchanges.binance import endpoints as binance
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.lbank import endpoints as lbank

ENDPOINTS = (*binance.ENDPOINTS, *lbank.ENDPOINTS)
EARNING = tuple(endpoint for endpoint in ENDPOINTS if isinstance(endpoint, Records) and endpoint.money)
# With any of these set, real exchanges are configured.
EXCHANGE_VARIABLES = tuple(
    dict.fromkeys(
        name
        for endpoint in ENDPOINTS
        for name in (endpoint.exchange.base_url_variable, *endpoint.credentials, *endpoint.requires)
    )
)
