"""GiveGrant gives a lot of credit. `changed` and `revise` change the terms of a grant."""

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass

from creditledger.domain import clock, ids
from creditledger.domain.commands import Case, Command, Decision, GrantChange, Operation, Wants
from creditledger.domain.durations import Duration
from creditledger.domain.errors import (
    GrantExpired,
    GrantVoided,
    InvalidField,
    NotFound,
    ReceiptUsed,
    echo,
)
from creditledger.domain.model import (
    Category,
    Dimension,
    Grant,
    GrantScope,
    GrantTerms,
    Kind,
    Receipt,
    Type,
    Wallet,
)
from creditledger.domain.spending import check_backdating, new_grant
from creditledger.domain.wallet_moves import Move

#: Kinds of grants that credit a payment.
PAYMENTS = (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW)


@dataclass(frozen=True, slots=True)
class GiveGrant(Operation):
    """Give a lot of credit."""

    code, word, has_time = 1, "grant", False
    amount: str
    kind: Kind
    category: Category
    priority: int
    name: str | None
    begins_at: int | None
    expires_at: int | None
    source: Mapping[str, str]
    scope: GrantScope | None = None
    expires_after: Duration | None = None  #: Instead of expires_at; counts from the beginning.
    allow_repeated_receipt: bool = False  #: Accept a receipt that another grant has credited.

    @property
    def receipt(self) -> Receipt | None:
        """The payment for the grant, if the source names it. A wallet credits a receipt once."""
        receipt_id = self.source.get("receipt_id")
        if not receipt_id or self.category is not Category.PAID or self.kind not in PAYMENTS:
            return None
        return Receipt(self.source.get("provider", ""), receipt_id)

    @property
    def dimension(self) -> Dimension:
        """By its kind."""
        return Dimension(self.kind.value, Type.GRANT.value)

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The meters of its scope, and what has credited its receipt."""
        if self.scope is not None:
            wants.meters.update(self.scope.meter_ids)
        if self.receipt is not None:
            wants.receipts.add((wallet_id, self.receipt))

    def terms(self, command: Command) -> dict[str, object]:
        """All but the amount."""
        fields: dict[str, object] = {
            "effective_at": command.effective_at,
            "kind": self.kind.word,
            "category": self.category.word,
            "priority": self.priority,
            "name": self.name,
            "begins_at": self.begins_at,
            "expires_at": self.expires_at,
            "source": dict(self.source),
            "allow_repeated_receipt": self.allow_repeated_receipt or None,
        }
        if self.expires_after is not None:
            zone = self.expires_after.zone.key
            fields["expires_after"] = self.expires_after.text
            fields["time_zone"] = zone if zone != "UTC" else None
        if self.scope is not None:
            scope = self.scope._asdict().items()
            fields |= {f"scope.{name}": [*values] for name, values in scope}
        return fields

    def check(self, case: Case) -> None:
        """The meters of its scope are there."""
        for meter in self.scope.meter_ids if self.scope else ():
            if meter not in case.known.meters:
                raise NotFound(f"no meter {echo(meter)}", param="scope.meter_ids")

    def decide(self, case: Case) -> Decision:
        """Make the grant. Raises InvalidField, ReceiptUsed."""
        wallet, now, amount = case.wallet, case.now, case.amount
        assert amount is not None
        given, field = self.begins_at, "begins_at"
        if given is None:
            given, field = case.command.effective_at, "effective_at"
        if given is not None:
            check_backdating(case, given, field)
        grant = new_grant(
            wallet,
            amount,
            self.category,
            now,
            overdraft_used=wallet.overdraft_used,
            priority=self.priority,
            name=self.name,
            effective_at=given,
            expires_at=self._ends(now if given is None else given, now),
            scope=self.scope,
        )
        receipt = self.receipt
        if receipt is not None and not self.allow_repeated_receipt:
            credited = case.known.credited.get((wallet.number, receipt))
            if credited:
                raise ReceiptUsed(
                    f"receipt {echo(receipt.receipt_id)} has been credited",
                    param="source.receipt_id",
                    posting_id=ids.compose("pst", wallet.number, credited[0].posting),
                )
        source = self.source
        if self.kind is Kind.ADMIN_CREDIT:
            source = {"actor": source.get("actor") or case.command.actor}
        moves = [Move(self.kind.value, Type.GRANT.value, amount, grant, given, fresh=True)]
        return Decision(moves, self.dimension, source, receipt=receipt)

    def _ends(self, starts: int, now: int) -> int | None:
        """When the grant ends that begins at `starts`. Raises InvalidField if that has passed."""
        expires_at, field = self.expires_at, "expires_at"
        if self.expires_after is not None:
            expires_at, field = self.expires_after.after(starts), "expires_after"
            if expires_at is None:
                raise InvalidField(f"{field} ends after the year 9999", param=field)
        if expires_at is not None:
            if expires_at <= now:
                raise InvalidField(f"{field} has already passed", param=field)
            if expires_at <= starts:
                raise InvalidField(f"{field} must be after its effective_at", param=field)
        return expires_at


def changed(grant: Grant, change: GrantChange, *, now: int) -> GrantTerms:
    """The terms after the change.

    Raises GrantVoided and GrantExpired if it is too late for a new priority or end, and
    InvalidField(expires_at) for an end that has passed or is not after the beginning.
    """
    after = grant.terms()
    if change.name is not None:
        after = after._replace(name=change.name)
    if change.priority is not None:
        after = after._replace(priority=change.priority)
    if change.never_expires:
        after = after._replace(expires_at=None)
    elif change.expires_at is not None:
        after = after._replace(expires_at=change.expires_at)
    if after._replace(name=grant.name) != grant.terms():
        require_running(grant, now)
    if after.expires_at is not None and after.expires_at != grant.expires_at:
        if after.expires_at <= now:
            raise InvalidField("expires_at has already passed", param="expires_at")
        if after.expires_at <= grant.effective_at:
            raise InvalidField("expires_at must be after effective_at", param="expires_at")
    return after


def require_running(grant: Grant, now: int) -> None:
    """Raises GrantVoided, GrantExpired."""
    if grant.voided_at is not None:
        moment = clock.text(grant.voided_at)
        raise GrantVoided(f"the grant was voided at {moment}", voided_at=moment)
    if grant.has_ended(now):
        assert grant.expires_at is not None
        moment = clock.text(grant.expires_at)
        raise GrantExpired(f"the grant expired at {moment}", expired_at=moment)


def revise(wallet: Wallet, grant: Grant, after: GrantTerms) -> None:
    """Give the grant new terms, and sort it anew into the burn order."""
    if grant.remaining:
        wallet.burning.remove(grant)
    grant.name, grant.priority, grant.expires_at, grant.voided_at = after
    grant.revision += 1
    if grant.remaining:
        insort(wallet.burning, grant, key=Grant.burn_key)
    wallet.quiet_until = 0
