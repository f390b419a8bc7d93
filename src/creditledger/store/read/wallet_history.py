"""A wallet as it was at a moment of the past, put together from what is never changed.

Its rows and repayments say what remained of each grant, revisions what its terms were and what
holds had set aside. The value that comes out is a wallet like one read now, so the same rules print
its figures. What these do not tell is as it is today: status, limit and metadata. Functions of a
connection on one snapshot.
"""

from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from creditledger.domain.model import HOLD_MS_MAX, Grant, GrantTerms, Hold, Wallet
from creditledger.store import schema
from creditledger.store.read.transaction_reads import last_before
from creditledger.store.write.columns import GRANT, HOLD

t, g, r = schema.transactions.c, schema.grants.c, schema.hold_revisions.c
v, x, y = schema.grant_revisions.c, schema.grant_parts.c, schema.grant_repayments.c

_TERMS = GRANT.only(*GrantTerms._fields)
_SET_ASIDE = HOLD.only("captured", "parts", "beyond", "deadline", "created_at")


def at_time(connection: Connection, now: Wallet, moment: int) -> Wallet:
    """The wallet that is like `now` by today as it was at the end of this millisecond."""
    sequence = last_before(connection, now.number, now.sequence, moment + 1)
    held = and_(r.created_at <= moment, r.created_at > moment - HOLD_MS_MAX)
    changed, later = v.created_at <= moment, y.repaid_at > moment
    return _as_it_was(connection, now, sequence, moment, held, changed, later)


def at_sequence(connection: Connection, now: Wallet, sequence: int) -> tuple[Wallet, int]:
    """`now` as the posting of its row `sequence` left it, and when that was.

    0 is the wallet without rows, at its creation.
    """
    row = connection.execute(
        select(t.created_at, t.posting_number).where(
            t.wallet_number == now.number, t.sequence == sequence
        )
    ).one_or_none()
    moment, posting = (now.created_at, 0) if row is None else row
    held = and_(
        r.created_at > moment - HOLD_MS_MAX,
        or_(r.created_at < moment, and_(r.created_at == moment, r.posting_number <= posting)),
    )
    before = or_(v.posting_number.is_(None), v.posting_number <= posting)
    changed = or_(v.created_at < moment, and_(v.created_at == moment, before))
    later = y.sequence >= sequence
    return _as_it_was(connection, now, sequence, moment, held, changed, later), moment


def _as_it_was(
    connection: Connection,
    now: Wallet,
    sequence: int,
    moment: int,
    held: ColumnElement[bool],
    changed: ColumnElement[bool],
    later: ColumnElement[bool],
) -> Wallet:
    balance, posted_at = 0, 0
    if sequence:
        balance, posted_at = connection.execute(
            select(t.running_balance, t.created_at).where(
                t.wallet_number == now.number, t.sequence == sequence
            )
        ).one()
    grants = _grants(connection, now, sequence, _repaid(connection, now.number, later))
    was = replace(
        now,
        sequence=sequence,
        running_balance=balance,
        overdraft_used=sum(grant.remaining for grant in grants) - balance,
        posted_at=posted_at,
        grants={},
        holds={},
        burning=[],
        quiet_until=0,
    )
    _give_terms(connection, now.number, grants, changed)
    was.fill(grants, _holds(connection, now.number, moment, held))
    return was


def _repaid(connection: Connection, wallet: int, later: ColumnElement[bool]) -> dict[int, int]:
    """What grants have paid back of overdraft since, as they began or ended."""
    query = select(y.grant_number, func.sum(y.amount)).where(y.wallet_number == wallet, later)
    return {
        number: int(paid) for number, paid in connection.execute(query.group_by(y.grant_number))
    }


