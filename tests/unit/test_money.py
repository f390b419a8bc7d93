"""Amounts: what is refused, and that text and units are two writings of one number."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditledger.domain import money
from creditledger.domain.errors import InvalidField

scales = st.integers(0, money.SCALE_MAX)
amounts = st.integers(-money.AMOUNT_MAX, money.AMOUNT_MAX)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "1e3",
        "1E3",
        "NaN",
        "Infinity",
        "-Infinity",
        "+5",
        "-0",
        "-0.00",
        "-",
        "--5",
        "5-",
        ".5",
        "5.",
        "1.2.3",
        "1,5",
        "1_000",
        " 5",
        "5 ",
        "5\n",
        "0x10",
        "٥",  # noqa: RUF001 # a digit, but not ours
        "\uff15",  # another
        "½",
        "1" + "0" * 30,
        "0." + "0" * 31,
        "9" * 10_000,
    ],
)
def test_text_that_is_no_plain_decimal_is_refused(text: str) -> None:
    """Nothing but digits, one point between digits and a minus before them is an amount."""
    with pytest.raises(InvalidField) as refused:
        money.parse(text, 9, field="grant.amount")

    assert refused.value.param == "grant.amount"
    with pytest.raises(InvalidField):
        money.check(text, field="grant.amount")


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("1.0", 0),
        ("0.01", 1),
        ("0.0000000001", 9),
        ("1.1234567890", 9),  # a zero claims a precision too
        ("100000000000000001", 0),
        ("-100000000000000001", 0),
        ("100000000.000000001", 9),
        ("-100000000.000000001", 9),
        ("100000000000000000", 9),
        ("999999999999999999999999999999", 0),
    ],
)
def test_more_than_the_currency_holds_is_refused(text: str, scale: int) -> None:
    """More fraction digits than the currency's scale, or beyond 10^17 units, is no amount of it."""
    with pytest.raises(InvalidField) as refused:
        money.parse(text, scale, field="consumption.amount")

    assert refused.value.param == "consumption.amount"


@pytest.mark.parametrize(
    ("text", "scale", "units"),
    [
        ("0", 9, 0),
        ("0.00", 2, 0),
        ("5", 0, 5),
        ("-5.00", 9, -5_000_000_000),
        ("0.0123", 9, 12_300_000),
        ("007.5", 1, 75),
        ("-0.1", 1, -1),
        ("100000000", 9, money.AMOUNT_MAX),
        ("-100000000.000000000", 9, -money.AMOUNT_MAX),
        ("100000000000000000", 0, money.AMOUNT_MAX),
    ],
)
def test_amounts_are_counted_in_smallest_units(text: str, scale: int, units: int) -> None:
    """An amount is its number of smallest units, to the bound and including it."""
    assert units == money.parse(text, scale, field="amount")


@pytest.mark.parametrize(
    ("units", "scale", "text"),
    [
        (0, 9, "0.00"),
        (0, 0, "0"),
        (10**11, 9, "100.00"),
        (12_300_000, 9, "0.0123"),
        (-5_000_000_000, 9, "-5.00"),
        (-1, 9, "-0.000000001"),
        (15, 1, "1.5"),
        (20, 1, "2.0"),
        (-7, 0, "-7"),
        (123, 2, "1.23"),
        (120, 2, "1.20"),
        (1_000_001, 6, "1.000001"),
        (9 * 10**18, 9, "9000000000.00"),
    ],
)
def test_amounts_are_written_in_one_way(units: int, scale: int, text: str) -> None:
    """At least two fraction digits where the currency has them, and no zeros beyond."""
    assert text == money.text(units, scale)


@given(units=amounts, scale=scales)
def test_what_is_written_is_read_back(units: int, scale: int) -> None:
    """Every amount survives being written and read, in every currency."""
    text = money.text(units, scale)

    assert units == money.parse(text, scale, field="amount")
    assert Decimal(units).scaleb(-scale) == Decimal(text)
    whole, _, fraction = text.partition(".")
    assert len(fraction) <= 2 or fraction[-1] != "0"
    assert len(fraction) >= min(2, scale)
    assert whole not in ("", "-")


@given(units=amounts, scale=scales, zeros=st.integers(0, 9), leading=st.integers(0, 3))
def test_zeros_that_say_nothing_change_nothing(
    units: int, scale: int, zeros: int, leading: int
) -> None:
    """Zeros before the number, and behind it up to the scale, are another writing of the same."""
    sign, digits = ("-" if units < 0 else ""), str(abs(units)).rjust(scale + 1, "0")
    whole, fraction = digits[: len(digits) - scale], digits[len(digits) - scale :]
    kept = fraction.rstrip("0")
    fraction = kept.ljust(min(scale, len(kept) + zeros), "0")
    text = f"{sign}{'0' * leading}{whole}{'.' if fraction else ''}{fraction}"

    assert units == money.parse(text, scale, field="amount")


@given(
    text=st.text(alphabet="0123456789.-+eE_ ,", max_size=12) | st.text(max_size=8),
    scale=scales,
)
def test_every_text_is_an_amount_or_refused(text: str, scale: int) -> None:
    """No text whatever does anything but be read exactly or raise InvalidField."""
    try:
        units = money.parse(text, scale, field="amount")
    except InvalidField:
        return

    assert Decimal(units).scaleb(-scale) == Decimal(text)
    assert text.isascii()
