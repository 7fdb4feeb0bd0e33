"""The sandbox for whoever needs it and may find nobody serving it."""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

from affiliate_pipeline.sandbox.server import Sandbox


@contextmanager
def served(base_url: str, rate_scale: float = 1.0) -> Generator[None, None, None]:
    """Something answers at the loopback URL: whoever serves it already, else this process for as long as it needs it.

    The data are the same whoever serves them; `rate_scale` is `Sandbox`'s, where this process serves.
    """
    url = urlsplit(base_url)
    try:
        socket.create_connection((url.hostname, url.port), timeout=5).close()
    except ConnectionRefusedError:
        with Sandbox(port=url.port or 0, rate_scale=rate_scale):
            yield
    else:
        yield
