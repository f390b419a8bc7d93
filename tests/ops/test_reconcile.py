"""`creditledger reconcile`: each receipt and each top-up is told apart rightly, or it says why not.

The rules are held against naive ones, the files against what their writers mean by them, the
command against a ledger that has one of each, and a server against the command.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import operator_service_pb2 as operator_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.credit_transaction_pb2 import TransactionSource
from credit.v1.operator_service_pb2_grpc import OperatorServiceStub
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from creditledger.domain import clock as time
from creditledger.domain import reconciliation
from creditledger.domain.reconciliation import (
    CannotReconcile,
    Outcome,
    ReconciledTime,
    Reconciliation,
    ReportedReceipt,
    TakenBack,
    TopUp,
    missing_top_up,
    window_of,
)
from creditledger.domain.views import WalletPlace
from creditledger.ops.cli.app import app
from creditledger.outlets import receipt_files
from creditledger.outlets import reconcile as walking
from creditledger.outlets.receipt_files import Receipts, Spelling
from creditledger.store.read import topups
from creditledger.surfaces.native import reconciliations
from tests.support.commands import creditledger
from tests.support.refusals import refusal
from tests.support.server import Services, adjust, consume, grant, post, running
from tests.support.setup import START, Clock, finished

if TYPE_CHECKING:
    from pathlib import Path

ONE = 10**9
HOUR = time.HOUR
#: As a list of payments has it.
HEADER = "id,Created (UTC),Amount,Amount Refunded,Currency,Captured,Status,Customer ID"


def at(hours: int) -> str:
    """A time as such a list writes it."""
    return time.text_seconds(START + hours * HOUR).replace("T", " ").removesuffix("Z")


def written(file: Path, *lines: str, header: str = HEADER) -> Path:
    """A file of these lines under a header."""
    file.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return file


# --- files ----------------------------------------------------------------------------------------


def read(file: Path, spelling: Spelling | None = None) -> Receipts:
    """What a file holds."""
    return receipt_files.read(file, spelling or Spelling(), on_progress=lambda _done, _of: None)


def amounts(found: Receipts) -> dict[str, tuple[str, int, int, int]]:
    """Of each receipt its currency, in 1/1000 what was paid and refunded, and how often it is."""
    return {
        name: (one.currency, one.amount // 10**6, one.refunded // 10**6, one.paid)
        for name, one in found.by_id.items()
    }


def test_a_list_of_payments(tmp_path: Path) -> None:
    """Paid, refunded in part, refunded, failed, not captured, for nothing; twice; failed first."""
    found = read(
        written(
            tmp_path / "a.csv",
            f'ch_1,{at(0)},"1,250.50",0.00,usd,true,Paid,cus_1',
            f"ch_2,{at(1)},20,5.25,eur,true,Paid,cus_2",
            f"ch_3,{at(2)},20.00,20.00,usd,true,Refunded,",
            "",
            f"ch_4,{at(3)},20.00,,usd,true,Failed,",
            f"ch_5,{at(4)},20.00,0.00,usd,false,Paid,",
            f"ch_6,{at(5)},0.00,0.00,usd,true,Paid,",
            f"ch_7,{at(6)},5000,0,jpy,true,Paid,",
            f"ch_7,{at(6)},5000,0,jpy,true,Paid,",
            f"ch_4,{at(7)},21.00,0.00,usd,true,succeeded,cus_4",
            f"ch_4,{at(8)},22.00,0.00,usd,true,requires_payment_method,",
        )
    )

    assert amounts(found) == {
        "ch_1": ("USD", 1_250_500, 0, 1),
        "ch_2": ("EUR", 20_000, 5_250, 1),
        "ch_3": ("USD", 20_000, 20_000, 1),
        "ch_4": ("USD", 21_000, 0, 1),
        "ch_5": ("USD", 0, 0, 0),
        "ch_6": ("USD", 0, 0, 0),
        "ch_7": ("JPY", 5_000_000, 0, 2),
    }
    one, four = found.by_id["ch_1"], found.by_id["ch_4"]
    assert (one.line, one.created_at, one.status, one.customer) == (2, START, "Paid", "cus_1")
    assert (four.line, four.customer, four.created_at) == (11, "cus_4", START + 7 * HOUR)
    assert found.returns_elsewhere == 0


def test_a_report_of_the_balance(tmp_path: Path) -> None:
    """Movements about one payment are added up, in any order; fees and payouts are none."""
    header = (
        "balance_transaction_id,created_utc,created,currency,gross,fee,net,reporting_category,"
        "source_id,charge_id,description"
    )
    found = read(
        written(
            tmp_path / "a.csv",
            f"txn_0,{at(9)},,usd,-3.00,0,-3.00,refund,re_0,ch_1,early",
            f'txn_1,{at(0)},,usd,20.00,1,19.00,charge,ch_1,ch_1,"a ""chat"", large\nand long"',
            f"txn_2,{at(1)},,usd,-2.00,0,-2.00,refund,re_1,ch_1,",
            f"txn_3,{at(1)},,usd,2.00,0,2.00,refund_failure,re_1,ch_1,",
            f"txn_4,{at(1)},,usd,30.00,1,29.00,charge,ch_2,,",
            f"txn_5,{at(1)},,usd,-5.00,0,-5.00,partial_capture_reversal,re_2,ch_2,",
            f"txn_6,{at(1)},,usd,-25.00,15,-40.00,dispute,dp_1,ch_2,",
            f"txn_7,{at(1)},,usd,-9.00,0,-9.00,refund,re_3,ch_of_last_month,",
            f"txn_8,{at(1)},,usd,-9.00,0,-9.00,dispute,,,",
            f"txn_9,{at(2)},,usd,-54.00,0,-54.00,payout,po_1,,",
            f"txn_a,{at(2)},,usd,-1.00,0,-1.00,fee,,,",
            header=header,
        )
    )

    assert amounts(found) == {"ch_1": ("USD", 20_000, 3_000, 1), "ch_2": ("USD", 25_000, 25_000, 1)}
    assert found.by_id["ch_1"].line == 3
    assert found.by_id["ch_2"].line == 7
    assert found.returns_elsewhere == 2


def test_a_lost_dispute_takes_the_payment_back(tmp_path: Path) -> None:
    """A payments list counts a lost dispute by its amount, or as all that was not refunded."""
    header = f"{HEADER},Disputed Amount,Dispute Status"
    disputes = ["25.00,lost", "25.00,won", "25.00,needs_response", ",Lost", ","]
    file = written(
        tmp_path / "payments.csv",
        *(f"ch_{n},{at(n)},40.00,10.00,usd,true,Paid,,{one}" for n, one in enumerate(disputes, 1)),
        header=header,
    )

    found = {name: one.refunded // 10**7 for name, one in read(file).by_id.items()}

    assert found == {"ch_1": 3_500, "ch_2": 1_000, "ch_3": 1_000, "ch_4": 4_000, "ch_5": 1_000}


def test_a_converted_payment_is_what_the_customer_paid(tmp_path: Path) -> None:
    """Of a report of the balance with columns of it; what is told in the balance's currency alone
    is the same share of the payment."""
    header = (
        "balance_transaction_id,created_utc,currency,gross,reporting_category,charge_id"
        ",customer_facing_amount,customer_facing_currency"
    )
    file = written(
        tmp_path / "balance.csv",
        f"txn_1,{at(1)},usd,54.00,charge,ch_1,50.00,eur",
        f"txn_2,{at(2)},usd,-11.00,refund,ch_1,10.00,eur",
        f"txn_3,{at(3)},usd,-27.00,dispute,ch_1,,",
        f"txn_4,{at(4)},usd,30.00,charge,ch_2,30.00,usd",
        f"txn_5,{at(5)},usd,-30.00,dispute,ch_2,,",
        f"txn_6,{at(6)},usd,20.00,charge,ch_3,,",
        header=header,
    )

    assert amounts(read(file)) == {
        "ch_1": ("EUR", 50_000, 35_000, 1),
        "ch_2": ("USD", 30_000, 30_000, 1),
        "ch_3": ("USD", 20_000, 0, 1),
    }


@pytest.mark.parametrize(
    ("content", "spelling", "expected"),
    [
        pytest.param(
            "\ufeffID;Created date (UTC);Amount;Currency\r\nch_1;2026-09-21 14:13;1.250,50;EUR\r\n",
            Spelling(decimal_comma=True),
            ("EUR", 1_250_500),
            id="as a spreadsheet writes it",
        ),
        pytest.param(
            "id,created,amount,currency,status\nch_1,1790000000,1250,usd,succeeded\n",
            Spelling(minor_units=True),
            ("USD", 12_500),
            id="as the API writes it",
        ),
        pytest.param(
            "id,created,amount,currency\nch_1,1790000000,1250,jpy\n",
            Spelling(minor_units=True),
            ("JPY", 1_250_000),
            id="a currency without a smaller unit",
        ),
        pytest.param(
            "id,created,amount,currency\nch_1,1790000000,1250,kwd\n",
            Spelling(minor_units=True),
            ("KWD", 1_250),
            id="a currency of thousandths",
        ),
        pytest.param(
            "Type,ID,Source,Amount,Fee,Net,Currency,Created (UTC)\n"
            "charge,txn_1,ch_1,12.50,1,11.50,usd,2026-09-21 14:13\n"
            "refund,txn_2,re_1,-9.00,0,-9.00,usd,2026-09-21 14:14\n",
            Spelling(),
            ("USD", 12_500),
            id="all activity",
        ),
        pytest.param(
            "Beleg\tWann\tBetrag\tWährung\nch_1\t2026-09-21T16:13:20\t12.5\tusd\n",
            Spelling(
                {"id": "beleg", "created": "Wann", "amount": "Betrag", "currency": "Währung"},
                zone=time.zone("Europe/Berlin", field="zone"),
            ),
            ("USD", 12_500),
            id="columns of other names, times of another zone",
        ),
    ],
)
def test_files_are_written_in_many_ways(
    tmp_path: Path, content: str, spelling: Spelling, expected: tuple[str, int]
) -> None:
    """Byte order mark, semicolons, commas and points, units, Unix time, zones, other headers."""
    file = tmp_path / "a.csv"
    file.write_bytes(content.encode())

    found = read(file, spelling)

    assert amounts(found) == {"ch_1": (*expected, 0, 1)}
    moment = found.by_id["ch_1"].created_at
    assert moment - moment % time.MINUTE == START - START % time.MINUTE


@pytest.mark.parametrize(
    ("line", "column"),
    [
        (f"ch_2,{at(0)},12,50,0,usd,true,Paid,", "Customer ID"),
        (f'ch_2,{at(0)},"12,50",0,usd,true,Paid,', "Amount"),
        (f"ch_2,{at(0)},$12.50,0,usd,true,Paid,", "Amount"),
        (f"ch_2,{at(0)},,0,usd,true,Paid,", "Amount"),
        (f"ch_2,{at(0)},-1,0,usd,true,Paid,", "Amount"),
        (f"ch_2,{at(0)},1e3,0,usd,true,Paid,", "Amount"),
        (f"ch_2,{at(0)},1.0000000001,0,usd,true,Paid,", "Amount"),
        (f"ch_2,{at(0)},1,x,usd,true,Paid,", "Amount Refunded"),
        (f"ch_2,{at(0)},1,-1,usd,true,Paid,", "Amount Refunded"),
        (f"ch_2,{at(0)},1,0,US$,true,Paid,", "Currency"),
        (f",{at(0)},1,0,usd,true,Paid,", "id"),
        (f"{'c' * 256},{at(0)},1,0,usd,true,Paid,", "id"),
        ("ch_2,9/21/2026,1,0,usd,true,Paid,", "Created (UTC)"),
        ("ch_2,2026-02-30 10:00,1,0,usd,true,Paid,", "Created (UTC)"),
        ("ch_2,,1,0,usd,true,Paid,", "Created (UTC)"),
        (f"ch_2,{at(0)}", "Amount"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(tmp_path: Path, line: str, column: str) -> None:
    """By its line and its column; nothing is guessed."""
    file = written(tmp_path / "a.csv", f"ch_1,{at(0)},1,0,usd,true,Paid,", line)

    with pytest.raises(CannotReconcile, match="line 3, column ") as refused:
        read(file)
    assert f"line 3, column {column}: " in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", 'no column "id"'),
        (b"Name,Total\nacme,5\n", "--id-column"),
        (b"id,created,amount\nch_1,1790000000,1\n", "--currency-column"),
        (b"id,created,amount,Amount,currency\n", "--amount-column"),
        (b'id,created,amount,currency\nch_1,1790000000,"1\n', "line 2: it is no CSV"),
        (b"id,created,amount,currency\nch_\xff,1790000000,1,usd\n", "UTF-8"),
        ("id,created,amount,currency\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """Without the columns that are needed, no CSV, no UTF-8; a column is missed by its option."""
    file = tmp_path / "a.csv"
    file.write_bytes(content)

    with pytest.raises(CannotReconcile) as refused:
        read(file)
    assert says in str(refused.value)
    with pytest.raises(CannotReconcile, match="cannot be read"):
        read(tmp_path / "none.csv")


def test_a_column_that_does_not_count_is_refused(tmp_path: Path) -> None:
    """In a report of the balance nothing has a status: who names one expects what does not come."""
    header = "source_id,created_utc,gross,currency,reporting_category,Status"
    file = written(tmp_path / "a.csv", f"ch_1,{at(0)},1,usd,charge,Failed", header=header)

    assert read(file).by_id["ch_1"].paid == 1
    with pytest.raises(CannotReconcile, match="--status-column"):
        read(file, Spelling({"status": "Status"}))


def test_more_than_can_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payments of the file, and top-ups that it does not explain."""
    monkeypatch.setattr(receipt_files, "RECEIPTS_MAX", 2)
    monkeypatch.setattr(reconciliation, "RECEIPTS_MAX", 2)
    file = written(
        tmp_path / "a.csv", *(f"ch_{i},{at(0)},1,0,usd,true,Paid," for i in (1, 2, 2, 3))
    )
    compared = Reconciliation({}, ReconciledTime(0, 10))
    for moment in (1, 2, 10):
        compared.credit(top_up(moment, "", created_at=moment))

    with pytest.raises(CannotReconcile, match="in parts"):
        read(file)
    with pytest.raises(CannotReconcile, match="--start"):
        compared.credit(top_up(4, "", created_at=4))


