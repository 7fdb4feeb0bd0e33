"""Integers and amounts that depend only on a key, the same in every process."""

from collections.abc import Callable
from hashlib import blake2b

from affiliate_pipeline.sandbox.amounts import DRAW_LIMIT, Amount, spread, with_significant_digits

SCALES = (2, 4, 8, 8, 8, 18)

Draw = Callable[[int], int]
"""Draws the next integer below a limit."""


def draws(*key: str | int) -> Draw:
    """A source of integers that depend only on the key; after 512 bits, all are 0."""
    rest = int.from_bytes(blake2b(repr(key).encode()).digest(), "big")

    def draw_below(limit: int) -> int:
        nonlocal rest
        rest, drawn = divmod(rest, limit)
        return drawn

    return draw_below


def draw_amount(draw_below: Draw, mean: int) -> Amount:
    """A positive amount; most are far smaller than the mean (in units of 10^-18), a few far larger."""
    return with_drawn_scale(draw_below, spread(mean, draw_below(DRAW_LIMIT), draw_below(DRAW_LIMIT)))


def with_drawn_scale(draw_below: Draw, units: int) -> Amount:
    """About this amount (in units of 10^-18), never 0, with a drawn number of decimals.

    If fewer than three digits of the amount would be left with the drawn number, the result has 8 or 18 decimals.
    """
    scale = _scale_with_three_digits(units, SCALES[draw_below(len(SCALES))])
    if draw_below(8) == 0:  # trailing zeros
        units = with_significant_digits(units, 3)
    unit = 10 ** (18 - scale)
    return Amount(max(1, units // unit) * unit, scale)


def _scale_with_three_digits(units: int, drawn_scale: int) -> int:
    """The drawn number of decimals, or 8 or 18 if fewer than three digits would be left with it."""
    for scale in (drawn_scale, 8):
        if units >= 100 * 10 ** (18 - scale):
            return scale
    return 18
