"""The sandbox: exchanges on loopback, as strict as the real ones, with data known to the last digit.

It imports nothing else of affiliate_pipeline and verifies signatures with code of its own, so that a mistake
of the client cannot hide in shared code. `server` carries HTTP; `binance` and `lbank` are exchanges and know no
socket; `exchange` is the protocol between them, `faults` spoils answers. The exchanges share `parameters`,
`signatures`, `sliding_window`, `days` and `rows`. Another exchange is a folder like `binance` and one more name in
`Sandbox`.
"""

from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.rows import Number
from affiliate_pipeline.sandbox.server import Request, Sandbox

__all__ = ["Faults", "Number", "Request", "Sandbox"]