def test_the_window_is_that_of_the_file() -> None:
    """From the first payment to the last, unless said otherwise; of nothing there is none."""
    paid = [receipt(created_at=moment) for moment in (7, 5, 9)]

    assert window_of(paid, None, None) == (5, 10)
    assert window_of(paid, 6, None) == (6, 10)
    assert window_of(paid, 1, 3) == (1, 3)
    assert window_of([], 1, 3) == (1, 3)
    for start, end in ((10, None), (None, 5), (3, 3)):
        with pytest.raises(CannotReconcile):
            window_of(paid, start, end)
    with pytest.raises(CannotReconcile):
        window_of([], 1, None)


# --- rules ----------------------------------------------------------------------------------------


def receipt(**changes: Any) -> ReportedReceipt:
    """A payment of one dollar."""
    usual = {
        "line": 2,
        "created_at": 5,
        "currency": "USD",
        "amount": ONE,
        "refunded": 0,
        "status": "Paid",
        "customer": "cus_1",
        "paid": 1,
    }
    return ReportedReceipt(**{**usual, **changes})


#: Wallets by their numbers: of dollars, of another's dollars, of credits.
PLACES = {
    1: WalletPlace("wal_1", "cus_1", "USD", 2, livemode=True),
    2: WalletPlace("wal_2", "cus_2", "USD", 2, livemode=True),
    3: WalletPlace("wal_3", "cus_1", "CREDIT", 1, livemode=True),
}


