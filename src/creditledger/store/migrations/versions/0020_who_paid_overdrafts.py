"""Which grant paid which overdraft back, oldest draw first: worked out once for what there is.

Until now a refund of a draw that was paid back lowered whatever was overdrawn. That is kept as it
was booked: what had paid the draw back then paid the oldest ones in its place.
"""

from collections import deque
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

THING = "who paid an overdraft back"
#: Rows that are written at a time.
CHUNK = 1_000

_EVENTS = """
SELECT t.wallet_number AS wallet, t.sequence AS place,
  CASE WHEN t.grant_number IS NULL THEN 1 ELSE 0 END AS step, t.amount AS amount,
  CAST(NULL AS bigint) AS grant_number, t.posting_number AS posting, p.refund_of AS refund_of
FROM credit_transactions AS t JOIN postings AS p
  ON p.wallet_number = t.wallet_number AND p.number = t.posting_number
WHERE t.grant_number IS NULL OR t.kind = 5
UNION ALL
SELECT wallet_number, number, 1, overdraft_paid, number, CAST(NULL AS bigint),
  CAST(NULL AS bigint) FROM grants WHERE overdraft_paid > 0
UNION ALL
SELECT wallet_number, sequence, 2, amount, grant_number, repaid_at, start FROM grant_repayments
ORDER BY 1, 2, 3, 6, 7"""


class OverdraftLine:
    """What a wallet drew beyond its grants, draw behind draw, and who paid it back."""

    def __init__(self, wallet: int) -> None:
        self.wallet = wallet
        self.drawn = self.repaid = 0
        self.draws: dict[int, list[int]] = {}  #: By posting: sequence, start, amount, forgiven.
        #: By posting, what refunds gave back of it: first of its draw, which is its last row.
        self.returned: dict[int, int] = {}
        self.open: deque[int] = deque()  #: Postings whose draws are not paid back, oldest first.
        self.payers: list[tuple[int, int, int, int, int | None]] = []

    def draw(self, sequence: int, posting: int, amount: int) -> None:
        """A row drew so much beyond the grants."""
        self.draws[posting] = [sequence, self.drawn, amount, 0]
        self.drawn += amount
        self.open.append(posting)

    def pay(self, grant: int, amount: int, row: int | None) -> None:
        """The next places that are owed are paid by the grant."""
        start, left = self.repaid, amount
        while left:
            _, begins, drawn, forgiven = self.draws[self.open[0]]
            self.repaid = max(self.repaid, begins)
            part = min(left, begins + drawn - forgiven - self.repaid)
            self.repaid += part
            left -= part
            if self.repaid == begins + drawn - forgiven:
                self.open.popleft()
        self.payers.append((start, self.repaid, amount, grant, row))
        self._close()

    def give_back(self, sequence: int, posting: int, amount: int) -> None:
        """A refund that lowered what was overdrawn: of its own draw, or else of others."""
        draw = self.draws[posting]
        _, start, drawn, _ = draw
        returned = min(drawn, self.returned.get(posting, 0))
        ends = start + drawn - returned
        own = min(amount, max(0, ends - max(start, self.repaid)))
        draw[3] += own
        self.returned[posting] = returned + amount
        self._close()
        begins, behind = ends - amount, ends - own
        for first, until, _, grant, _ in reversed([*self.payers]):
            part = min(behind, until) - max(begins, first)
            if part > 0:
                self.pay(grant, part, sequence)

    def _close(self) -> None:
        """Where nothing is owed, the line is behind the wallet."""
        while self.open:
            _, start, drawn, forgiven = self.draws[self.open[0]]
            if start + drawn - forgiven > max(start, self.repaid):
                return
            self.open.popleft()
        self.repaid = self.drawn


def lines(connection: sa.Connection) -> Iterator[OverdraftLine]:
    """Every wallet's that was ever overdrawn."""
    events: Any = connection.execute(sa.text(_EVENTS))
    for wallet, own in groupby(events, key=itemgetter(0)):
        line = OverdraftLine(wallet)
        for _, place, step, amount, grant, posting, refund_of in own:
            if step == 0:
                line.returned[refund_of] = line.returned.get(refund_of, 0) + amount
            elif grant is not None:
                line.pay(grant, amount, place if step == 1 else None)
            elif amount < 0:
                line.draw(place, posting, -amount)
            else:
                line.give_back(place, refund_of, amount)
        if line.drawn:
            yield line


def upgrade() -> None:
    connection = op.get_bind()
    by_wallet = connection.dialect.name == "postgresql"
    nothing = sa.text("0")
    for column in ("overdrawn", "repaid_to"):
        op.add_column(
            "wallet_states",
            sa.Column(column, sa.BigInteger(), server_default=nothing, nullable=False),
        )
    op.add_column(
        "grants",
        sa.Column("returned", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    _tables()
    op.create_index(
        "overdraft_draws_forgiven",
        "overdraft_draws",
        ["wallet_number", "start"],
        sqlite_where=sa.text("forgiven > 0"),
        postgresql_where=sa.text("forgiven > 0"),
    )
    for table in ("overdraft_payers", "overdraft_returns"):
        for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if by_wallet else ())):
            trigger = f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table}"
            if by_wallet:
                op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
            else:
                op.execute(
                    f"{trigger} BEGIN SELECT RAISE(ABORT,"
                    f" '{THING} is never changed; write another'); END"
                )
    _fill(connection)


def _tables() -> None:
    op.create_table(
        "overdraft_draws",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("forgiven", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="overdraft_draws_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "sequence", name="overdraft_draws_pk"),
        sa.CheckConstraint("start >= 0 AND amount > 0", name=op.f("overdraft_draws_amount_check")),
        sa.CheckConstraint(
            "forgiven >= 0 AND forgiven <= amount", name=op.f("overdraft_draws_forgiven_check")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "overdraft_payers",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=False),
        sa.Column("row_sequence", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="overdraft_payers_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "start", name="overdraft_payers_pk"),
        sa.CheckConstraint(
            "start >= 0 AND amount > 0 AND until - start >= amount",
            name=op.f("overdraft_payers_amount_check"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "overdraft_returns",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="overdraft_returns_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "sequence", name="overdraft_returns_pk"),
        sqlite_with_rowid=False,
    )


def _fill(connection: sa.Connection) -> None:
    draws: list[dict[str, object]] = []
    payers: list[dict[str, object]] = []
    states: list[dict[str, object]] = []
    for line in lines(connection):
        for sequence, start, amount, forgiven in line.draws.values():
            draws.append({"w": line.wallet, "q": sequence, "s": start, "a": amount, "f": forgiven})
        for first, until, amount, grant, row in line.payers:
            payers.append(
                {"w": line.wallet, "s": first, "u": until, "a": amount, "g": grant, "r": row}
            )
        states.append({"w": line.wallet, "d": line.drawn, "p": line.repaid})
    for text, rows in (
        ("INSERT INTO overdraft_draws VALUES (:w, :q, :s, :a, :f)", draws),
        ("INSERT INTO overdraft_payers VALUES (:w, :s, :u, :a, :g, :r)", payers),
        (
            "UPDATE wallet_states SET overdrawn = :d, repaid_to = :p WHERE wallet_number = :w",
            states,
        ),
    ):
        for at in range(0, len(rows), CHUNK):
            connection.execute(sa.text(text), rows[at : at + CHUNK])
