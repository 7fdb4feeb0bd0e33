"""Errors of PostgreSQL, each as a `StoreUnavailable` with its cause and an action."""

import re
from collections.abc import Generator
from contextlib import contextmanager

import psycopg

from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact

# How the texts below name the URL: some insert this constant, others spell it out. `explained` replaces both by the
# name of the variable that has the URL, where that name is known.
URL_NAME = "the database's URL"
RETRY_ACTION = "Check that it runs and that the database's URL is right, then materialize again"
DIRECT_ACTION = (
    "Set the database's URL to the direct address of the server, or to one that pools whole sessions (PgBouncer: "
    "pool_mode = session; Supabase: port 5432 instead of 6543)"
)
READ_ONLY = "the database is read-only"
READ_ONLY_ACTION = (
    "Usual causes are a hosting service that stopped writes because the disk is nearly full, a failover after which the "
    "address leads to a standby, and `default_transaction_read_only`. Make it writable or use the primary's address (with "
    "several hosts in the URL, add target_session_attrs=read-write), then materialize again"
)
# Follows the name of the database's encoding in messages.
ENCODING = "which cannot represent every character that an exchange may send"
ENCODING_ACTION = (
    "Create a database with `create database … encoding 'UTF8' template template0` and use it in the database's URL"
)
ROLE_ACTION = (
    "If tables have to be created or altered, run `affiliate-pipeline migrate` with the URL of a role that may do so, such as "
    "their owner; otherwise grant what is missing (docs/least_privilege.sql). Then materialize again"
)
# libpq's messages about TLS, as of version 18.
_TLS_CAUSES = (
    (
        "root certificate file|certificate verify failed|signature failure",
        f"Set sslrootcert in {URL_NAME} to a readable file with the certificate of the authority that signed the server's; for a "
        "public authority, /etc/ssl/certs/ca-certificates.crt. If the server's certificate has expired, renew it",
    ),
    (
        "does not match host name",
        f"Use a host in {URL_NAME} that the server's certificate names, or give the server a certificate with that name",
    ),
    (
        "does not support SSL",
        f"Enable TLS at the server, or correct the host and the port in {URL_NAME}: its sslmode requires TLS",
    ),
    (
        "SSL required|no encryption",
        f"If the server requires TLS, set sslmode=verify-full and sslrootcert in {URL_NAME}; otherwise correct its pg_hba.conf",
    ),
    (
        "private key file|certificate file|certificate (present|required)|client certificate|(?i:tls|ssl)\\S* alert",
        f"Correct sslcert, sslkey and sslpassword in {URL_NAME}: the server accepts only certificates of an authority that it "
        "trusts, and the key has to be that of the certificate and readable by its owner only",
    ),
)

# What to grant on each kind of object that a role may not use. Schemas have no entry: PostgreSQL's message about one is
# the same whether the role lacks the right to use it or to create tables in it.
_RIGHTS = {"table": "select, insert, update, delete", "sequence": "usage, select, update"}

