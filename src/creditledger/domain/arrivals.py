"""Grants that the ledger makes by itself, for a transfer or a refund: each a new one, or a part.

Credit that arrives in many small pieces would make as many open grants. So a piece becomes a part
of an open grant that the ledger made and that has equal terms and metadata. Each piece keeps its
own row.
"""

import hashlib
import json
from collections.abc import Mapping

from creditledger.domain import money
from creditledger.domain.model import Category, Grant, GrantScope, Origin, Wallet
from creditledger.domain.wallet_moves import Move

#: Category, priority, scope, end, name, digest of the metadata, and whether it came back late.
_Likeness = tuple[Category, int, GrantScope | None, int | None, str | None, str | None, bool]

_MADE = (Origin.REFUND, Origin.TRANSFER)


def words_digest(metadata: Mapping[str, str]) -> str | None:
    """A 128-bit digest of the metadata; None if it is empty."""
    if not metadata:
        return None
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Arrivals:
    """The grants that one posting makes in a wallet. Later pieces become parts of earlier ones."""

    def __init__(self, wallet: Wallet, now: int) -> None:
        self._open: dict[_Likeness, Grant] = {}
        self._amounts: dict[_Likeness, int] = {}
        self._now = now
        for grant in wallet.burning:
            if self._takes_parts(grant):
                self._open.setdefault(_likeness(grant), grant)

    def reopen(self, grant: Grant) -> None:
        """The posting gives something back to a grant that was used up."""
        if not self._takes_parts(grant):
            return
        likeness = _likeness(grant)
        found = self._open.get(likeness)
        # The first grant in burn order takes parts, as in the wallet. New grants come after it.
        if found is None or not found.number or grant.burn_key() < found.burn_key():
            self._open[likeness] = grant
            self._amounts.pop(likeness, None)

    def move(self, kind: int, type_: int, grant: Grant, effective_at: int | None) -> Move:
        """The move that makes the grant, or makes it a part of one that is there."""
        likeness = _likeness(grant)
        found = self._open.get(likeness)
        if found is not None:
            amount = self._amounts.get(likeness, found.amount) + grant.amount
            if amount <= money.AMOUNT_MAX:
                self._amounts[likeness] = amount
                paid = grant.overdraft_paid
                return Move(kind, type_, grant.amount, found, effective_at, paid=paid)
        if grant.remaining:
            self._open[likeness], self._amounts[likeness] = grant, grant.amount
        return Move(kind, type_, grant.amount, grant, effective_at, fresh=True)

    def _takes_parts(self, grant: Grant) -> bool:
        # A grant with changed terms takes no parts: its terms were chosen for its own credit.
        return grant.origin in _MADE and not grant.revision and grant.is_open(self._now)


def _likeness(grant: Grant) -> _Likeness:
    return (
        grant.category,
        grant.priority,
        grant.scope,
        grant.expires_at,
        grant.name,
        grant.words,
        grant.returned,
    )
