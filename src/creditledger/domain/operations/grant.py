"""The rules of grants that are managed after they were given: new terms, and taking them back.

Pure. A rule takes a wallet under its lock and answers what is to be done, or raises a Refusal;
`revise` then does it.
"""

from bisect import insort

from creditledger.domain import clock, ids
from creditledger.domain.commands import GrantChange
from creditledger.domain.errors import GrantExpired, GrantVoided, InvalidField, NotFound, echo
from creditledger.domain.model import Grant, GrantTerms, Kind, Type, Wallet, given_back
from creditledger.domain.wallet_moves import Move

_EXPIRY, _EXPIRATION = Kind.EXPIRY.value, Type.EXPIRATION.value


def named(wallet: Wallet, grant_id: str) -> Grant:
    """The wallet's grant of this id. Raises NotFound."""
    found = ids.resolve("cg", grant_id)
    grant = wallet.grants.get(found[1]) if found and found[0] == wallet.number else None
    if grant is None:
        raise NotFound(f"no grant {echo(grant_id)}", param="id")
    return grant


def changed(grant: Grant, change: GrantChange, *, now: int) -> GrantTerms:
    """The terms that would be.

    Raises GrantVoided and GrantExpired where it is too late for a priority or an end, and
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
        _require_running(grant, now)
    if after.expires_at is not None and after.expires_at != grant.expires_at:
        if after.expires_at <= now:
            raise InvalidField("expires_at has already passed", param="expires_at")
        if after.expires_at <= grant.effective_at:
            raise InvalidField("expires_at must be after effective_at", param="expires_at")
    return after


def void(wallet: Wallet, grant: Grant, *, now: int) -> list[Move]:
    """What leaves of the grant as it is taken back: all that no hold has set aside.

    Raises GrantVoided, GrantExpired.
    """
    _require_running(grant, now)
    left = grant.remaining - grant.held + given_back(wallet, now).get(grant.number, 0)
    return [Move(_EXPIRY, _EXPIRATION, -left, grant, None)] if left else []


def _require_running(grant: Grant, now: int) -> None:
    if grant.voided_at is not None:
        moment = clock.text(grant.voided_at)
        raise GrantVoided(f"the grant was voided at {moment}", voided_at=moment)
    if grant.has_ended(now):
        assert grant.expires_at is not None
        moment = clock.text(grant.expires_at)
        raise GrantExpired(f"the grant expired at {moment}", expired_at=moment)


def revise(wallet: Wallet, grant: Grant, after: GrantTerms) -> None:
    """Give the grant new terms, and its place in the burn order by them."""
    if grant.remaining:
        wallet.burning.remove(grant)
    grant.name, grant.priority, grant.expires_at, grant.voided_at = after
    grant.revision += 1
    if grant.remaining:
        insort(wallet.burning, grant, key=Grant.burn_key)
    wallet.quiet_until = 0
