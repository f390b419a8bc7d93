"""Checks of closed statements: whether they still say what the rows add up to.

A statement is made backwards, from the present state. The check adds up forwards: in one query for
each wallet a row goes to the first statement that knew it and ended after it happened, and a
statement opens with the closing figures of the one before it. The functions take a connection on
one snapshot.
"""

import json
from collections.abc import Iterator

from sqlalchemy import Connection, and_, case, func, select

from creditledger.domain import clock, ids, money, statements
from creditledger.domain.billing_periods import Bucket
from creditledger.domain.errors import InvalidField
from creditledger.domain.statements import (
    About,
    Document,
    DoesNotAddUp,
    Figures,
    Label,
    Part,
    Repaid,
    RowSums,
    UsageSums,
)
from creditledger.domain.views import WalletPlace
from creditledger.store import schema
from creditledger.store.dialects import exact_sum
from creditledger.store.statements import basis as statement_basis
from creditledger.store.statements import closed as closed_statements
from creditledger.store.statements.closed import Closed
from creditledger.store.verify.check import Finding

#: The names of the checks.
CHECKS = ("statement_chain", "statement_digest", "statement_content", "statement_figures")

#: Fields of a grant's line that may have changed since the statement was closed.
_TERMS = frozenset({"name", "effective_at", "expires_at", "voided_at"})

stated, row, dimension = schema.statements.c, schema.transactions.c, schema.dimensions.c


def found(connection: Connection) -> Iterator[Finding]:
    """Everything wrong with closed statements, wallet by wallet."""
    numbers = select(stated.wallet_number).distinct().order_by(stated.wallet_number)
    for number in connection.execute(numbers).scalars().all():
        yield from _of_wallet(connection, number)


def _of_wallet(connection: Connection, number: int) -> Iterator[Finding]:
    w, v, c = schema.wallets.c, schema.wallet_states.c, schema.currencies.c
    query = (
        select(w.id, w.customer_id, w.currency, c.scale, w.livemode, v.sequence)
        .join_from(schema.wallets, schema.currencies, c.code == w.currency)
        .join(schema.wallet_states, v.wallet_number == w.number)
        .where(w.number == number)
    )
    known = connection.execute(query).one_or_none()
    if known is None:
        yield Finding("statement_chain", None, number, None, "there is no such wallet")
        return
    *place, last = known
    wallet = WalletPlace(*place)
    every = closed_statements.page(connection, number, None, _count(connection, number))[::-1]
    added_up: Iterator[Figures | None] = _figures(connection, every)
    before: Closed | None = None
    # Older versions closed statements without `by_product`.
    with_products = False
    for one in every:
        whole = closed_statements.one(connection, number, one.number)
        assert whole is not None
        for check, message in (
            *_chain(whole, before, last),
            *_content(whole, before, wallet, next(added_up), with_products=with_products),
        ):
            yield Finding(check, wallet.id, number, None, f"statement {one.number}: {message}")
        with_products = with_products or '"by_product":' in whole.content
        before = one


def _count(connection: Connection, number: int) -> int:
    query = (
        select(func.count()).select_from(schema.statements).where(stated.wallet_number == number)
    )
    return connection.execute(query).scalar_one()


def _chain(one: Closed, before: Closed | None, last: int) -> Iterator[tuple[str, str]]:
    follows = (
        one.number == 1
        if before is None
        else (
            one.number == before.number + 1
            and one.starts_at == before.ends_at
            and one.opening_balance == before.closing_balance
            and one.closed_sequence >= before.closed_sequence
        )
    )
    if not follows or not one.starts_at < one.ends_at or not 0 <= one.closed_sequence <= last:
        yield "statement_chain", "it does not go on where the one before it ends"
    if statements.digest(one.content) != one.sha256:
        yield "statement_digest", f"its text does not have the digest {one.sha256}"


def _content(
    one: Closed,
    before: Closed | None,
    wallet: WalletPlace,
    figures: Figures | None,
    *,
    with_products: bool,
) -> Iterator[tuple[str, str]]:
    try:
        said: Document = json.loads(one.content)
        zone = clock.stored_zone(one.time_zone)
        beside = {
            "id": ids.compose("stm", one.wallet, one.number),
            "number": str(one.number),
            "wallet_id": wallet.id,
            "time_zone": one.time_zone,
            "sequence": str(one.closed_sequence),
            "opening_balance": money.text(one.opening_balance, wallet.scale),
            "closing_balance": money.text(one.closing_balance, wallet.scale),
            "previous_sha256": None if before is None else before.sha256,
        }
        for name, value in beside.items():
            if said.get(name) != value:
                yield "statement_content", f"{name} is {said.get(name)}, not {value}"
        moments = {"start": one.starts_at, "end": one.ends_at, "closed_at": one.closed_at}
        for name, moment in moments.items():
            # Parsed with the offset that was written: the zone may have had another one then.
            if clock.parse(said[name], field=name) != moment:
                yield "statement_content", f"{name} is {said[name]}, not {clock.text(moment)}"
        if not clock.is_zone(one.time_zone):
            yield (
                "statement_content",
                f"time_zone {one.time_zone} is no IANA zone: it counts as UTC",
            )
        bucket = Bucket(one.starts_at, one.ends_at)
        about = About(one.wallet, wallet, "", bucket, zone, one.closed_sequence)
        if figures is None:
            yield "statement_figures", "its rows do not add up"
            return
        for name, value in _figures_only(statements.totals(about, figures)).items():
            if name == "by_product" and name not in said and not with_products:
                continue
            if _figures_only(said).get(name) != value:
                yield "statement_figures", f"{name} is not what its rows come to"
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, InvalidField):
        yield "statement_content", "its text is no statement"


