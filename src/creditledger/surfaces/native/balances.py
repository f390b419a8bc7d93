"""A wallet's balance at a moment: the request, what it reads, and its answer."""

from collections.abc import Iterator
from dataclasses import dataclass

from credit.v1 import wallet_service_pb2 as pb
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import clock, ids, money, wallet_moves
from creditledger.domain.errors import InvalidField, SequenceMismatch
from creditledger.domain.model import Category, Grant, Standing, Wallet, repayments, standing
from creditledger.store.read import wallet_history
from creditledger.store.read.replica import ReplicaBehind, is_replica
from creditledger.store.registry import records

#: How many days ahead it is looked for what expires.
DAYS, DAYS_MAX = 7, 3_660


@dataclass(frozen=True, slots=True)
class BalanceRequest:
    """Which wallet, at which moment: now, if neither says so."""

    wallet_id: str
    as_of: int | None
    at_sequence: int | None
    min_sequence: int
    days: int


def asked(request: pb.GetBalanceRequest) -> BalanceRequest:
    """The moment of a wallet that a request asks for."""
    as_of = fields.optional_time(request, "as_of", field="as_of")
    at_sequence = _sequence(request, "at_sequence")
    if as_of is not None and at_sequence is not None:
        raise InvalidField("at_sequence and as_of exclude each other", param="at_sequence")
    days = fields.optional(request, "expiring_within_days", DAYS)
    return BalanceRequest(
        wallet_id=fields.reference("wal", request.wallet_id, field="wallet_id"),
        as_of=as_of,
        at_sequence=at_sequence,
        min_sequence=_sequence(request, "min_sequence") or 0,
        days=fields.number(days, least=1, most=DAYS_MAX, field="expiring_within_days"),
    )


def _sequence(request: pb.GetBalanceRequest, name: str) -> int | None:
    value = fields.optional(request, name, None)
    return None if value is None else fields.number(value, least=0, most=1 << 62, field=name)


def read(connection: Connection, wanted: BalanceRequest, caller: Caller, now: int) -> pb.Balance:
    """The answer, of one snapshot. Raises NotFound, SequenceMismatch.

    A replica that has not heard of the sequence that is asked for leaves it to the primary.
    """
    wallet = posting_messages.own(
        records.wallet(connection, wanted.wallet_id), wanted.wallet_id, caller
    )
    for name, least in (("min_sequence", wanted.min_sequence), ("at_sequence", wanted.at_sequence)):
        if least is not None and least > wallet.sequence:
            if is_replica(connection):
                raise ReplicaBehind
            raise SequenceMismatch(
                f"the wallet is at sequence {wallet.sequence}, not yet at {least}",
                param=name,
                expected=str(least),
                actual=str(wallet.sequence),
            )
    moment = now if wanted.as_of is None else wanted.as_of
    if wanted.at_sequence is not None:
        wallet, moment = wallet_history.at_sequence(connection, wallet, wanted.at_sequence)
    elif moment < now:
        wallet = wallet_history.at_time(connection, wallet, moment)
    return _balance(wallet, moment, wanted.days)


def _balance(wallet: Wallet, moment: int, days: int) -> pb.Balance:
    moment = wallet.time(moment)
    wallet_moves.repay(wallet, repayments(wallet, moment))
    stands = standing(wallet, moment)
    left = list(_left(wallet, moment))
    until = moment + days * clock.DAY
    soon = sum(
        remaining - held
        for grant, remaining, held in left
        if grant.expires_at is not None and grant.expires_at <= until
    )

    def text(units: int) -> str:
        return money.text(units, wallet.scale)

    return pb.Balance(
        wallet_id=wallet.id,
        currency=wallet.currency,
        as_of=clock.text(moment),
        sequence=wallet.sequence,
        **{name: text(units) for name, units in stands._asdict().items()},
        overdraft_used=text(wallet.overdraft_used),
        by_category=[
            pb.CategoryBalance(
                category=category.word,
                **{name: text(units) for name, units in part._asdict().items()},
            )
            for category, part in _by_category(wallet, left, stands, moment)
        ],
        by_grant=[
            pb.GrantBalance(
                credit_grant_id=ids.compose("cg", wallet.number, grant.number),
                name=grant.name,
                category=grant.category.word,
                priority=grant.priority,
                remaining=text(remaining),
                held=text(held),
                effective_at=clock.text(grant.effective_at),
                expires_at=None if grant.expires_at is None else clock.text(grant.expires_at),
                scope=posting_messages.scope(grant.scope),
            )
            for grant, remaining, held in left
        ],
        expiring=pb.ExpiringBalance(within_days=days, amount=text(soon)),
    )


def _left(wallet: Wallet, moment: int) -> Iterator[tuple[Grant, int, int]]:
    """(grant, what is left of it, what of that is held); of one that has ended what is held."""
    set_aside: dict[int, int] = {}
    for hold in wallet.holds.values():
        if hold.is_open(moment):
            for number, part in hold.parts.items():
                set_aside[number] = set_aside.get(number, 0) + part
    for grant in wallet.burning:
        held = set_aside.get(grant.number, 0)
        remaining = held if grant.has_ended(moment) else grant.remaining
        if remaining:
            yield grant, remaining, held


def _by_category(
    wallet: Wallet, left: list[tuple[Grant, int, int]], stands: Standing, moment: int
) -> Iterator[tuple[Category, Standing]]:
    """Promotional is what is left of promotional grants; paid is the rest, overdraft with it."""
    balance = held = pending = scoped = 0
    for grant, remaining, set_aside in left:
        if grant.category is Category.PROMOTIONAL:
            balance += remaining
            held += set_aside
            if grant.effective_at > moment:
                pending += remaining
            elif grant.scope is not None:
                scoped += remaining - set_aside
    part = Standing(balance, held, pending, balance - held - pending - scoped, scoped)
    rest = Standing(*(whole - one for whole, one in zip(stands, part, strict=True)))
    yield Category.PAID, rest
    yield Category.PROMOTIONAL, part
