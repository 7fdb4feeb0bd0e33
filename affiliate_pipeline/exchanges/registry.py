"""Every exchange of the product, each with its endpoints and its reference tables."""

from itertools import chain

from affiliate_pipeline.exchanges.binance import endpoints as binance
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records, ReferenceTable
from affiliate_pipeline.exchanges.lbank import endpoints as lbank

_EXCHANGES = (binance, lbank)
ENDPOINTS: tuple[Endpoint, ...] = tuple(chain.from_iterable(each.ENDPOINTS for each in _EXCHANGES))
REFERENCE_TABLES: tuple[ReferenceTable, ...] = tuple(chain.from_iterable(each.REFERENCE_TABLES for each in _EXCHANGES))
EARNING = tuple(endpoint for endpoint in ENDPOINTS if isinstance(endpoint, Records) and endpoint.money)
# If any of these is set, real exchanges are configured.
EXCHANGE_VARIABLES = tuple(
    dict.fromkeys(
        name
        for endpoint in ENDPOINTS
        for name in (endpoint.exchange.base_url_variable, *endpoint.credentials, *endpoint.requires)
    )
)
