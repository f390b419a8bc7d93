"""VoidGrant: take back what is left of a grant, and end the grant."""

from dataclasses import dataclass

from creditledger.domain.commands import Case, Decision, Operation, Wants, add_place
from creditledger.domain.model import Dimension, given_back
from creditledger.domain.operations.grant import require_running
from creditledger.domain.spending import EXPIRY, named_grant
from creditledger.domain.wallet_moves import Move


@dataclass(frozen=True, slots=True)
class VoidGrant(Operation):
    """Take a grant back."""

    code, word, has_amount = 10, "void", False
    id: str

    @property
    def dimension(self) -> Dimension:
        """What is taken back expires."""
        return EXPIRY

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The grant with its metadata."""
        add_place(wants.revised, "cg", self.id)

    def decide(self, case: Case) -> Decision:
        """Take all that no hold has set aside. Raises NotFound, GrantVoided, GrantExpired."""
        wallet, now = case.wallet, case.now
        grant = named_grant(wallet, self.id, param="id")
        require_running(grant, now)
        left = grant.remaining - grant.held + given_back(wallet, now).get(grant.number, 0)
        return Decision(
            [Move(EXPIRY.kind, EXPIRY.type, -left, grant, None)] if left else [],
            EXPIRY,
            revised=grant,
            terms=grant.terms()._replace(voided_at=now),
        )
