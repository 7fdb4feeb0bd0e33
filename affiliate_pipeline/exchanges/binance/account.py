"""What is configured of the accounts at Binance."""

import re
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from affiliate_pipeline.domain.settings import BaseUrl, RateScale, Settings, check_rate_scale


def _host_suffixes(text: str) -> tuple[str, ...]:
    suffixes = tuple(
        each.strip().lower().removeprefix("*").removeprefix(".") for each in text.split(",") if each.strip()
    )
    # Neither an IP address nor a whole top-level domain.
    if not all(re.fullmatch(r"([a-z0-9-]+\.)+[a-z][a-z0-9-]+", each) for each in suffixes):
        raise ValueError("is not a list of host names, such as `files.example.com`, separated by commas")
    return suffixes


class Binance(Settings):
    binance_base_url: BaseUrl = "https://api.binance.com"
    # Further hosts of history files; each also permits its subdomains.
    binance_file_hosts: Annotated[tuple[str, ...], BeforeValidator(_host_suffixes)] = ()
    binance_partner_api_key: SecretStr | None = None
    binance_partner_api_secret: SecretStr | None = None
    binance_client_api_key: SecretStr | None = None
    binance_client_api_secret: SecretStr | None = None
    binance_api_agent_code: str | None = None
    # The path of a CSV `customerId,email`.
    binance_customer_ids: str | None = None
    binance_user_customer_id: str | None = None
    binance_weight_per_minute: Annotated[int, Field(ge=1, le=12000)] = 6000
    affiliate_rate_scale: RateScale = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rate_scale(self.binance_base_url, self.affiliate_rate_scale)
        return self
