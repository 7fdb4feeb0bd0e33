"""Exact amounts shortened for display: six significant digits, or two decimal places for money."""

from decimal import Decimal

import pytest

from affiliate_pipeline.commission.amounts import change_text, exact, exact_sum, rounded_float, short, usdt


@pytest.mark.parametrize(
    ("amount", "shown", "money"),
    [
        ("0", "0", "0.00"),
        ("0E-18", "0", "0.00"),
        ("1234.5678", "1,234.57", "1,234.57"),
        ("-0.000000000000000001", "−1×10⁻¹⁸", "−1×10⁻¹⁸"),
        ("0.00123456789", "0.00123457", "0.00123457"),
        ("0.50", "0.5", "0.50"),
        ("100", "100", "100.00"),
        ("2.345", "2.345", "2.34"),
        ("999999.9999", "1,000,000", "1,000,000.00"),
        ("1234567.89", "1,234,568", "1,234,567.89"),
        ("-123456789.126", "−123,456,789", "−123,456,789.13"),
        ("999999999.999", "1×10⁹", "1×10⁹"),
        ("1" * 40, "1.11111×10³⁹", "1.11111×10³⁹"),
        (f"1{'0' * 400}.5", "1×10⁴⁰⁰", "1×10⁴⁰⁰"),
    ],
)
def test_an_amount_is_shortened(amount, shown, money):
    assert (short(Decimal(amount)), usdt(Decimal(amount))) == (shown, money)


def test_a_sum_has_every_digit():
    parts = ["1" * 40, "0.000000000000000001", "-0.1"]
    assert exact(exact_sum(map(Decimal, parts))) == f"{'1' * 39}0.900000000000000001"
    assert exact(exact_sum([])) == "0"


@pytest.mark.parametrize(
    ("amount", "before", "shown"),
    [
        ("11", "10", "+10.0 %"),
        ("9", "10", "−10.0 %"),
        ("10.0000001", "10", "±0.0 %"),
        ("12345", "10", "+123,350.0 %"),
        ("1e30", "3", "+3.33333×10³¹ %"),
        # A percentage of zero, or of a loss, would be meaningless.
        ("5", "0", "+5.00 USDT"),
        ("-3", "-4", "+1.00 USDT"),
        ("-5", "-4", "−1.00 USDT"),
    ],
)
def test_a_change_is_in_percent_of_a_positive_amount(amount, before, shown):
    assert change_text(Decimal(amount), Decimal(before)) == shown


def test_a_float_is_only_for_amounts_within_its_range():
    assert rounded_float(Decimal("0.1")) == 0.1
    assert rounded_float(Decimal("1e400")) is None
