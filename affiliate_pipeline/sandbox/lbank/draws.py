"""Integers and amounts that depend only on a key, the same in every process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b

SCALES = (2, 4, 8, 8, 8, 18)

Draw = Callable[[int], int]
"""Draws the next integer below a limit."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A decimal in units of 10^-18, and how many of its decimals are written."""

    units: int
    scale: int

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.units + other.units, max(self.scale, other.scale))

    def __str__(self) -> str:
        whole, rest = divmod(self.units // 10 ** (18 - self.scale), 10**self.scale)
        return f"{whole}.{rest:0{self.scale}d}" if self.scale else f"{whole}"


NOTHING = Amount(0, 0)


def sum_of(amounts: Iterable[Amount]) -> Amount:
    """Their sum, with the largest scale among them."""
    return reduce(Amount.__add__, amounts, NOTHING)


def draws(*key: str | int) -> Draw:
    """A source of integers that depend only on the key."""
    rest = int.from_bytes(blake2b(repr(key).encode()).digest(), "big")

    def below(limit: int) -> int:
        nonlocal rest
        rest, drawn = divmod(rest, limit)
        return drawn

    return below


def draw_amount(below: Draw) -> Amount:
    """A positive amount of any size up to about ten million."""
    scale = SCALES[below(len(SCALES))]
    unit = 10 ** (18 - scale)
    units = (below(10 ** (3 + below(9))) + 1) * 10**14 + below(10**14)
    if below(8) == 0:  # trailing zeros
        units = max(1, units // 10**18) * 10**18
    return Amount(max(1, units // unit) * unit, scale)
