"""The sandbox: exchanges on loopback, as strict as the real ones, with exactly known data of one or several accounts.

It imports nothing else of affiliate_pipeline and verifies signatures with its own code, so that a mistake of the client
cannot be hidden by shared code. `server` serves HTTP, `binance` and `lbank` implement the exchanges without sockets,
and `exchange` is the protocol between them. `faults` injects faults into responses. The exchanges share
`parameters`, `signatures`, `sliding_window`, `days`, `amounts`, `prices` and `rows`. A new exchange requires a folder
like `binance` and an entry in `Account`.
"""

from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.rows import Number
from affiliate_pipeline.sandbox.server import Account, Request, Sandbox

__all__ = ["Account", "Faults", "Number", "Request", "Sandbox"]
