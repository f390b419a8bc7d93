"""The ledger walked past a file of receipts, in short reads, for the command and for a server.

What the command calls its options stands in the texts of CannotReconcile; a service translates it.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from creditledger.api.concurrency import Places
from creditledger.domain import clock, ids
from creditledger.domain.errors import InvalidField, echo
from creditledger.domain.reconciliation import (
    GOOD,
    CannotReconcile,
    MissingTopUp,
    Outcome,
    Rates,
    ReceiptFinding,
    ReconciledTime,
    Reconciliation,
    missing_top_up,
    window_of,
)
from creditledger.outlets import receipt_files
from creditledger.outlets.receipt_files import Receipts, Spelling
from creditledger.store import Store
from creditledger.store.read import topups

if TYPE_CHECKING:
    from creditledger.domain.views import WalletPlace

T = TypeVar("T")

#: Rows of one read.
STEP_ROWS = 10_000
#: The same in a server, in which other calls wait for what is done between two reads.
SERVER_STEP_ROWS = 1_000
#: Reconciliations that a server does at the same time: each keeps its file and top-ups in memory.
RECONCILIATIONS_MAX = 2
#: Top-ups that a file does not explain, in a server: 90 MB.
UNEXPLAINED_MAX = 100_000
#: Findings that a server answers.
FINDINGS_MAX = 500
#: Wallets asked at once for what was taken back.
STEP_WALLETS = 500
#: How far the provider's clock may be ahead of the ledger's.
EARLIER_MAX = clock.DAY

_RATE = re.compile(
    r"([A-Za-z0-9_]{1,32})/([A-Za-z]{3})=(any|[0-9]{1,12}(?:\.[0-9]{1,9})?)", re.ASCII
)


class ReadLedger(Protocol):
    """One read of the ledger, on one snapshot."""

    def __call__(self, query: Callable[[Connection], T], /) -> Awaitable[T]: ...


async def walk(
    read: ReadLedger,
    compared: Reconciliation,
    *,
    provider: str,
    livemode: bool,
    rows: int | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> None:
    """Read everything of the ledger that is compared, `rows` at once. Raises CannotReconcile."""
    last = await read(topups.last_wallet)
    times = [receipt.created_at for receipt in compared.receipts.values()]
    since = min([compared.window.start, *times]) - EARLIER_MAX
    walk = partial(
        topups.step,
        size=STEP_ROWS if rows is None else rows,
        provider=provider,
        livemode=livemode,
        since=since,
    )
    place = topups.BEGINNING
    while place.wallet <= last:
        found, place = await read(partial(walk, after=place))
        for one in found:
            compared.credit(one)
        on_progress(place.wallet, last)
    refunded = compared.refunded()
    for first in range(0, len(refunded), STEP_WALLETS):
        some = refunded[first : first + STEP_WALLETS]
        for row in await read(partial(topups.taken_back, wallets=some)):
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


class ReconcileJob(NamedTuple):
    """What a server is asked to reconcile."""

    file: bytes
    spelling: Spelling
    provider: str
    start: int | None
    end: int | None
    rates: Rates


class ReconcileReport(NamedTuple):
    """What a server found."""

    window: ReconciledTime
    returns_elsewhere: int
    counts: Mapping[Outcome, int]
    findings: list[ReceiptFinding]  #: What is not good, FINDINGS_MAX at most.
    missing: Mapping[str, MissingTopUp]  #: What to post, by receipt, where that is clear.


class Reconciler:
    """Reconciles files within a server. The work of a file is done in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places = Places("reconciliations", retry_after="5")

    async def reconcile(self, job: ReconcileJob, *, livemode: bool) -> ReconcileReport:
        """Raises CannotReconcile, Overloaded, and as Store.read does."""
        with self._places.one(RECONCILIATIONS_MAX, None):
            read = await asyncio.to_thread(_read, job)
            compared = Reconciliation(
                read.by_id,
                window_of(read.by_id.values(), job.start, job.end),
                job.rates,
                job.spelling.with_customers,
                UNEXPLAINED_MAX,
            )
            await walk(
                self._store.read,
                compared,
                provider=job.provider,
                livemode=livemode,
                rows=SERVER_STEP_ROWS,
            )
            counts, findings = await asyncio.to_thread(_found, compared)
            missing = await self._missing(findings, job.rates, livemode=livemode)
        return ReconcileReport(compared.window, read.returns_elsewhere, counts, findings, missing)

    async def _missing(
        self, findings: Iterable[ReceiptFinding], rates: Rates, *, livemode: bool
    ) -> dict[str, MissingTopUp]:
        owed = {
            one.receipt_id: one.receipt
            for one in findings
            if one.outcome is Outcome.MISSING and one.receipt is not None
        }
        customers = {one.customer for one in owed.values() if ids.is_chosen("cus", one.customer)}
        if not customers:
            return {}
        places: dict[str, list[WalletPlace]] = {}
        query = partial(topups.open_wallets, customers=sorted(customers), livemode=livemode)
        for place in await self._store.read(query):
            places.setdefault(place.customer_id, []).append(place)
        found = {
            name: missing_top_up(one, places.get(one.customer, ()), rates)
            for name, one in owed.items()
        }
        return {name: one for name, one in found.items() if one is not None}


def _read(job: ReconcileJob) -> Receipts:
    return receipt_files.read_from(
        BytesIO(job.file), "The file", job.spelling, on_progress=lambda _done: None
    )


def _found(compared: Reconciliation) -> tuple[Counter[Outcome], list[ReceiptFinding]]:
    counts = Counter(one.outcome for one in compared.findings())
    bad = (one for one in compared.findings() if one.outcome not in GOOD)
    return counts, list(islice(bad, FINDINGS_MAX))
