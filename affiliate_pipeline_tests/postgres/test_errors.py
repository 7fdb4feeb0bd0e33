"""Errors of failed connections: the message decides the action."""

import psycopg
import pytest

from affiliate_pipeline.postgres.errors import RETRY_ACTION, explained

SERVER = 'connection failed: connection to server at "alerts-db", port 5432 failed: '


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("FATAL:  no pg_hba.conf entry for host ::1, SSL encryption", "or the server's pg_hba.conf"),
        ("FATAL:  no pg_hba.conf entry for host ::1, no encryption", "sslmode=verify-full"),
        ('FATAL:  database "certificates" does not exist', "Create it"),
        ("Connection refused", RETRY_ACTION),
        ("SSL connection has been closed unexpectedly", RETRY_ACTION),
        ("SSL SYSCALL error: EOF detected", RETRY_ACTION),
        ("SSL error: tlsv13 alert certificate required", "Correct sslcert, sslkey"),
        ("SSL error: ssl/tls alert handshake failure", "Correct sslcert, sslkey"),
        ("SSL error: certificate verify failed", "Set sslrootcert"),
        ("received invalid response to SSL negotiation: H", "Correct sslmode and sslrootcert"),
    ],
)
def test_a_failed_connection_is_explained_by_its_message_and_not_by_names_in_it(message, action):
    error = explained(psycopg.OperationalError(SERVER + message))
    assert message in error.problem.what and action in error.problem.action
