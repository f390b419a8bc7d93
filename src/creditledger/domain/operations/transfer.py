"""Transfer: move credit from one wallet to another, with its terms.

Only available credit moves: from open grants, not held, never overdraft. Each draw becomes a grant
of the same terms in the other wallet, or a part of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from creditledger.domain.arrivals import Arrivals, words_digest
from creditledger.domain.commands import Case, Command, Decision, Named, Operation, Wants
from creditledger.domain.errors import InvalidField, NotFound, WalletClosed, echo
from creditledger.domain.model import (
    Dimension,
    Kind,
    Origin,
    Posting,
    Status,
    Type,
    Wallet,
    given_back,
    standing,
)
from creditledger.domain.spending import draw, insufficient

#: The dimensions of the two sides.
SENT = Dimension(Kind.TRANSFER_OUT.value, Type.ADJUSTMENT.value)
RECEIVED = Dimension(Kind.TRANSFER_IN.value, Type.ADJUSTMENT.value)


@dataclass(frozen=True, slots=True)
class Transfer(Operation):
    """Move credit to another wallet of the same currency and mode."""

    code, word = 11, "transfer"
    to_wallet_id: str
    amount: str

    @property
    def receiver_id(self) -> str | None:
        """The other wallet."""
        return self.to_wallet_id

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The other wallet."""
        wants.wallets.add(self.to_wallet_id)

    def dimensions(self, wallet: Wallet, named: Named) -> Iterator[tuple[int, Dimension]]:
        """One for each side."""
        receiver = named.wallets.get(self.to_wallet_id)
        if receiver is not None:
            yield receiver.number, RECEIVED
        yield wallet.number, SENT

    def terms(self, command: Command) -> dict[str, object]:
        """Nothing: the posting's columns tell all of it."""
        return {}

    def told(self, command: Command) -> dict[str, object]:
        """The other wallet as well."""
        return {**Operation.told(self, command), "to_wallet_id": self.to_wallet_id}

    @staticmethod
    def told_by(posting: Posting, dimension: Dimension | None) -> dict[str, object]:
        """The other wallet as well."""
        return {
            **Operation.told_by(posting, dimension),
            "to_wallet_id": posting.source["wallet_id"],
        }

    def spends(self, amount: int | None) -> bool:
        """A frozen wallet gives nothing."""
        return True

    def check(self, case: Case) -> None:
        """These two wallets may have a transfer. Raises InvalidField, WalletClosed, too."""
        sender, receiver, param = case.wallet, case.receiver, "to_wallet_id"
        if receiver is None:
            raise NotFound(f"no wallet {echo(self.to_wallet_id)}", param=param)
        if receiver is sender:
            raise InvalidField("to_wallet_id is the sending wallet", param=param)
        if receiver.currency != sender.currency:
            raise InvalidField(
                f"to_wallet_id is a wallet in {receiver.currency}, not in {sender.currency}",
                param=param,
            )
        if receiver.livemode != sender.livemode:
            raise InvalidField("to_wallet_id is a wallet of the other mode", param=param)
        if receiver.status is Status.CLOSED:
            raise WalletClosed("the receiving wallet is closed", param=param)

    def decide(self, case: Case) -> Decision:
        """As many moves of the receiver as of the sender, one for one. Raises InsufficientCredit.

        Each side has its own time, which may be ahead of the clock. A grant that has ended at the
        receiver's time stays with the sender, because its credit would be lost there.
        """
        sender, amount = case.wallet, case.amount
        receiver, received_at = case.receiver, case.received_at
        assert receiver is not None
        assert amount is not None
        source, available = _travelling(sender, sent_at=case.now, received_at=received_at)
        if amount > available:
            raise insufficient(sender, amount, available)
        sent = draw(source, amount, now=case.now, room=amount, kind=SENT.kind, type_=SENT.type)
        received = []
        arrivals, words = Arrivals(receiver, received_at), words_digest(case.command.metadata)
        overdraft_used = receiver.overdraft_used
        for move in sent:
            assert move.grant is not None
            part = -move.amount
            paid = min(overdraft_used, part)
            overdraft_used -= paid
            arriving = replace(
                move.grant,
                number=0,
                amount=part,
                overdraft_paid=paid,
                remaining=part - paid,
                effective_at=received_at,
                created_at=received_at,
                # The history stays with the sender's grant.
                revision=0,
                held=0,
                repaid=0,
                origin=Origin.TRANSFER,
                words=words,
            )
            received.append(arrivals.move(RECEIVED.kind, RECEIVED.type, arriving, None))
        arrived = Decision(received, RECEIVED, {"wallet_id": sender.id})
        return Decision(sent, SENT, {"wallet_id": self.to_wallet_id}, received=arrived)


def _travelling(sender: Wallet, *, sent_at: int, received_at: int) -> tuple[Wallet, int]:
    """The sender with the grants that may move, and the available part of their credit."""
    available = standing(sender, sent_at).available
    if received_at <= sent_at:
        return sender, available
    freed = given_back(sender, sent_at)
    staying = [grant for grant in sender.burning if grant.has_ended(received_at)]
    for grant in staying:
        if grant.is_open(sent_at) and grant.scope is None:
            available -= grant.remaining - grant.held + freed.get(grant.number, 0)
    burning = [grant for grant in sender.burning if not grant.has_ended(received_at)]
    return replace(sender, burning=burning), available
