"""Exact amounts, shortened for display. The exact text stays available; floats are for plots only."""

from collections.abc import Iterable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from functools import reduce
from math import isfinite

# For exact sums of any length.
EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
# Of amounts as displayed.
SIGNIFICANT_DIGITS = 6
_ROUNDING = Context(prec=SIGNIFICANT_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
# A number with more integer digits is wider than a phone's column.
_MAX_INTEGER_DIGITS = 9
_MIN_EXPONENT = -6
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum with every digit."""
    return reduce(EXACT.add, amounts, Decimal(0))


def exact(amount: Decimal) -> str:
    """Every digit, without an exponent."""
    return f"{amount:f}"


def short(amount: Decimal) -> str:
    """Six significant digits (half even) with thousands separators: `1,234.57`, `0.00123457`, `1.23457×10³⁹`.

    The integer part of an amount below 10⁹ has all its digits.
    """
    if not amount:
        return "0"

    # `adjusted()` is the exponent of the first digit.
    if amount.adjusted() < _MAX_INTEGER_DIGITS:
        places = max(0, SIGNIFICANT_DIGITS - 1 - amount.adjusted())
        rounded = EXACT.quantize(amount, Decimal(1).scaleb(-places))
        if _MIN_EXPONENT <= rounded.adjusted() < _MAX_INTEGER_DIGITS:
            text = f"{rounded:,f}"
            if "." in text:
                text = text.rstrip("0").rstrip(".")
            return _with_minus_sign(text)

    rounded = _ROUNDING.plus(amount)  # unary plus, which rounds
    exponent = rounded.adjusted()
    digits = f"{rounded.scaleb(-exponent).normalize():f}"
    superscript = str(exponent).translate(_SUPERSCRIPTS)
    return _with_minus_sign(f"{digits}×10{superscript}")


def usdt(amount: Decimal) -> str:
    """An amount with two places (half even), or as `short` if it is 10⁹ or more, or not 0 but rounded to 0.00."""
    if amount.adjusted() >= _MAX_INTEGER_DIGITS:
        return short(amount)
    rounded = EXACT.quantize(amount, Decimal("0.01"))
    is_rounded_to_zero = amount != 0 and rounded == 0
    if is_rounded_to_zero or rounded.adjusted() >= _MAX_INTEGER_DIGITS:
        return short(amount)
    return _with_minus_sign(f"{rounded:,f}")


def change_text(amount: Decimal, before: Decimal) -> str:
    """The change from `before` to `amount` in percent, such as `+12.4 %`; in USDT if `before` is not positive."""
    difference = EXACT.subtract(amount, before)
    if before <= 0:
        sign = "+" if difference >= 0 else ""
        return f"{sign}{usdt(difference)} USDT"

    # The result is rounded again below, so calculate with two digits more than are shown.
    context = Context(prec=SIGNIFICANT_DIGITS + 2, Emax=MAX_EMAX, Emin=MIN_EMIN)
    percent = context.multiply(context.divide(difference, before), Decimal(100))
    shown = f"{percent:,.1f}" if percent.adjusted() < _MAX_INTEGER_DIGITS else short(percent)
    if shown in ("0.0", "-0.0"):
        return "±0.0 %"
    sign = "+" if percent > 0 else ""
    return f"{sign}{_with_minus_sign(shown)} %"


def rounded_float(amount: Decimal) -> float | None:
    """The nearest float, for plots only; None beyond the range of floats."""
    nearest = float(amount)
    return nearest if isfinite(nearest) else None


def _with_minus_sign(text: str) -> str:
    """The number with a minus sign in place of a hyphen."""
    return text.replace("-", "−")
