# Generated code of more than a hundred exchanges, which would take pyright five seconds: what is not named here is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
