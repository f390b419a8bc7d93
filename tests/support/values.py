"""Wallets, grants and references as plain values, and the rules asked about them.

Amounts are of a currency of scale 0, so each is its own number of units; now is always NOW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from creditledger.domain import ids, overdraft, spending, wallet_moves
from creditledger.domain.clock import DAY, SECOND
from creditledger.domain.commands import Case, Original, References, Usage
from creditledger.domain.model import (
    RETURNED_MS,
    Category,
    Dimension,
    Grant,
    Kind,
    Row,
    Status,
    Type,
    Wallet,
)
from creditledger.domain.overdraft import OverdraftDraw, Payer
from tests.support.setup import BACKDATING_MS_MAX, START, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from creditledger.domain.commands import Command, Operation

NOW = START
WALLET = 7
#: The posting that refunds name, and one that is no consumption.
SPENT, GIVEN = 90, 91
SPENT_ID, GIVEN_ID = ids.compose("pst", WALLET, SPENT), ids.compose("pst", WALLET, GIVEN)
USAGE = Dimension(Kind.USAGE.value, Type.CONSUMPTION.value)
TOPUP = Dimension(Kind.TOPUP.value, Type.GRANT.value)
PAID, PROMOTIONAL = Category.PAID, Category.PROMOTIONAL


def grant(
    number: int,
    remaining: int,
    *,
    amount: int | None = None,
    category: Category = PAID,
    priority: int = 50,
    starts: int = -DAY,
    ends: int | None = None,
) -> Grant:
    """A grant that starts and ends so long after NOW, given when it starts or at NOW."""
    return Grant(
        number=number,
        amount=remaining if amount is None else amount,
        overdraft_paid=0,
        remaining=remaining,
        category=category,
        priority=priority,
        name=None,
        effective_at=NOW + starts,
        expires_at=None if ends is None else NOW + ends,
        created_at=NOW + min(starts, 0),
    )


def wallet_of(
    *grants: Grant,
    overdraft_used: int = 0,
    overdraft_limit: int = 0,
    repaid_to: int = 0,
    repays_from: int = 0,
) -> Wallet:
    """A wallet with these grants, in a currency of scale 0: amounts are their own units."""
    wallet = Wallet(
        number=WALLET,
        id="wal_acme",
        customer_id="cus_acme",
        currency="PTS",
        scale=0,
        livemode=True,
        status=Status.ACTIVE,
        overdraft_limit=overdraft_limit,
        metadata={},
        created_at=START - 40 * DAY,
        updated_at=START - 40 * DAY,
        sequence=40,
        running_balance=sum(grant.remaining for grant in grants) - overdraft_used,
        overdraft_used=overdraft_used,
        posted_at=NOW - SECOND,
        moved_sequence=38,  # the last two rows are expirations
        overdrawn=repaid_to + overdraft_used,
        repaid_to=repaid_to,
        repays_from=repays_from,
    )
    for one in grants:
        wallet.add(one)
    return wallet


def references(
    *draws: tuple[int, int | None], refunded: int = 0, paid_by: tuple[tuple[int, int], ...] = ()
) -> References:
    """What exists: a meter, subscriptions of two customers, and a posting that drew `draws`.

    `paid_by`: which grants paid how much of its overdraft back, oldest first.
    """
    payers: list[Payer] = []
    for number, amount in paid_by:
        start = payers[-1].until if payers else 0
        payers.append(Payer(WALLET, start, start + amount, amount, number, None))
    rows = [row_of(sequence, -amount, number) for sequence, (amount, number) in enumerate(draws, 1)]
    return References(
        meters=frozenset({"mtr_tokens"}),
        subscriptions={"sub_pro": "cus_acme", "sub_other": "cus_other"},
        originals={
            (WALLET, SPENT): Original(
                rows,
                USAGE,
                refunded,
                overdrafts={
                    row.sequence: OverdraftDraw(WALLET, row.sequence, 0, -row.amount)
                    for row in rows
                    if row.grant is None
                },
            ),
            (WALLET, GIVEN): Original([row_of(9, 5, 9)], TOPUP, 0),
        },
        payers={WALLET: payers},
    )


def row_of(sequence: int, amount: int, number: int | None) -> Row:
    return Row(
        WALLET, sequence, SPENT, 6, 2, number, amount, 0, NOW - DAY, None, 1, None, 1, 0, 0, 0
    )


def decide(
    wallet: Wallet,
    command_: Command,
    known: References | None = None,
    *,
    now: int = NOW,
) -> list[wallet_moves.Move]:
    amount: str | None = getattr(command_.operation, "amount", None)
    case = Case(
        command_,
        wallet,
        None if amount is None else int(amount),
        now,
        references() if known is None else known,
        returned_ms=RETURNED_MS,
        backdating_ms_max=BACKDATING_MS_MAX,
    )
    spending.validate(case)
    return spending.decide(case).moves


def carry_out(
    wallet: Wallet,
    operation: Operation,
    known: References | None = None,
    *,
    now: int = NOW,
) -> list[Row]:
    """As the ledger does it: decide, then what expired, then the moves. Answers the moves' rows."""
    moves = decide(wallet, command(operation), known, now=now)
    ended = wallet_moves.expirations(wallet, now)
    wallet_moves.append(wallet, ended, posting=1, dimension=1, quantity=None, now=now)
    rows = wallet_moves.append(wallet, moves, posting=2, dimension=2, quantity=None, now=now)
    for move, row in zip(moves, rows, strict=True):
        if move.grant is not None and move.fresh and move.grant.overdraft_paid:
            overdraft.pay(wallet, row.sequence, move.grant.overdraft_paid, row.sequence)
        elif move.grant is None and move.overdraft is None:
            overdraft.draw(wallet, row.sequence, -row.amount)
        elif move.grant is None and move.overdraft is not None:
            overdraft.forgive(wallet, move.overdraft, row.amount)
    return rows


def drawn(moves: Sequence[wallet_moves.Move]) -> list[tuple[int, int | None]]:
    """(amount, number of the grant) of each move; a fresh grant has number 0."""
    return [(m.amount, None if m.grant is None else m.grant.number) for m in moves]


def usage(*quantities: int) -> Usage:
    return Usage("", "", "", "", 1, quantities, (), (), 1)
