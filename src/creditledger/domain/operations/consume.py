"""Consume: spend credit in burn order."""

from dataclasses import dataclass

from creditledger.domain.commands import Case, Command, Decision, Operation, Usage
from creditledger.domain.model import Dimension, Posting
from creditledger.domain.spending import Metered, draw, purpose


@dataclass(frozen=True, slots=True)
class Consume(Metered):
    """Spend credit for what was used."""

    code, word = 2, "consumption"
    amount: str
    meter_id: str | None = None
    meter_event_id: str | None = None
    subscription_id: str | None = None
    usage: Usage | None = None

    def terms(self, command: Command) -> dict[str, object]:
        """Nothing: rows and their dimension tell all of it."""
        return {}

    def told(self, command: Command) -> dict[str, object]:
        """The usage as well, by its dimension."""
        quantities = self.usage.quantities if self.usage else ()
        return Operation.told(self, command) | _told(
            command.effective_at, self.meter_event_id, quantities, self.dimension
        )

    @staticmethod
    def told_by(posting: Posting, dimension: Dimension | None) -> dict[str, object]:
        """The usage as well."""
        assert dimension is not None
        return Operation.told_by(posting, dimension) | _told(
            posting.rows[0].effective_at, posting.meter_event_id, posting.quantities, dimension
        )

    def decide(self, case: Case) -> Decision:
        """Draw the amount. Raises InsufficientCredit."""
        amount = case.amount
        assert amount is not None
        spent_on = purpose(self.meter_id, self.usage)
        effective_at = case.command.effective_at
        return Decision(
            draw(case.wallet, amount, spent_on, now=case.now, effective_at=effective_at),
            self.dimension,
            quantities=self.usage.quantities if self.usage else (),
            meter_event_id=self.meter_event_id,
            spends=amount,
        )


def _told(
    effective_at: int | None, event_id: str | None, quantities: tuple[int, ...], used: Dimension
) -> dict[str, object]:
    usage = (
        *("api_key_id", "product_id", "product_name", "category", "billing_method"),
        *("base_prices", "discount_prices", "price_precision"),
    )
    return {
        "effective_at": effective_at,
        "meter_event_id": event_id,
        "usage.quantities": list(quantities),
        "meter_id": used.meter_id,
        "subscription_id": used.subscription_id,
        "usage": used.has_usage,
        **{f"usage.{name}": getattr(used, name) for name in usage},
    }
