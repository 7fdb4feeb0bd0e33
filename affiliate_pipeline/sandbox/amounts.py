"""Exact amounts as text with a given number of decimals, and how they are distributed."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

ONE = 10**18
"""One coin in the units of amounts."""
DRAW_LIMIT = 10_000
"""The draws that `spread` takes are uniform below this."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A decimal in units of 10^-18, and how many of its decimals are written; further ones are cut off."""

    units: int
    scale: int

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.units + other.units, max(self.scale, other.scale))

    def __str__(self) -> str:
        whole, rest = divmod(self.units // 10 ** (18 - self.scale), 10**self.scale)
        return f"{whole}.{rest:0{self.scale}d}" if self.scale else f"{whole}"


NOTHING = Amount(0, 0)


def sum_of(amounts: Iterable[Amount]) -> Amount:
    """The sum of the amounts, with the largest scale among them."""
    return reduce(Amount.__add__, amounts, NOTHING)


def spread(mean: int, first_draw: int, second_draw: int) -> int:
    """A number with mean `mean` if both draws are uniform below DRAW_LIMIT: mostly far smaller, rarely 60 times it."""
    # With x = DRAW_LIMIT, `mean` is multiplied by 3 (second_draw / x)^2 and by x / (first_draw + x / 100) / 4.615. The
    # mean of either factor is 1, since that of x / (first_draw + x / 100) is ln 101 = 4.615.
    numerator = mean * 3 * second_draw**2 * 1000
    denominator = DRAW_LIMIT * (first_draw + DRAW_LIMIT // 100) * 4615
    return numerator // denominator


def with_significant_digits(units: int, digits: int) -> int:
    """The number with all digits after the first `digits` replaced by zeros."""
    step = 10 ** max(0, len(f"{units}") - digits)
    return units // step * step
