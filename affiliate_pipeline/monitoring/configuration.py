"""What is configured of alerts: where they go, and the links in them."""

import re
from collections.abc import Sequence

from pydantic import SecretStr

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import BaseUrl, Settings, quotes_in


class Alerts(Settings):
    alert_urls: SecretStr | None = None
    heartbeat_url: SecretStr | None = None
    dagster_ui_url: BaseUrl = "http://localhost:3000"

    def urls(self) -> Sequence[str]:
        """Apprise URLs; they hold secrets."""
        urls = self.alert_urls.get_secret_value() if self.alert_urls else ""
        if urls and (problems := quotes_in("ALERT_URLS", urls)):
            raise SettingsError(*problems)
        # A URL has commas of its own (`to=a@x.com,b@x.com`), but no white space.
        return [url.strip() for url in re.split(r",(?=[\s,]|$|\w+://)", urls) if url.strip()]
