"""Adjust: give or take credit by hand.

A credit makes a promotional grant. A debit takes in burn order, or of one grant that it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from creditledger.domain.commands import (
    Case,
    Command,
    Decision,
    Operation,
    Wants,
    add_place,
)
from creditledger.domain.errors import InvalidField
from creditledger.domain.model import (
    Category,
    Dimension,
    Grant,
    Kind,
    Origin,
    Type,
    Wallet,
    given_back,
    standing,
)
from creditledger.domain.spending import draw, insufficient, named_grant, new_grant
from creditledger.domain.wallet_moves import Move

_CREDIT = Dimension(Kind.ADMIN_CREDIT.value, Type.ADJUSTMENT.value)
_DEBIT = Dimension(Kind.ADMIN_DEBIT.value, Type.ADJUSTMENT.value)


@dataclass(frozen=True, slots=True)
class Adjust(Operation):
    """Give or take credit by hand."""

    code, word = 3, "adjustment"
    amount: str
    source: Mapping[str, str]
    credit_grant_id: str | None = None
    force: bool = False

    @property
    def is_forced(self) -> bool:
        """Whether it may pass the overdraft limit, and debit a frozen wallet."""
        return self.force

    @property
    def dimension(self) -> Dimension:
        """The dimension of its rows."""
        return _DEBIT if self.amount.startswith("-") else _CREDIT

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The grant that it names."""
        if self.credit_grant_id is not None:
            add_place(wants.grants, "cg", self.credit_grant_id)

    def terms(self, command: Command) -> dict[str, object]:
        """All but the amount."""
        return {
            "effective_at": command.effective_at,
            "credit_grant_id": self.credit_grant_id,
            "force": self.force or None,
            "source": dict(self.source),
        }

    def spends(self, amount: int | None) -> bool:
        """A frozen wallet gives nothing but what is forced."""
        return amount is not None and amount < 0 and not self.force

    def check(self, case: Case) -> None:
        """The grant that it names is there."""
        if self.credit_grant_id is not None:
            self._grant(case.wallet, self.credit_grant_id)

    def _grant(self, wallet: Wallet, id_: str) -> Grant:
        return named_grant(wallet, id_, param="credit_grant_id", within=" in this wallet")

    def decide(self, case: Case) -> Decision:
        """Give or take the amount. Raises InvalidField, InsufficientCredit."""
        assert case.amount is not None
        moves = self._credit(case) if case.amount > 0 else self._debit(case, -case.amount)
        source = {"actor": self.source.get("actor") or case.command.actor}
        return Decision(moves, self.dimension, source)

    def _credit(self, case: Case) -> list[Move]:
        wallet, amount = case.wallet, case.amount
        assert amount is not None
        for name in ("credit_grant_id", "force"):
            if getattr(self, name):
                raise InvalidField(
                    f"{name} belongs to a debit; a credit makes a grant of its own",
                    param=name,
                )
        grant = new_grant(
            wallet,
            amount,
            Category.PROMOTIONAL,
            case.now,
            overdraft_used=wallet.overdraft_used,
            origin=Origin.ADJUSTMENT,
        )
        kind, type_, effective_at = _CREDIT.kind, _CREDIT.type, case.command.effective_at
        return [Move(kind, type_, amount, grant, effective_at, fresh=True)]

    def _debit(self, case: Case, debit: int) -> list[Move]:
        wallet, now, effective_at = case.wallet, case.now, case.command.effective_at
        kind, type_ = _DEBIT.kind, _DEBIT.type
        if self.credit_grant_id is None:
            return draw(
                wallet,
                debit,
                now=now,
                effective_at=effective_at,
                room=debit if self.force else None,
                kind=kind,
                type_=type_,
            )
        named, left = self._grant(wallet, self.credit_grant_id), 0
        if not named.has_ended(now):
            left = named.remaining - named.held + given_back(wallet, now).get(named.number, 0)
        if not self.force:
            if debit > left:
                raise insufficient(wallet, debit, left)
            available = standing(wallet, now).available
            is_available = named.effective_at <= now and named.scope is None
            if is_available and debit > available + wallet.overdraft_limit:
                raise insufficient(wallet, debit, available)
        moves = []
        if part := min(debit, left):
            moves.append(Move(kind, type_, -part, named, effective_at))
        if debit > left:
            moves.append(Move(kind, type_, left - debit, None, effective_at))
        return moves