def top_up(sequence: int, receipt_id: str, **changes: Any) -> TopUp:
    """A row that credits one dollar."""
    usual = {"wallet": 1, "grant": sequence, "units": 100, "created_at": 5}
    given_ = {**usual, **changes}
    return TopUp(sequence=sequence, receipt_id=receipt_id, place=PLACES[given_["wallet"]], **given_)


@dataclass(frozen=True, slots=True)
class Naive:
    """The outcomes, from lists that are searched from their beginning each time."""

    receipts: dict[str, ReportedReceipt]
    top_ups: list[TopUp]
    taken: list[TakenBack]
    window: ReconciledTime
    rate: Fraction | str | None  #: Credits for a dollar, "any", or nobody said.
    with_customers: bool

    def outcomes(self) -> Counter[tuple[str, Outcome]]:
        found: Counter[tuple[str, Outcome]] = Counter()
        for name, one in self.receipts.items():
            ups = [up for up in self.top_ups if up.receipt_id == name]
            moments = {one.created_at, *(up.created_at for up in ups)}
            if any(self.window.start <= moment < self.window.end for moment in moments):
                found[name, self.of(one, ups)] += 1
        others = [
            up
            for up in self.top_ups
            if up.receipt_id not in self.receipts
            and self.window.start <= up.created_at < self.window.end
        ]
        for name in {up.receipt_id for up in others}:
            count = sum(up.receipt_id == name for up in others)
            if name == "":
                found[name, Outcome.UNKNOWN] += count
            else:
                found[name, Outcome.UNKNOWN if count == 1 else Outcome.DUPLICATE] += 1
        return found

    def of(self, one: ReportedReceipt, ups: list[TopUp]) -> Outcome:
        if one.paid > 1 or len(ups) > 1:
            return Outcome.DUPLICATE
        if not ups:
            owed = one.paid == 1 and one.refunded < one.amount
            return Outcome.MISSING if owed else Outcome.UNPAID
        (up,) = ups
        good = one.paid == 1 and self.is_worth(one, up)
        if self.with_customers:
            good = good and one.customer == f"cus_{2 if up.wallet == 2 else 1}"
        # As much of what was credited has to be back as of what was paid is.
        back = Fraction(self.back(up), up.units)
        refunded = Fraction(min(one.refunded, one.amount), one.amount or 1)
        return Outcome.MATCHED if good and back >= refunded else Outcome.DIFFERENT

    def is_worth(self, one: ReportedReceipt, up: TopUp) -> bool:
        if up.wallet == 3:
            if self.rate is None or self.rate == "any":
                return self.rate == "any"
            # To within a tenth of a credit, which is the smallest unit.
            price = Fraction(one.amount, ONE) * Fraction(self.rate)
            return abs(price - Fraction(up.units, 10)) < Fraction(1, 10)
        return Fraction(one.amount, ONE) == Fraction(up.units, 100)

    def back(self, up: TopUp) -> int:
        return sum(
            row.units
            for row in self.taken
            if row.wallet == up.wallet
            and (
                row.receipt_id == up.receipt_id
                if row.receipt_id is not None
                else row.grant == up.grant
            )
        )


