"""Components for Dagster projects that declare their definitions in YAML: `build_definitions` for one account.

Credentials are given by variable name. Dagster stores resolved attributes in plain text, so these names are not
templates, and a value that cannot be a name is refused.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import dagster as dg

from affiliate_pipeline.defs.accounts import Account, ApiKey, BinanceAccount, LBankAccount
from affiliate_pipeline.defs.arguments import AffiliateDatabase, Alerts, InvalidArgument
from affiliate_pipeline.defs.factory import Status, build_definitions
from affiliate_pipeline.domain.settings import DATABASE_VARIABLE, DEFAULT_START_DATE, Digest

_SUFFIX = "_variable"
# Rejects an API key that is given instead of a variable's name. A key may consist of upper-case letters and digits
# only, but then has more than 20 in a row. So a name has at most 20 characters between underscores.
_NAME = re.compile("(?=[A-Z_])[A-Z0-9]{0,20}(_[A-Z0-9]{0,20})*")


def _templated(description: str) -> dg.Resolver:
    """An attribute whose templates are resolved."""
    return dg.Resolver.default(description=description)


def _variable_name(description: str) -> dg.Resolver:
    """The name of a variable: a template could put its value there, so none is resolved."""
    return dg.Resolver.passthrough(description)


class AccountScaffolder(dg.Scaffolder[Any]):
    """Writes a `defs.yaml` that names the application's variables."""

    variables: ClassVar[Mapping[str, str]]

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write the file."""
        dg.scaffold_component(request, {**self.variables, f"database_url{_SUFFIX}": DATABASE_VARIABLE})


class AccountComponent(dg.Component, dg.Model, dg.Resolvable):
    """The assets, schedules and sensors of one account."""

    alias: Annotated[
        str, _templated("Part of the asset keys and of the column `account`; empty for the default account.")
    ] = ""
    base_url: Annotated[str | None, _templated("The exchange's own by default.")] = None
    database_url_variable: Annotated[str, _variable_name("The variable of the URL of the PostgreSQL database.")]
    endpoints: Annotated[
        Sequence[str] | None, _templated("Such as `trade_user`; all that the account can reach by default.")
    ] = None
    start_date: Annotated[str, _templated("The first partition.")] = f"{DEFAULT_START_DATE}"
    key_prefix: Annotated[Sequence[str], _templated("Begins each asset key.")] = ()
    group_name: Annotated[str | None, _templated("The group of all assets; by default, that of the account.")] = None
    owners: Annotated[Sequence[str], _templated("The owners of all assets; by default, a team of the account.")] = ()
    op_tags: Annotated[dict[str, Any] | None, _templated("Tags of each asset's op.")] = None
    schedules: Annotated[Status, _templated("`running`, `stopped`, or null for none.")] = "stopped"
    monitoring: Annotated[Status, _templated("`running`, `stopped`, or null for none.")] = "stopped"
    alert_urls_variable: Annotated[
        str | None, _variable_name("The variable of the Apprise URLs that alerts go to.")
    ] = None
    heartbeat_url_variable: Annotated[
        str | None, _variable_name("The variable of the URL that is called while no day is at risk; with alerts only.")
    ] = None
    ui_url: Annotated[str | None, _templated("The base of the links in alerts.")] = None
    digest: Annotated[
        Digest,
        _templated(
            "`daily`, `weekly` or `off`: a digest of the earnings; requires `alert_urls_variable` and `commission`."
        ),
    ] = "off"
    commission: Annotated[
        bool,
        _templated(
            "Whether to add `affiliate/daily_commission`, the same per customer, and `affiliate/daily_report`, of all accounts."
        ),
    ] = False
    prices: Annotated[
        bool, _templated("Whether `commission` also adds `affiliate/price`, from Binance's public markets.")
    ] = False

    @abstractmethod
    def account(self) -> Account:
        """The account; raises `InvalidArgument`."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The definitions of `build_definitions`; raises `InvalidArgument`."""
        self._check_names()
        return build_definitions(
            [self.account()],
            database=AffiliateDatabase(url=dg.EnvVar(self.database_url_variable)),
            endpoints=self.endpoints,
            start_date=self.start_date,
            key_prefix=self.key_prefix,
            group_name=self.group_name,
            owners=self.owners,
            op_tags=self.op_tags,
            schedules=self.schedules,
            monitoring=self.monitoring,
            alerts=self._alerts(),
            commission=self.commission,
            prices=self.prices,
        )

    def _check_names(self) -> None:
        # Not in a validator: Dagster's validation errors quote the value, which may be a secret given instead of its
        # variable's name.
        for attribute in type(self).model_fields:
            value = getattr(self, attribute)
            if attribute.endswith(_SUFFIX) and value is not None and not _NAME.fullmatch(value):
                raise InvalidArgument(
                    f"{attribute} is not the name of an environment variable. Set the variable where Dagster runs, and "
                    "give its name, such as ACME_SECRET (upper case, without templates)"
                )

    def _alerts(self) -> Alerts | None:
        if self.alert_urls_variable is None:
            if self.heartbeat_url_variable or self.ui_url or self.digest != "off":
                raise InvalidArgument("heartbeat_url_variable, ui_url and digest require alert_urls_variable")
            return None
        return Alerts(
            urls=dg.EnvVar(self.alert_urls_variable),
            heartbeat_url=_variable(self.heartbeat_url_variable),
            ui_url=self.ui_url,
            digest=self.digest,
        )

    def _key(self, role: str) -> ApiKey | None:
        """The role's key, or None without its two attributes; raises `InvalidArgument` if one of them is missing."""
        key_attribute, secret_attribute = f"{role}_key{_SUFFIX}", f"{role}_secret{_SUFFIX}"
        key: str | None = getattr(self, key_attribute)
        secret: str | None = getattr(self, secret_attribute)
        if key is None and secret is None:
            return None
        if key is None or secret is None:
            missing = key_attribute if key is None else secret_attribute
            raise InvalidArgument(f"{missing} is missing: a key is given with its secret")
        return ApiKey(key=dg.EnvVar(key), secret=dg.EnvVar(secret))