UNUSABLE = "the database cannot be used"
# A pattern of codes, a pattern of messages, what happened and the action; the first match applies. An error with a
# code matches by its code alone. An error without a code (a failed connection) matches by its message, and only if the
# pattern of codes is empty or ends with `|`.
# Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_CAUSES: tuple[tuple[str, str, str, str], ...] = (
    *(("", texts, UNUSABLE, action) for texts, action in _TLS_CAUSES),
    ("53100", "", "the disk of the database is full", "Free space, then materialize again"),
    ("25006|", "session is read-only|server is in hot standby mode", READ_ONLY, READ_ONLY_ACTION),
    ("42501", "", "the database's role lacks a privilege", ROLE_ACTION),
    ("53400", "", UNUSABLE, "Raise the limit that is named, for the role or the database"),
    (
        "53300|", "too many (clients|connections)|connection slots|no more connections allowed|query_wait_timeout|max_client_conn",
        UNUSABLE, "Raise the limit of connections of the server, the database, the role or the pooler (a run uses up to six), "
        "or end sessions that are not needed; then materialize again",
    ),
    (
        "57P0[1235]|", "starting up|shutting down|not yet accepting|recovery mode",
        UNUSABLE, "It is being started or stopped. Wait until it runs, then materialize again",
    ),
    ("55P03", "", UNUSABLE, "Another session holds a lock: end its transaction, then materialize again"),
    ("57014", "", UNUSABLE, "A user or a timeout canceled the statement: materialize again"),
    ("26000|08P01|", "prepared statement|unsupported startup parameter|pooling mode", UNUSABLE, DIRECT_ACTION),
    (
        "28...|", "authentication failed|no password supplied|pg_hba.conf|not permitted to log in|role .* does not exist",
        UNUSABLE, "Correct the user name and the password in the database's URL, or the server's pg_hba.conf",
    ),
    ("3D000|", "database .* does not exist", UNUSABLE, "Create it, or correct its name in the database's URL"),
    ("", "resolve host|translate host name", UNUSABLE, "Correct the host in the database's URL"),
    ("", "SSL connection has been closed|SSL SYSCALL", UNUSABLE, RETRY_ACTION),
    ("", "SSL|certificate", UNUSABLE, f"Correct sslmode and sslrootcert in {URL_NAME}"),
)  # fmt: skip


class StoreUnavailable(AffiliateError):
    """The database cannot be used, or an operation on it failed."""

    def __init__(self, what: str, action: str = RETRY_ACTION) -> None:
        super().__init__(what, action)


_HINTS = "Is the server running|Either provide the file|This probably means the server|before or while processing"


@contextmanager
def as_store_unavailable() -> Generator[None]:
    """Raise every error of the driver as `StoreUnavailable`."""
    try:
        yield
    except psycopg.Error as error:
        raise explained(error) from None


def explained(error: psycopg.Error, url_name: str = URL_NAME) -> StoreUnavailable:
    """The error with its cause and an action, which names the database's URL by `url_name`."""
    message = _message(error)
    code = error.sqlstate or ""
    what, action = _cause(code, message)
    denied = re.fullmatch(r"permission denied for (table|sequence) (\S+)", message)
    if code == "42501" and denied:
        kind, name = denied.groups()
        statement = f"grant {_RIGHTS[kind]} on {kind} {name} to …"
        action = f"Run `{statement}` as its owner, or see docs/least_privilege.sql; then materialize again"
    return StoreUnavailable(f"{what}: {message}", action.replace(URL_NAME, url_name))


def _cause(code: str, message: str) -> tuple[str, str]:
    """What happened and the action, by the code or, if that is empty, by the message."""
    # Names of hosts, databases and roles, which are in quotes, may look like a cause.
    message = re.sub('".*?"', '""', message)
    for codes, texts, what, action in _CAUSES:
        if re.fullmatch(codes, code) and (code or re.search(texts, message)):
            return what, action
    return UNUSABLE, RETRY_ACTION


def _message(error: psycopg.Error) -> str:
    """PostgreSQL's message on one line: one part per host, without libpq's hints.

    One of these hints suggests turning the verification of certificates off.
    """
    text = (error.diag.message_primary or str(error) or type(error).__name__).strip()
    # psycopg lists the failures of several hosts below a heading, as `- host: …: connection …`.
    lines = re.sub(r"(?s).*\nMultiple connection attempts failed.*?\n(?=- )", "", text).splitlines()
    parts = [re.sub(r"^- host: .*?: (?=connection)", "", line.strip()) for line in lines]
    without_hints = [part for part in parts if not re.match(_HINTS, part)]
    return redact("; ".join(dict.fromkeys(without_hints)))


def is_unusable(error: psycopg.Error) -> bool:
    """Whether the error affects the whole database and not just one transaction."""
    return re.fullmatch(r"|08...|25006|28...|3D...|53[123]..|57P..|58...|XX...", error.sqlstate or "") is not None