def _grants(
    connection: Connection, now: Wallet, sequence: int, repaid: dict[int, int]
) -> list[Grant]:
    """Grants of which something remained after the row `sequence`, with what remained.

    Adds up the rows before or after it, whichever are fewer. `repaid`: what grants paid back later.
    """
    rows = select(t.grant_number, func.sum(t.amount).label("amount")).where(
        t.wallet_number == now.number
    )
    if sequence <= now.sequence // 2:
        moved = rows.where(t.sequence <= sequence, t.grant_number.is_not(None))
        sums = moved.group_by(t.grant_number).subquery("moved")
        left = sums.c.amount - g.overdraft_paid - g.repaid
    else:
        moved = rows.where(t.sequence > sequence, t.grant_number <= sequence)
        sums = moved.group_by(t.grant_number).subquery("moved")
        left = g.remaining - sums.c.amount
    found = connection.execute(
        select(left, *GRANT.of(g)).join_from(
            sums,
            schema.grants,
            and_(g.wallet_number == now.number, g.number == sums.c.grant_number),
        )
    )
    grants = {}
    for remaining, *columns in found:
        grant = GRANT.value(columns)
        grant.remaining = int(remaining)
        grants[grant.number] = grant
    if sequence > now.sequence // 2:
        # No row has touched these since.
        for grant in now.burning:
            if grant.number <= sequence and grant.number not in grants:
                grants[grant.number] = replace(grant, held=0)
        missing = [number for number in repaid if number <= sequence and number not in grants]
        query = select(*GRANT.of(g)).where(g.wallet_number == now.number, g.number.in_(missing))
        grants |= {one.number: one for one in map(GRANT.value, connection.execute(query))}
    for number in repaid.keys() & grants.keys():
        grants[number].remaining += repaid[number]
        grants[number].repaid -= repaid[number]
    later = select(x.grant_number, func.sum(x.overdraft_paid)).where(
        x.wallet_number == now.number, x.sequence > sequence
    )
    for number, paid in connection.execute(later.group_by(x.grant_number)):
        if number in grants:
            # These parts had not come yet: their rows do not count, nor what they paid back.
            grants[number].remaining += int(paid)
    return [grant for grant in grants.values() if grant.remaining]


def _give_terms(
    connection: Connection, wallet: int, grants: list[Grant], when: ColumnElement[bool]
) -> None:
    """Of grants whose terms have changed, what the last change by then made of them."""
    changed = {grant.number: grant for grant in grants if grant.revision}
    if not changed:
        return
    last = (
        select(v.grant_number, func.max(v.number).label("number"))
        .where(v.wallet_number == wallet, v.grant_number.in_(list(changed)), when)
        .group_by(v.grant_number)
        .subquery("last")
    )
    found = connection.execute(
        select(v.grant_number, *_TERMS.of(v)).join_from(
            last,
            schema.grant_revisions,
            and_(
                v.wallet_number == wallet,
                v.grant_number == last.c.grant_number,
                v.number == last.c.number,
            ),
        )
    )
    for number, *terms in found:
        for name, value in _TERMS.by_field(terms).items():
            setattr(changed[number], name, value)


def _holds(
    connection: Connection, wallet: int, moment: int, when: ColumnElement[bool]
) -> list[Hold]:
    """Holds that were open: of each the last revision by then, if that is not its end."""
    # By time before number: ledgers of older versions have wallets whose numbers go back once.
    nth = func.row_number().over(
        partition_by=r.hold_number, order_by=(r.created_at.desc(), r.posting_number.desc())
    )
    last = (
        select(schema.hold_revisions, nth.label("nth"))
        .where(r.wallet_number == wallet, when)
        .subquery("last")
    ).c
    found = connection.execute(
        select(
            last.hold_number,
            *_SET_ASIDE.of(last),
        ).where(last.nth == 1, last.ended.is_(None), last.deadline > moment)
    )
    return [
        Hold(
            number=number,
            amount=0,
            dimension=0,
            quantities=(),
            meter_event_id=None,
            **_SET_ASIDE.by_field(columns),
        )
        for number, *columns in found
    ]
