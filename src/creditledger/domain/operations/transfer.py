"""The rules of transfers: credit that goes from one wallet to another, as it is.

Pure. A rule takes two wallets under their locks and answers the moves of each, or raises a Refusal.
What travels is credit that is there: open, held by nobody, never overdraft. Each draw becomes a
grant of the same terms in the other wallet, or a part of one.
"""

from collections.abc import Mapping
from dataclasses import replace

from creditledger.domain.arrivals import Arrivals, words_digest
from creditledger.domain.commands import Transfer
from creditledger.domain.errors import InvalidField, NotFound, WalletClosed, WalletFrozen, echo
from creditledger.domain.model import Kind, Origin, Status, Type, Wallet, given_back, standing
from creditledger.domain.spending import draw, insufficient
from creditledger.domain.wallet_moves import Move, check_range

_OUT, _IN, _ADJUSTMENT = Kind.TRANSFER_OUT.value, Kind.TRANSFER_IN.value, Type.ADJUSTMENT.value


def check_wallets(sender: Wallet, receiver: Wallet | None, operation: Transfer) -> Wallet:
    """The receiver, if these two may have a transfer.

    Raises, in this order: WalletClosed, WalletFrozen; NotFound, InvalidField, WalletClosed of the
    receiver. `receiver`: None if there is none that the caller may post to.
    """
    if sender.status is Status.CLOSED:
        raise WalletClosed("the sending wallet is closed", param="wallet_id")
    if sender.status is Status.FROZEN:
        raise WalletFrozen(
            "the sending wallet is frozen: it takes credit but gives none", param="wallet_id"
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
    sender: Wallet,
    receiver: Wallet,
    amount: int,
    metadata: Mapping[str, str],
    *,
    sent_at: int,
    received_at: int,
) -> tuple[list[Move], list[Move]]:
    """The moves of the sender, and those of the receiver: as many, one for one.

    `metadata`: the transfer's, which the grants that it makes have. `sent_at`, `received_at`: the
    time of each wallet. They differ where the time of one is ahead of the clock. What has ended at
    the receiver's time stays with the sender: it would be lost there. Raises InsufficientCredit,
    OutOfRange.
    """
    source, available = _travelling(sender, sent_at=sent_at, received_at=received_at)
    if amount > available:
        raise insufficient(sender, amount, available)
    sent = draw(source, amount, _OUT, _ADJUSTMENT, None, now=sent_at, room=amount)
    received = []
    arrivals, words = Arrivals(receiver, received_at), words_digest(metadata)
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
            # What it has been is the other one's history.
            revision=0,
            held=0,
            repaid=0,
            origin=Origin.TRANSFER,
            words=words,
        )
        received.append(arrivals.move(_IN, _ADJUSTMENT, arriving, None))
    check_range(sender, sent, sent_at, quantity=0)
    check_range(receiver, received, received_at, quantity=0)
    return sent, received


def _travelling(sender: Wallet, *, sent_at: int, received_at: int) -> tuple[Wallet, int]:
    """The sender with the grants that may travel, and what of their credit is available."""
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
