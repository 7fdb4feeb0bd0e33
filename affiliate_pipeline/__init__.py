"""Commission records of exchange affiliate programmes, exact and complete, as Dagster assets in PostgreSQL.

For a Dagster project of one's own: `build_definitions` and what it takes, and `load_days` for the landed rows.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affiliate_pipeline.defs.accounts import ApiKey, BinanceAccount, LBankAccount
    from affiliate_pipeline.defs.arguments import AffiliateDatabase, Alerts
    from affiliate_pipeline.defs.components import BinanceLinkComponent, LBankAffiliateComponent
    from affiliate_pipeline.defs.factory import build_definitions
    from affiliate_pipeline.landing.frames import load_days

# Imported on first use: the sandbox and the commands start without Dagster.
_MODULES = {
    "AffiliateDatabase": "affiliate_pipeline.defs.arguments",
    "Alerts": "affiliate_pipeline.defs.arguments",
    "ApiKey": "affiliate_pipeline.defs.accounts",
    "BinanceAccount": "affiliate_pipeline.defs.accounts",
    "BinanceLinkComponent": "affiliate_pipeline.defs.components",
    "LBankAccount": "affiliate_pipeline.defs.accounts",
    "LBankAffiliateComponent": "affiliate_pipeline.defs.components",
    "build_definitions": "affiliate_pipeline.defs.factory",
    "load_days": "affiliate_pipeline.landing.frames",
}
__all__ = [
    "AffiliateDatabase",
    "Alerts",
    "ApiKey",
    "BinanceAccount",
    "BinanceLinkComponent",
    "LBankAccount",
    "LBankAffiliateComponent",
    "build_definitions",
    "load_days",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    # Dagster finds components by the names in their module.
    return [*globals(), *__all__]