class BinanceScaffolder(AccountScaffolder):
    """For an account with the key of the partner."""

    variables = {
        "partner_key_variable": "BINANCE_PARTNER_API_KEY",
        "partner_secret_variable": "BINANCE_PARTNER_API_SECRET",
    }


@dg.scaffold_with(BinanceScaffolder)
class BinanceLinkComponent(AccountComponent):
    """Commission records of a Binance Link account, landed by day in PostgreSQL."""

    partner_key_variable: Annotated[str | None, _variable_name("The variable of the partner's API key.")] = None
    partner_secret_variable: Annotated[str | None, _variable_name("The variable of its secret.")] = None
    client_key_variable: Annotated[str | None, _variable_name("The variable of the client's API key.")] = None
    client_secret_variable: Annotated[str | None, _variable_name("The variable of its secret.")] = None
    agent_code_variable: Annotated[str | None, _variable_name("The variable of the partner's apiAgentCode.")] = None
    customer_ids: Annotated[
        str | None, _templated("The path of a CSV `customerId,email` with the desired ids of the partner's clients.")
    ] = None
    user_customer_id_variable: Annotated[
        str | None,
        _variable_name("The variable of the client's own desired id."),
    ] = None
    file_hosts: Annotated[Sequence[str], _templated("Further hosts of history files, with their subdomains.")] = ()
    weight_per_minute: Annotated[
        int | None,
        _templated(
            "The weight per minute that all accounts together may use, of the 12,000 that Binance permits per IP "
            "address: the same number in each account."
        ),
    ] = None

    def account(self) -> BinanceAccount:
        """The account; raises `InvalidArgument`."""
        return BinanceAccount(
            alias=self.alias,
            base_url=self.base_url,
            partner=self._key("partner"),
            client=self._key("client"),
            agent_code=_variable(self.agent_code_variable),
            customer_ids=self.customer_ids,
            user_customer_id=_variable(self.user_customer_id_variable),
            file_hosts=self.file_hosts,
            weight_per_minute=self.weight_per_minute,
        )


class LBankScaffolder(AccountScaffolder):
    """For an account of LBank."""

    variables = {
        "api_key_variable": "LBANK_API_KEY",
        "api_secret_variable": "LBANK_API_SECRET",
        "open_id_variable": "LBANK_OPEN_ID",
    }


@dg.scaffold_with(LBankScaffolder)
class LBankAffiliateComponent(AccountComponent):
    """Users, trades, deposits and commission of an LBank affiliate account, landed by day in PostgreSQL."""

    api_key_variable: Annotated[str, _variable_name("The variable of the API key.")]
    api_secret_variable: Annotated[str, _variable_name("The variable of its secret.")]
    open_id_variable: Annotated[str, _variable_name("The variable of the affiliate's own openId.")]
    signature_method: Annotated[
        Literal["HmacSHA256", "RSA"] | None,
        _templated("`HmacSHA256` by default; with `RSA`, the secret is a private key."),
    ] = None

    def account(self) -> LBankAccount:
        """The account."""
        return LBankAccount(
            alias=self.alias,
            base_url=self.base_url,
            api=ApiKey(key=dg.EnvVar(self.api_key_variable), secret=dg.EnvVar(self.api_secret_variable)),
            open_id=dg.EnvVar(self.open_id_variable),
            signature_method=self.signature_method,
        )


def _variable(name: str | None) -> dg.EnvVar | None:
    return None if name is None else dg.EnvVar(name)