def _figures_only(said: Document) -> Document:
    lines = [
        {name: value for name, value in line.items() if name not in _TERMS}
        for line in said["grants"]
    ]
    return {**said, "grants": lines}


def _figures(connection: Connection, every: list[Closed]) -> Iterator[Figures | None]:
    """The figures of one statement after the other; None where they do not add up."""
    by_number: dict[int, list[RowSums]] = {}
    used: dict[int, list[UsageSums]] = {}
    opening: dict[int, int] = {}
    overdraft = 0
    try:
        known = statement_basis.facts(connection, every[0].wallet, None)
        for number, one, spent in _moved(connection, every[0].wallet):
            by_number.setdefault(number, []).append(one)
            if spent is not None:
                used.setdefault(number, []).append(spent)
        for one in by_number.get(every[0].number, []):
            if one.part is Part.BEFORE:
                paid = 0
                if one.grant is not None:
                    paid = one.repaid(known[one.grant])
                    opening[one.grant] = opening.get(one.grant, 0) + one.amount - paid
                overdraft -= paid if one.grant is not None else one.amount
        repaid = _repaid(connection, every)
        for back in repaid.get(every[0].number, []):
            if back.part is Part.BEFORE:
                opening[back.grant] = opening.get(back.grant, 0) - back.amount
                overdraft -= back.amount
        for statement in every:
            moved = by_number.get(statement.number, [])
            paid_back = repaid.get(statement.number, [])
            spent_on = used.get(statement.number, [])
            came = statements.figures(opening, overdraft, moved, known, paid_back, spent_on)
            yield came
            opening = {n: line.closing for n, line in came.grants.items() if line.closing}
            overdraft = came.overdraft.closing
    except (DoesNotAddUp, LookupError, ValueError):
        while True:
            yield None


def _repaid(connection: Connection, every: list[Closed]) -> dict[int, list[Repaid]]:
    """Repayments of grants that have no row, by the number of their statement."""
    found: dict[int, list[Repaid]] = {}
    for one in statement_basis.later(connection, every[0].wallet, -(1 << 62), 0):
        for statement in every:
            if statement.closed_sequence >= one.sequence and statement.ends_at > one.repaid_at:
                late = Part.BEFORE if statement.number == 1 else Part.PRIOR
                part = Part.PERIOD if one.repaid_at >= statement.starts_at else late
                found.setdefault(statement.number, []).append(Repaid(part, *one[:2]))
                break
    return found


def _moved(connection: Connection, wallet: int) -> Iterator[tuple[int, RowSums, UsageSums | None]]:
    """The sums of rows, by the number of their statement."""
    first = (
        select(func.min(stated.number))
        .where(
            stated.wallet_number == wallet,
            stated.closed_sequence >= row.sequence,
            stated.ends_at > statement_basis.happened,
        )
        .scalar_subquery()
    )
    rows = (
        select(
            first.label("statement"),
            statement_basis.happened.label("happened"),
            *(row.grant_number, row.kind, row.dimension_number, row.amount),
            case((row.grant_number == row.sequence, 1), else_=0).label("began"),
            func.coalesce(schema.grant_parts.c.overdraft_paid, 0).label("paid"),
            *(statement_basis.calls.label("calls"), statement_basis.quantity.label("quantity")),
        )
        .join_from(schema.transactions, schema.grant_parts, statement_basis.OF_PART, isouter=True)
        .where(row.wallet_number == wallet)
        .subquery("rows")
    )
    late = case(
        (rows.c.happened >= stated.starts_at, Part.PERIOD.value),
        (rows.c.statement == 1, Part.BEFORE.value),
        else_=Part.PRIOR.value,
    )
    parts = (
        select(
            *(rows.c.statement, late.label("part"), rows.c.grant_number, rows.c.kind),
            *(*statement_basis.LABEL, rows.c.amount, rows.c.began, rows.c.paid),
            *(rows.c.calls, rows.c.quantity),
        )
        .join_from(
            rows,
            schema.statements,
            and_(stated.wallet_number == wallet, stated.number == rows.c.statement),
        )
        .join(
            schema.dimensions,
            and_(dimension.wallet_number == wallet, dimension.number == rows.c.dimension_number),
        )
        .subquery("parts")
    )
    names = ("statement", "part", "grant_number", "kind", *Label._fields)
    keys = [parts.c[name] for name in names]
    query = select(
        *(*keys, func.count(), exact_sum(parts.c.amount), func.sum(parts.c.began)),
        *(exact_sum(parts.c.paid), func.sum(parts.c.calls), exact_sum(parts.c.quantity)),
    ).group_by(*keys)
    for number, part, grant, kind, *rest in connection.execute(query):
        yield number, *statement_basis.sums_of(part, grant, kind, *rest)
