"""What is configured of the account at LBank."""

from typing import Literal, Self

from pydantic import SecretStr, model_validator

from affiliate_pipeline.domain.settings import BaseUrl, RateScale, Settings, check_rate_scale

CREDENTIALS = ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID")


class LBank(Settings):
    lbank_base_url: BaseUrl = "https://affiliate.lbankverify.com"
    lbank_api_key: SecretStr | None = None
    lbank_api_secret: SecretStr | None = None
    lbank_signature_method: Literal["HmacSHA256", "RSA"] = "HmacSHA256"
    lbank_open_id: str = ""
    affiliate_rate_scale: RateScale = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rate_scale(self.lbank_base_url, self.affiliate_rate_scale)
        return self
