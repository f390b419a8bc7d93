"""The ledger walked past a file of receipts, in short reads, whether a server runs or not."""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from zoneinfo import ZoneInfo

from creditledger.domain import clock
from creditledger.domain.errors import InvalidField, echo
from creditledger.domain.reconciliation import CannotReconcile, Rates, Reconciliation
from creditledger.ops.config import Config
from creditledger.ops.database import look, require_schema
from creditledger.store.read import topups

#: Rows of one read.
STEP_ROWS = 10_000
#: Wallets asked at once for what was taken back.
STEP_WALLETS = 500
#: How far the provider's clock may be ahead of the ledger's.
EARLIER_MAX = clock.DAY

_RATE = re.compile(
    r"([A-Za-z0-9_]{1,32})/([A-Za-z]{3})=(any|[0-9]{1,12}(?:\.[0-9]{1,9})?)", re.ASCII
)


async def walk(
    config: Config,
    compared: Reconciliation,
    *,
    provider: str,
    livemode: bool,
    on_progress: Callable[[int, int], None],
) -> None:
    """Read everything of the ledger that is compared. Raises CannotStart, CannotReconcile."""
    await require_schema(config)
    last = await look(config, topups.last_wallet)
    times = [receipt.created_at for receipt in compared.receipts.values()]
    since = min([compared.window.start, *times]) - EARLIER_MAX
    walk = partial(
        topups.step,
        size=STEP_ROWS,
        provider=provider,
        livemode=livemode,
        since=since,
    )
    place = topups.BEGINNING
    while place.wallet <= last:
        found, place = await look(config, partial(walk, after=place))
        for one in found:
            compared.credit(one)
        on_progress(place.wallet, last)
    refunded = compared.refunded()
    for first in range(0, len(refunded), STEP_WALLETS):
        some = refunded[first : first + STEP_WALLETS]
        for row in await look(config, partial(topups.taken_back, wallets=some)):
            compared.take_back(row)


def words(said: str) -> frozenset[str]:
    """Words with commas between, as files spell them or not."""
    return frozenset(
        " ".join(word.casefold().replace("_", " ").split()) for word in said.split(",")
    )


def zone(name: str) -> ZoneInfo:
    """The zone that `--time-zone` names. Raises CannotReconcile."""
    try:
        return clock.zone(name, field="--time-zone")
    except InvalidField as error:
        raise CannotReconcile(f"{error.message}.") from None


def moment(said: str | None, name: str) -> int | None:
    """The moment that an option names. Raises CannotReconcile."""
    try:
        return None if said is None else clock.parse(said, field=name)
    except InvalidField as error:
        raise CannotReconcile(f"{error.message}.") from None


def rates(said: Iterable[str]) -> Rates:
    """The rates of the options `--rate`. Raises CannotReconcile."""
    found: dict[tuple[str, str], Fraction | None] = {}
    for one in said:
        match = _RATE.fullmatch(one)
        if match is None:
            raise CannotReconcile(f"--rate must be like CREDIT/USD=1000, not {echo(one)}.")
        found[match[1], match[2].upper()] = None if match[3] == "any" else Fraction(match[3])
    return found
