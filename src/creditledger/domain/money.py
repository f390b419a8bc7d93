"""Amounts: decimal strings on the wire, integers of the currency's smallest unit everywhere else.

Called at the edge (parse, format) and by the rules (limits). No float, no Decimal, no rounding.
"""

import re
from functools import lru_cache

from creditledger.domain.errors import InvalidField, echo

#: No amount is larger than this many smallest units.
AMOUNT_MAX = 10**17
#: No balance or counter passes this; it leaves room below the largest 64-bit integer.
TOTAL_MAX = 9 * 10**18
#: Digits after the point that a currency may have.
SCALE_MAX = 9

_DECIMAL = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
_POWERS = [10**scale for scale in range(SCALE_MAX + 1)]


def check(text: str, *, field: str) -> str:
    """`text` if it is a decimal number as the contract writes it; needs no currency.

    Refused (InvalidField): "", "+5", "1e3", "NaN", ".5", "5.", and zero with a sign.
    """
    if not _DECIMAL.fullmatch(text) or (text[0] == "-" and not text.strip("-0.")):
        raise InvalidField(
            f"{field} must be a decimal number such as 12.50, not {echo(text)}", param=field
        )
    return text


def parse(text: str, scale: int, *, field: str) -> int:
    """The amount in smallest units: parse("1.5", 9) == 1_500_000_000.

    Raises InvalidField if `text` is no number, has more fraction digits than `scale` (zeros
    count: they claim a precision that the currency lacks), or is beyond ±AMOUNT_MAX.
    """
    whole, _, fraction = check(text, field=field).partition(".")
    if len(fraction) > scale:
        raise InvalidField(
            f"{field} has {len(fraction)} fraction digits, its currency has {scale}", param=field
        )
    units = int(whole + fraction.ljust(scale, "0"))
    if not -AMOUNT_MAX <= units <= AMOUNT_MAX:
        raise InvalidField(f"{field} is beyond 10^17 smallest units", param=field)
    return units


# Of the eight amounts in an answer two or three differ, and prices repeat between answers.
@lru_cache(maxsize=4_096)
def text(units: int, scale: int) -> str:
    """The amount as the contract prints it: text(12_300_000, 9) == "0.0123", text(10**11, 9) ==
    "100.00": at least min(2, scale) fraction digits, no trailing zeros beyond them.
    """
    if scale == 0:
        return str(units)
    power = _POWERS[scale]
    whole, fraction = divmod(abs(units), power)
    # The power in front keeps the zeros after the point.
    digits = str(power + fraction)[1:].rstrip("0").ljust(min(2, scale), "0")
    return f"-{whole}.{digits}" if units < 0 else f"{whole}.{digits}"