NAMES = ["ch_1", "ch_2"]
MOMENTS = st.integers(0, 9)
RECEIPTS = st.builds(
    receipt,
    created_at=MOMENTS,
    amount=st.sampled_from([ONE, ONE, ONE, ONE // 100 * 150, ONE // 3]),
    refunded=st.sampled_from([0, ONE // 2, ONE, 2 * ONE]),
    customer=st.sampled_from(["cus_1", "cus_1", "cus_2"]),
    paid=st.sampled_from([1, 1, 1, 1, 1, 2]),
) | st.builds(
    receipt, created_at=MOMENTS, amount=st.just(0), status=st.just("Failed"), paid=st.just(0)
)


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[list[TopUp], list[TakenBack]]:
    """Top-ups, the sequence of each its place, and what was taken back."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from([*NAMES, ""]),
                st.sampled_from([1, 1, 1, 1, 2, 3]),
                st.sampled_from([100, 100, 100, 150, 33, 34]),
                MOMENTS,
            ),
            max_size=4,
        )
    )
    ups = [
        top_up(i, name, wallet=wallet, units=units, created_at=moment)
        for i, (name, wallet, units, moment) in enumerate(drawn, 1)
    ]
    taken = draw(
        st.lists(
            st.builds(
                TakenBack,
                wallet=st.sampled_from([1, 1, 1, 2, 3]),
                grant=st.none() | st.integers(1, 4),
                units=st.sampled_from([17, 50, 100, 150]),
                receipt_id=st.sampled_from([None, None, *NAMES]),
            ),
            max_size=4,
        )
    )
    return ups, taken


@settings(max_examples=500)
@given(
    there=st.dictionaries(st.sampled_from(NAMES), RECEIPTS),
    ledger=ledgers(),
    window=st.tuples(st.integers(0, 4), st.integers(5, 10)),
    rate=st.sampled_from([None, "any", Fraction(10), Fraction(101, 10)]),
    with_customers=st.booleans(),
)
def test_outcomes_are_those_of_the_naive_rules(
    there: dict[str, ReportedReceipt],
    ledger: tuple[list[TopUp], list[TakenBack]],
    window: tuple[int, int],
    rate: Fraction | str | None,
    with_customers: bool,
) -> None:
    """Whatever was paid, refunded, credited and taken back, in or out of the window."""
    ups, taken = ledger
    rates = {} if rate is None else {("CREDIT", "USD"): None if rate == "any" else Fraction(rate)}
    compared = Reconciliation(there, ReconciledTime(*window), rates, with_customers)
    for up in ups:
        compared.credit(up)
    wallets = compared.refunded()
    for row in taken:
        if row.wallet in wallets:
            compared.take_back(row)

    naive = Naive(there, ups, taken, ReconciledTime(*window), rate, with_customers)
    found = list(compared.findings())
    assert naive.outcomes() == Counter((one.receipt_id, one.outcome) for one in found)
    for one in found:
        has_more = one.outcome in {Outcome.DIFFERENT, Outcome.DUPLICATE}
        assert bool(one.differences) is has_more
    listed = [one.receipt_id for one in found if one.receipt is not None]
    assert listed == [name for name in there if name in listed]
    times = [one.top_ups[0].created_at for one in found if one.receipt is None]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("units", "outcome"),
    [(100, "different"), (101, "matched"), (102, "matched"), (103, "different")],
)
def test_a_price_may_be_rounded_either_way(units: int, outcome: str) -> None:
    """10.15 credits, of which there are tenths only: to less than a tenth, and no further."""
    rates = {("CREDIT", "USD"): Fraction("10.15")}
    compared = Reconciliation({"ch_1": receipt()}, ReconciledTime(0, 10), rates)
    compared.credit(top_up(1, "ch_1", wallet=3, units=units))
    exact = Reconciliation(
        {"ch_1": receipt()}, ReconciledTime(0, 10), {("CREDIT", "USD"): Fraction(10)}
    )
    exact.credit(top_up(1, "ch_1", wallet=3, units=101))

    assert [one.outcome for one in compared.findings()] == [outcome]
    assert [one.outcome for one in exact.findings()] == ["different"]


# --- the command ----------------------------------------------------------------------------------

#: What is expected of each receipt of the file below, and of each top-up that is not in it.
EXPECTED = {
    "ch_matched": "matched",
    "in_renewed": "matched",
    "ch_missing": "missing",
    "ch_amount": "different",
    "ch_euro": "different",
    "ch_failed": "different",
    "ch_stands": "different",
    "ch_twice": "duplicate",
    "ch_listed": "duplicate",
    "ch_declined": "unpaid",
    "ch_returned": "unpaid",
    "ch_debited": "matched",
    "ch_spent": "matched",
    "ch_voided": "matched",
    "ch_unknown": "unknown",
    "": "unknown",
}
LINES = [
    f"ch_matched,{at(0)},20.00,0.00,usd,true,Paid,cus_acme",
    f"in_renewed,{at(1)},30.00,0.00,usd,true,Paid,cus_acme",
    f"ch_missing,{at(1)},15.00,0.00,usd,true,Paid,cus_acme",
    f"ch_amount,{at(1)},10.00,0.00,usd,true,Paid,cus_acme",
    f"ch_euro,{at(1)},10.00,0.00,eur,true,Paid,cus_acme",
    f"ch_failed,{at(1)},11.00,0.00,usd,true,Failed,cus_acme",
    f"ch_stands,{at(1)},40.00,40.00,usd,true,Refunded,cus_acme",
    f"ch_twice,{at(1)},12.00,0.00,usd,true,Paid,cus_acme",
    f"ch_listed,{at(1)},8.00,0.00,usd,true,Paid,cus_acme",
    f"ch_listed,{at(1)},8.00,0.00,usd,true,Paid,cus_acme",
    f"ch_declined,{at(1)},9.00,0.00,usd,true,Failed,cus_acme",
    f"ch_returned,{at(1)},9.00,9.00,usd,true,Refunded,cus_acme",
    f"ch_debited,{at(1)},50.00,20.00,usd,true,Paid,cus_acme",
    f"ch_spent,{at(1)},25.00,25.00,usd,true,Refunded,cus_acme",
    f"ch_voided,{at(9)},7.00,7.00,usd,true,Refunded,cus_acme",
]


class Ledger:
    """What is booked, by an admin."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.keys = 0

    async def post(self, wallet_id: str = "wal_acme", **fields: Any) -> pb.Posting:
        self.keys += 1
        return await self.services.wallets.Post(post(f"key {self.keys}", wallet_id, **fields))

    async def credit(
        self, receipt_id: str | None, amount: str, *, provider: str = "stripe", **fields: Any
    ) -> str:
        """Top up; the grant's id."""
        source = TransactionSource(provider=provider, receipt_id=receipt_id)
        made = await self.post(**grant(amount, source=source, **fields))
        return made.transactions[0].credit_grant_id


async def book(url: str) -> None:
    """One of each."""
    clock = Clock(START + HOUR)
    async with running(url, clock) as started:
        local = started.local
        await local.new_wallet("wal_acme", "cus_acme")
        ledger = Ledger(local)
        await ledger.credit("ch_spent", "25.00", priority=1)
        await ledger.post(**consume("25"))
        await ledger.credit("ch_matched", "20.00")
        await ledger.credit("in_renewed", "30.00", kind="subscription_renew")
        await ledger.credit("ch_amount", "100.00")
        await ledger.credit("ch_euro", "10.00")
        await ledger.credit("ch_failed", "11.00")
        await ledger.credit("ch_stands", "40.00")
        await ledger.credit("ch_twice", "12.00")
        await ledger.credit("ch_twice", "12.00", allow_repeated_receipt=True)
        await ledger.credit("ch_listed", "8.00")
        await ledger.credit("ch_unknown", "5.00")
        await ledger.credit(None, "4.00")
        await ledger.credit("ch_matched", "20.00", provider="paypal")
        debited = await ledger.credit("ch_debited", "50.00")
        await ledger.post(**adjust("-20.00", credit_grant_id=debited))
        await ledger.post(**adjust("-25.00"), metadata={"receipt_id": "ch_spent"})
        voided = await ledger.credit("ch_voided", "7.00")
        request = grants_pb.CreditGrantServiceVoidRequest(id=voided, idempotency_key="void")
        await local.grants.Void(request)
        await local.wallets.CreateWallet(
            pb.CreateWalletRequest(
                id="wal_test", customer_id="cus_acme", currency="USD", livemode=False
            )
        )
        test = TransactionSource(provider="stripe", receipt_id="ch_missing")
        await ledger.post("wal_test", **grant("15.00", source=test))
        clock.advance(10 * HOUR)
        await ledger.credit("ch_later", "6.00")


@pytest.fixture
def books(database_url: str, tmp_path: Path) -> tuple[str, Path]:
    """A ledger that has one of each, and a file of payments."""
    finished(book(database_url))
    return database_url, written(tmp_path / "payments.csv", *LINES)


def run(url: str, file: Path, *flags: str) -> tuple[int, str]:
    """Exit code and output of the command, within this process."""
    done = CliRunner().invoke(app, ["reconcile", str(file), "--database-url", url, *flags])
    return done.exit_code, done.stdout


def told(url: str, file: Path, *flags: str) -> dict[str, Any]:
    """What it tells programs."""
    answer: dict[str, Any] = json.loads(run(url, file, "--format", "json", *flags)[1])
    return answer


def by_outcome(answer: dict[str, Any]) -> dict[str, str]:
    """Receipt -> outcome."""
    return {one["receipt_id"]: one["outcome"] for one in answer["findings"]}


@pytest.mark.parametrize("rows", [1, 4, 10_000])
def test_every_receipt_and_top_up_has_its_outcome(
    books: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """One of each, whatever the size of a read; counts say what findings say."""
    monkeypatch.setattr(walking, "STEP_ROWS", rows)
    monkeypatch.setattr(topups, "WALLETS_MAX", rows // 2)
    url, file = books

    answer = told(url, file, "--all")

    assert by_outcome(answer) == EXPECTED
    counts = Counter(EXPECTED.values())
    assert {outcome: answer[outcome] for outcome in counts} == counts
    assert (answer["start"], answer["end"]) == (
        time.text(START),
        time.text(START + 9 * HOUR + 1),
    )
    assert run(url, file)[0] == 1
    assert told(url, file, "--mode", "test")["matched"] == 1


def test_findings_say_both_sides(books: tuple[str, Path]) -> None:
    """What the file says, what is booked, and what differs; no matched one unless asked for."""
    url, file = books

    found = {one["receipt_id"]: one for one in told(url, file)["findings"]}

    expected = {name: out for name, out in EXPECTED.items() if out not in {"matched", "unpaid"}}
    assert {name: one["outcome"] for name, one in found.items()} == expected
    assert {
        name: [tuple(difference.values()) for difference in one["differences"]]
        for name, one in found.items()
        if one["differences"]
    } == {
        "ch_amount": [("amount", "10.00 USD", "100.00 USD")],
        "ch_euro": [("currency", "10.00 EUR", "10.00 USD")],
        "ch_failed": [("status", "Failed, nothing paid", "credited")],
        "ch_stands": [("refunded", "40.00 USD", "0.00 USD taken back")],
        "ch_twice": [("times", "1", "2")],
        "ch_listed": [("times", "2", "1")],
    }
    amount = found["ch_amount"]
    assert amount["receipt"] == {
        "line": 5,
        "created_at": time.text(START + HOUR),
        "amount": "10.00",
        "refunded": "0.00",
        "currency": "USD",
        "status": "Paid",
        "customer": "cus_acme",
    }
    (booked,) = amount["top_ups"]
    assert booked.pop("id").startswith("ct_")
    assert booked == {
        "wallet_id": "wal_acme",
        "customer_id": "cus_acme",
        "created_at": time.text(START + HOUR),
        "amount": "100.00",
        "currency": "USD",
    }
    assert len(found["ch_twice"]["top_ups"]) == 2
    assert "receipt" not in found["ch_unknown"]


def test_a_csv_for_the_accountant(books: tuple[str, Path]) -> None:
    """A line for each top-up of a finding, amounts as numbers, other people's words made safe."""
    url, file = books
    with file.open("a") as more:
        more.write(f"=cmd,{at(1)},3.00,0.00,usd,true,Paid,@cus\n")

    lines = list(csv.DictReader(io.StringIO(run(url, file, "--format", "csv", "--all")[1])))

    outcomes = [(line["receipt_id"], line["outcome"]) for line in lines]
    expected = [*EXPECTED.items(), ("ch_twice", "duplicate"), ("'=cmd", "missing")]
    assert sorted(outcomes) == sorted(expected)
    by_id = {line["receipt_id"]: line for line in lines}
    assert by_id["'=cmd"]["customer"] == "'@cus"
    assert by_id["'=cmd"]["transaction_id"] == ""
    debited = by_id["ch_debited"]
    shown = ("paid", "refunded", "credited", "taken_back", "credited_currency")
    assert [debited[name] for name in shown] == ["50.00", "20.00", "50.00", "20.00", "USD"]


def test_all_that_matches_is_exit_code_0(books: tuple[str, Path], tmp_path: Path) -> None:
    """A window and a file in which all is well; the other mode, another end, another provider."""
    url, file = books
    good = written(tmp_path / "good.csv", LINES[0], LINES[12])
    window = ("--start", time.text(START), "--end", time.text(START + 1))

    assert run(url, good, *window)[0] == 0
    assert told(url, good, *window, "--all")["matched"] == 1
    tested = by_outcome(told(url, file, "--mode", "test", "--all"))
    assert [name for name, outcome in tested.items() if outcome == "matched"] == ["ch_missing"]
    assert tested["ch_matched"] == "missing"
    # Out of the file's time, so it was not asked for; in a longer one it is unknown.
    longer = by_outcome(told(url, file, "--end", time.text(START + 30 * HOUR)))
    assert longer == by_outcome(told(url, file)) | {"ch_later": "unknown"}
    assert told(url, file, "--provider", "paypal", "--all")["unknown"] == 0


def test_credits_are_sold_at_a_rate(books: tuple[str, Path], tmp_path: Path) -> None:
    """Said, the amounts are compared by it; any, only whether there is one; customers by id."""
    url, _ = books
    euro = written(tmp_path / "euro.csv", LINES[4])

    assert by_outcome(told(url, euro))["ch_euro"] == "different"
    assert "ch_euro" not in by_outcome(told(url, euro, "--rate", "USD/EUR=1"))
    assert "ch_euro" not in by_outcome(told(url, euro, "--rate", "USD/EUR=any"))
    assert by_outcome(told(url, euro, "--rate", "USD/EUR=1.1"))["ch_euro"] == "different"
    other = written(tmp_path / "other.csv", LINES[0].replace("cus_acme", "cus_other"))
    assert "ch_matched" not in by_outcome(told(url, other))
    assert by_outcome(told(url, other, "--compare-customers"))["ch_matched"] == "different"


def test_the_command(books: tuple[str, Path], tmp_path: Path) -> None:
    """`clock show` and `clock accept` work while commands are refused and after a restart."""
    url, file = books

    async def beside_a_server() -> str:
        async with running(url, time.now):
            return creditledger("reconcile", file, "--database-url", url).stdout

    done = creditledger("reconcile", file, "--database-url", url)
    assert (done.returncode, done.stderr) == (1, "")
    assert finished(beside_a_server()) == done.stdout
    head = done.stdout.splitlines()[1:7]
    assert [line.split() for line in head] == [
        ["matched", "5"],
        ["missing", "1"],
        ["unknown", "2"],
        ["different", "4"],
        ["duplicate", "2"],
        ["unpaid", "2"],
    ]
    assert "ch_missing" in done.stdout
    assert "ch_matched" not in done.stdout
    good = written(tmp_path / "good.csv", LINES[0])
    assert creditledger("reconcile", good, "--database-url", url).returncode == 0


def test_words_of_the_file_are_shown_as_they_are(books: tuple[str, Path], tmp_path: Path) -> None:
    """They neither style the table nor speak to the terminal."""
    url, _ = books
    name = "[bold]:eyes:[/red]\x1b[31m"
    odd = written(tmp_path / "odd.csv", f"{name},{at(1)},3.00,0.00,usd,true,Paid,")

    code, shown = run(url, odd)

    assert code == 1
    assert name.replace("\x1b", "�") in shown


def test_what_cannot_be_compared_is_exit_code_2(tmp_path: Path) -> None:
    """A database that is not there, a file or an option that is wrong: one sentence each."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'none.db'}"
    file = written(tmp_path / "a.csv", LINES[0])
    empty = written(tmp_path / "empty.csv")
    wrong = written(tmp_path / "wrong.csv", "ch_1,now,1,0,usd,true,Paid,")
    for given_, says in (
        ((file,), "There is no database"),
        ((tmp_path / "b.csv",), "cannot be read"),
        ((empty,), "--start and --end"),
        ((wrong,), "line 2, column Created (UTC)"),
        ((file, "--format", "xml"), "--format"),
        ((file, "--mode", "both"), "--mode"),
        ((file, "--rate", "USD=1"), "--rate"),
        ((file, "--start", "yesterday"), "--start"),
        ((file, "--time-zone", "Mars"), "--time-zone"),
        ((file, "--id-column", "ReportedReceipt"), "--id-column"),
    ):
        done = creditledger("reconcile", *given_, "--database-url", url)
        assert (done.returncode, done.stdout) == (2, ""), given_
        assert done.stderr.startswith("creditledger: ")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


# --- the service ----------------------------------------------------------------------------------


async def asked(
    url: str, content: bytes, *, livemode: bool = True, **fields: Any
) -> operator_pb.ReconcileResponse:
    """What a server answers to a service key of the mode."""
    async with running(url, Clock(START + 12 * HOUR)) as started:
        key = await started.local.key("service", livemode=livemode)
        request = operator_pb.ReconcileRequest(file=content, **fields)
        return await OperatorServiceStub(started.network.channel).Reconcile(request, metadata=key)


def test_a_server_answers_what_the_command_prints(books: tuple[str, Path]) -> None:
    """Window, counts and findings, in the mode of the key; the missing one with what to post."""
    url, file = books
    printed = told(url, file)

    found = finished(asked(url, file.read_bytes()))
    test = finished(asked(url, file.read_bytes(), livemode=False))

    assert (found.livemode, found.start, found.end) == (True, printed["start"], printed["end"])
    assert {one.outcome: one.count for one in found.counts} == {
        outcome.value: printed[outcome.value] for outcome in Outcome
    }
    assert [plain(one) for one in found.findings] == printed["findings"]
    assert found.findings_left_out == 0
    (missing,) = [one for one in found.findings if one.outcome == "missing"]
    assert missing.missing_top_up == operator_pb.MissingTopUp(
        wallet_id="wal_acme", amount="15.00", currency_id="USD"
    )
    assert test.livemode is False
    assert {one.outcome: one.count for one in test.counts}["matched"] == 1


def plain(one: operator_pb.ReconcileFinding) -> dict[str, Any]:
    """A finding as the command prints it."""
    fields = MessageToDict(
        one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    fields.pop("missing_top_up", None)
    for up in fields["top_ups"]:
        up["id"], up["currency"] = up.pop("transaction_id"), up.pop("currency_id")
    return fields


def test_what_is_missing_is_posted_once(books: tuple[str, Path]) -> None:
    """What the answer says to post makes the receipt a matched one, at a rate as well."""
    url, _ = books
    content = "\n".join([HEADER, LINES[2], LINES[2].replace("ch_missing,", "ch_price,"), ""])

    async def posted() -> list[str]:
        async with running(url, Clock(START + 12 * HOUR)) as started:
            local = started.local
            await local.registry.CreateCurrency(
                registry_pb.CreateCurrencyRequest(id="POINT", name="Point", scale=1)
            )
            await local.registry.CreateCustomer(
                registry_pb.CreateCustomerRequest(
                    id="cus_price", name="Price", email="price@example.com"
                )
            )
            await local.wallets.CreateWallet(
                pb.CreateWalletRequest(id="wal_price", customer_id="cus_price", currency="POINT")
            )
            stub = OperatorServiceStub(started.network.channel)
            key = await local.key("service")
            head, missing, price = content.splitlines()
            request = operator_pb.ReconcileRequest(
                file="\n".join([head, missing, price.replace("cus_acme", "cus_price")]).encode(),
                rates=["POINT/USD=10.13"],
            )
            first = await stub.Reconcile(request, metadata=key)
            missed = [one for one in first.findings if one.outcome == "missing"]
            for one in missed:
                source = TransactionSource(provider="stripe", receipt_id=one.receipt_id)
                what = one.missing_top_up
                await local.wallets.Post(
                    post(one.receipt_id, what.wallet_id, **grant(what.amount, source=source))
                )
            second = await stub.Reconcile(request, metadata=key)
            assert [one for one in second.findings if one.HasField("receipt")] == []
            return [one.missing_top_up.amount for one in missed]

    assert finished(posted()) == ["15.00", "151.9"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1000),
        ({"refunded": ONE // 2}, None),
        ({"currency": "EUR"}, None),
        ({"amount": ONE // 1000}, None),
        ({"amount": 10 * ONE + ONE // 1000}, None),
    ],
)
def test_what_is_missing_is_said_where_it_is_clear(
    changes: dict[str, int | str], expected: int | None
) -> None:
    """Not of a refunded payment, without a wallet, and not of more digits than the wallet has."""
    one = receipt(**{"amount": 10 * ONE, **changes})

    found = missing_top_up(one, [PLACES[1], PLACES[3]], {})

    assert (found and found.units) == expected
    assert missing_top_up(one, [PLACES[1], PLACES[2]], {}) is None
    assert missing_top_up(one, [], {}) is None


@pytest.mark.parametrize(
    ("content", "fields", "param", "says"),
    [
        (b"", {}, "file", "required"),
        (b"x" * 4_000_001, {}, "file", "4000001 bytes"),
        (b"Name,Total\nacme,5\n", {}, "file", "columns.id"),
        (b"id,created,amount,currency\n", {}, "file", "say start and end"),
        (b"id,created,amount,currency\nch_1,1790000000,1,5,usd\n", {}, "file", "line 2"),
        (b'id,created,amount,currency\nch_1,1790000000,"1,5",usd\n', {}, "file", "decimal_comma"),
        (b"\xff", {}, "file", "UTF-8"),
        (b"id", {"columns": {"fee": "Fee"}}, "columns", "nothing else"),
        (b"id", {"rates": ["CREDIT"]}, "rates", "rates must be like"),
        (b"id", {"time_zone": "Mars/Base"}, "time_zone", ""),
        (b"id", {"start": "yesterday"}, "start", ""),
    ],
)
def test_what_a_server_cannot_compare_is_refused(
    database_url: str, content: bytes, fields: dict[str, Any], param: str, says: str
) -> None:
    """By the field, in the words of the request."""

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        finished(asked(database_url, content, **fields))

    failed, text = refusal(caught.value), caught.value.details() or ""
    reason = "INVALID_FIELD" if content else "MISSING_FIELD"
    assert (failed.reason, failed.param) == (reason, param)
    assert says in text
    assert "--" not in text


def test_a_server_keeps_no_more_than_it_can(
    books: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Findings and top-ups of an answer, and top-ups that the file does not explain."""
    url, file = books
    monkeypatch.setattr(walking, "FINDINGS_MAX", 2)
    monkeypatch.setattr(reconciliations, "TOP_UPS_MAX", 1)
    found = finished(asked(url, file.read_bytes()))

    assert [one.receipt_id for one in found.findings] == ["ch_missing", "ch_amount"]
    assert found.findings_left_out == 7

    monkeypatch.setattr(walking, "UNEXPLAINED_MAX", 1)

    with pytest.raises(grpc.aio.AioRpcError, match="More than 1 top-ups"):
        finished(asked(url, file.read_bytes()))
