"""The rules of transfers: credit that goes from one wallet to another, as it is.

As `rules`, of which these are a part: pure, on two wallets under their locks, answering the moves
of each or raising a Refusal. What travels is credit that is there: open, held by nobody, never
overdraft. Each draw becomes a grant of the same terms in the other wallet. Called by deciding.py.
"""

from dataclasses import replace

from creditledger.books import Move, check_range
from creditledger.errors import InvalidField, NotFound, WalletClosed, WalletFrozen, echo
from creditledger.model import Kind, Status, Type, Wallet, standing
from creditledger.operations import Transfer
from creditledger.rules import draw, insufficient

_OUT, _IN, _ADJUSTMENT = Kind.TRANSFER_OUT.value, Kind.TRANSFER_IN.value, Type.ADJUSTMENT.value


def check_wallets(sender: Wallet, receiver: Wallet | None, operation: Transfer) -> Wallet:
    """The receiver, if these two may have a transfer.

    Raises, in this order: WalletClosed, WalletFrozen; NotFound, InvalidField, WalletClosed of the
    receiver. `receiver`: None if there is none that the caller may post to.
    """
    if sender.status is Status.CLOSED:
        raise WalletClosed("the sending wallet is closed", param="from_wallet_id")
    if sender.status is Status.FROZEN:
        raise WalletFrozen(
            "the sending wallet is frozen: it takes credit but gives none", param="from_wallet_id"
        )
    if receiver is None:
        raise NotFound(f"no wallet {echo(operation.to_wallet_id)}", param="to_wallet_id")
    if receiver is sender:
        raise InvalidField("to_wallet_id is the sending wallet", param="to_wallet_id")
    if receiver.currency != sender.currency:
        raise InvalidField(
            f"to_wallet_id is a wallet in {receiver.currency}, not in {sender.currency}",
            param="to_wallet_id",
        )
    if receiver.livemode != sender.livemode:
        raise InvalidField("to_wallet_id is a wallet of the other mode", param="to_wallet_id")
    if receiver.status is Status.CLOSED:
        raise WalletClosed("the receiving wallet is closed", param="to_wallet_id")
    return receiver


def transfer(
    sender: Wallet, receiver: Wallet, amount: int, *, now: int
) -> tuple[list[Move], list[Move]]:
    """The moves of the sender, and those of the receiver: as many, one for one.

    `now`: the time of both, for what one has open must not have ended for the other. Raises
    InsufficientCredit, OutOfRange.
    """
    available = standing(sender, now).available
    if amount > available:
        raise insufficient(sender, amount, available)
    sent = draw(sender, amount, _OUT, _ADJUSTMENT, None, now=now)
    received = []
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
            effective_at=now,
            created_at=now,
            # What it has been is the other one's history.
            revision=0,
            held=0,
            repaid=0,
        )
        received.append(Move(_IN, _ADJUSTMENT, part, arriving, None, fresh=True))
    check_range(sender, sent, now, quantity=0)
    check_range(receiver, received, now, quantity=0)
    return sent, received
