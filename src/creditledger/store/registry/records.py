"""Customers, subscriptions, currencies, wallets and API keys: made once, rarely changed.

Functions of a SQLAlchemy connection, to be run by `Store.write` (create, revoke) or `Store.read`.
A create that repeats an existing thing answers that thing; one that differs raises IdTaken.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    column,
    exists,
    insert,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from creditledger.domain import clock
from creditledger.domain.commands import CHANGE_NAMES
from creditledger.domain.errors import IdTaken, InvalidField, NotFound, OutOfRange, echo
from creditledger.domain.model import Grant, Hold, Status, Wallet
from creditledger.domain.registry import ApiKey, Currency, Customer, Scope, Subscription
from creditledger.domain.views import WalletPlace
from creditledger.store import schema
from creditledger.store.dialects import by_index
from creditledger.store.write.columns import GRANT, HOLD, PLACE, STATE_NAMES, WALLET, wallet_value

#: Wallets of a customer in one currency and mode, closed ones included: "me" reads all of them.
SUCCESSIVE_MAX = 1_000


def customer_value(row: Row[Any]) -> Customer:
    """A customer of its row."""
    return Customer(
        *(row.id, row.name, row.email, json.loads(row.metadata), row.created_at),
        *(row.updated_at, row.archived_at),
    )


def _subscription(row: Row[Any]) -> Subscription:
    return Subscription(row.id, row.customer_id, row.name, json.loads(row.metadata), row.created_at)


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        row.number,
        row.id,
        row.name,
        Scope(row.scope),
        row.customer_id,
        row.livemode,
        row.mask,
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.is_session,
        row.last_used_at,
    )


def dumped(value: object) -> str:
    """Metadata as a column holds it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _one(connection: Connection, table: Table, id_: str) -> Row[Any] | None:
    return connection.execute(select(table).where(table.c.id == id_)).one_or_none()


def _page(
    connection: Connection, query: Select[Any], table: Table, after: str, size: int
) -> Sequence[Row[Any]]:
    """Up to `size` + 1 rows with an id after `after`: one more tells that there is a next page."""
    return connection.execute(
        query.where(table.c.id > after).order_by(table.c.id).limit(size + 1)
    ).all()


def taken(what: str, id_: str, *, attribute: str = "id") -> IdTaken:
    """The refusal of an id that exists with other attributes."""
    return IdTaken(f"{what} {echo(id_)} exists with other attributes", param=attribute)


def customer(connection: Connection, id_: str) -> Customer | None:
    """The customer of this id."""
    row = _one(connection, schema.customers, id_)
    return None if row is None else customer_value(row)


def create_customer(connection: Connection, new: Customer) -> Customer:
    """Raises IdTaken."""
    found = customer(connection, new.id)
    if found is None:
        connection.execute(
            insert(schema.customers).values(
                id=new.id,
                name=new.name,
                email=new.email,
                metadata=dumped(new.metadata),
                created_at=new.created_at,
            )
        )
        return new
    if created_as(connection, found) != (new.name, new.email, new.metadata):
        raise taken("customer", new.id)
    return found


def created_as(connection: Connection, one: Customer) -> tuple[str, str, Mapping[str, str]]:
    """Name, e-mail address and metadata of a customer when it was created."""
    c = schema.customers.c
    found = connection.execute(select(c.created_as).where(c.id == one.id)).scalar_one()
    if found is None:
        return one.name, one.email, one.metadata
    name, email, metadata = json.loads(found)
    return name, email, metadata


def subscription(connection: Connection, id_: str) -> Subscription | None:
    """The subscription of this id."""
    row = _one(connection, schema.subscriptions, id_)
    return None if row is None else _subscription(row)


def subscriptions(
    connection: Connection, after: str, size: int, *, customer_id: str | None
) -> list[Subscription]:
    """A page, and one more if there is a next one."""
    table = schema.subscriptions
    query = select(table)
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    return [_subscription(row) for row in _page(connection, query, table, after, size)]


def create_subscription(connection: Connection, new: Subscription) -> Subscription:
    """Raises IdTaken, NotFound for the customer."""
    found = subscription(connection, new.id)
    if found is not None:
        same = (found.customer_id, found.name, found.metadata)
        if same != (new.customer_id, new.name, new.metadata):
            raise taken("subscription", new.id)
        return found
    require_customer(connection, new.customer_id)
    connection.execute(
        insert(schema.subscriptions).values(
            id=new.id,
            customer_id=new.customer_id,
            name=new.name,
            metadata=dumped(new.metadata),
            created_at=new.created_at,
        )
    )
    return new


def require_customer(connection: Connection, id_: str) -> Customer:
    """The customer of this id. Raises NotFound."""
    found = customer(connection, id_)
    if found is None:
        raise NotFound(f"no customer {echo(id_)}", param="customer_id")
    return found


def refuse_archived(one: Customer, what: str) -> None:
    """Raises InvalidField for a customer that is archived: it gets nothing new of this kind."""
    if one.archived_at is not None:
        raise InvalidField(
            f"customer {echo(one.id)} is archived: it gets no {what}", param="customer_id"
        )


_CURRENCY = select(schema.currencies).where(schema.currencies.c.code == bindparam("code"))


def currency(connection: Connection, code: str) -> Currency | None:
    """The currency of this code."""
    row = connection.execute(_CURRENCY, {"code": code}).one_or_none()
    return None if row is None else Currency(row.code, row.scale, row.name)


def currencies(connection: Connection, after: str, size: int) -> list[Currency]:
    """A page, and one more if there is a next one."""
    table = schema.currencies
    rows = connection.execute(
        select(table).where(table.c.code > after).order_by(table.c.code).limit(size + 1)
    )
    return [Currency(row.code, row.scale, row.name) for row in rows]


def create_currency(connection: Connection, new: Currency) -> Currency:
    """Raises IdTaken."""
    found = currency(connection, new.code)
    if found is None:
        connection.execute(
            insert(schema.currencies).values(code=new.code, scale=new.scale, name=new.name)
        )
        return new
    if found != new:
        raise taken("currency", new.code)
    return found


def require_currency(connection: Connection, code: str) -> Currency:
    """Raises NotFound."""
    found = currency(connection, code)
    if found is None:
        raise NotFound(f"no currency {echo(code)}", param="currency")
    return found


@cache
def _wallets(dialect: str) -> Select[*tuple[Any, ...]]:
    """Whether there are open holds, the currency's scale, and the columns of `wallet_value`."""
    holds = by_index(dialect, "holds", "holds_open")
    ours = literal_column("wallet_number") == schema.wallets.c.number
    has_holds = exists(select(1).select_from(holds).where(ours, column("ended").is_(None)))
    states = (schema.wallet_states.c[name] for name in STATE_NAMES)
    return (
        select(has_holds, schema.currencies.c.scale, *WALLET.of(schema.wallets.c), *states)
        .join_from(schema.wallets, schema.currencies)
        .join(schema.wallet_states)
    )


@cache
def _wallet(dialect: str) -> Select[*tuple[Any, ...]]:
    return _wallets(dialect).where(schema.wallets.c.id == bindparam("id"))


@cache
def _open_grants(dialect: str, *, one: bool) -> Select[*tuple[Any, ...]]:
    return (
        select(_OWNER, *map(column, GRANT.names))
        .select_from(by_index(dialect, "grants", "grants_open"))
        .where(_of_wallets(one=one), column("open", Boolean))
    )


@cache
def _open_holds(dialect: str, *, one: bool) -> Select[*tuple[Any, ...]]:
    return (
        select(_OWNER, *map(column, HOLD.names))
        .select_from(by_index(dialect, "holds", "holds_open"))
        .where(_of_wallets(one=one), column("ended").is_(None))
    )


_OWNER = column("wallet_number", BigInteger)


def _of_wallets(*, one: bool) -> ColumnElement[bool]:
    # One is what most reads ask for, and a list is spelled anew at each call.
    return (
        bindparam("wallet") == _OWNER if one else _OWNER.in_(bindparam("wallets", expanding=True))
    )


def _numbers(wallets: Sequence[int]) -> dict[str, Any]:
    return {"wallet": wallets[0]} if len(wallets) == 1 else {"wallets": wallets}


def _whole(connection: Connection, rows: Iterable[Row[*tuple[Any, ...]]]) -> list[Wallet]:
    """The wallets with their open grants, and with their open holds where there are any."""
    found: dict[int, Wallet] = {}
    holding = []
    columns: list[Any]
    for has_holds, scale, *columns in rows:
        one = wallet_value(columns, scale)
        found[one.number] = one
        if has_holds:
            holding.append(one.number)
    dialect = connection.dialect.name
    grants: dict[int, list[Grant]] = {number: [] for number in found}
    holds: dict[int, list[Hold]] = {number: [] for number in found}
    if found:
        query = _open_grants(dialect, one=len(found) == 1)
        for number, *columns in connection.execute(query, _numbers(list(found))):
            grants[number].append(GRANT.value(columns))
    if holding:
        query = _open_holds(dialect, one=len(holding) == 1)
        for number, *columns in connection.execute(query, _numbers(holding)):
            holds[number].append(HOLD.value(columns))
    for number, one in found.items():
        one.fill(grants[number], holds[number])
    return list(found.values())


def wallet(connection: Connection, id_: str) -> Wallet | None:
    """The wallet of this id with its open grants and holds."""
    return next(
        iter(_whole(connection, connection.execute(_wallet(connection.dialect.name), {"id": id_}))),
        None,
    )


_PLACE_OF = (
    select(schema.wallets.c.number, *PLACE)
    .join_from(schema.wallets, schema.currencies)
    .where(schema.wallets.c.id == bindparam("id"))
)


def wallet_place(connection: Connection, id_: str) -> tuple[int, WalletPlace] | None:
    """The number of the wallet of this id, and what it is, for a read that needs no more of it."""
    found = connection.execute(_PLACE_OF, {"id": id_}).one_or_none()
    return None if found is None else (found[0], WalletPlace(*found[1:]))


def wallets_numbered(connection: Connection, numbers: Sequence[int]) -> list[Wallet]:
    """The wallets of these numbers with their open grants and holds."""
    if not numbers:
        return []
    rows = connection.execute(
        _wallets(connection.dialect.name).where(schema.wallets.c.number.in_(numbers))
    ).all()
    return _whole(connection, rows)


def wallet_id(connection: Connection, number: int) -> str | None:
    """The id of the wallet of this number."""
    return connection.execute(_WALLET_ID, {"number": number}).scalar_one_or_none()


_WALLET_ID = select(schema.wallets.c.id).where(schema.wallets.c.number == bindparam("number"))


_w = schema.wallets.c
#: Of `wallets`: the customer's in a currency and mode, closed or not.
_IN_SUCCESSION = and_(
    tuple_(_w.customer_id, _w.currency)
    == tuple_(bindparam("customer_id", type_=Text), bindparam("currency", type_=Text)),
    _w.livemode == bindparam("livemode"),
)


def wallet_of(
    connection: Connection, customer_id: str, currency: str, livemode: bool
) -> Wallet | None:
    """The customer's wallet in this currency and mode that is not closed.

    With its open grants and holds.
    """
    values = {"customer_id": customer_id, "currency": currency, "livemode": livemode}
    rows = connection.execute(_open_wallet(connection.dialect.name), values)
    return next(iter(_whole(connection, rows)), None)


@cache
def _open_wallet(dialect: str) -> Select[*tuple[Any, ...]]:
    return _wallets(dialect).where(_IN_SUCCESSION, _w.closed_at.is_(None))


class SuccessiveWallet(NamedTuple):
    """One of a customer's wallets in a currency and mode, which follow one another."""

    number: int
    sequence: int  #: Of its last row.
    rows_before: int  #: Of all wallets before it.
    topup_amount: int
    usage_amount: int  #: <= 0
    refund_amount: int


_SUCCESSION = (
    select(
        *(_w.number, schema.wallet_states.c.sequence, _w.rows_before),
        *(schema.wallet_states.c[f"{what}_amount"] for what in ("topup", "usage", "refund")),
    )
    .join_from(schema.wallets, schema.wallet_states)
    .where(_IN_SUCCESSION)
    .order_by(_w.number)
)


def succession(
    connection: Connection, customer_id: str, currency: str, livemode: bool
) -> list[SuccessiveWallet]:
    """The customer's wallets in this currency and mode, oldest first.

    All but the last one are closed; that one may be.
    """
    values = {"customer_id": customer_id, "currency": currency, "livemode": livemode}
    return list(map(SuccessiveWallet._make, connection.execute(_SUCCESSION, values)))


def wallet_id_for_key(
    connection: Connection, customer_id: str, currency: str, livemode: bool, key: str
) -> str | None:
    """The id of the customer's wallet in this currency and mode that a write goes to.

    That is the one that is not closed. But what a closed one was asked for under this idempotency
    key was done there, and is not done again.
    """
    w, p = schema.wallets.c, schema.postings.c
    # A change of that wallet's own terms was another intent.
    of_key = and_(
        p.wallet_number == w.number,
        p.idempotency_key == key,
        p.operation.not_in(list(CHANGE_NAMES)),
    )
    is_there = p.number.is_not(None)
    query = (
        select(w.id)
        .select_from(schema.wallets.outerjoin(schema.postings, of_key))
        .where(_IN_SUCCESSION, or_(w.closed_at.is_(None), is_there))
        .order_by(is_there.desc(), w.number.desc())
        .limit(1)
    )
    values = {"customer_id": customer_id, "currency": currency, "livemode": livemode}
    return connection.execute(query, values).scalar_one_or_none()


def wallet_for(
    connection: Connection,
    customer_id: str,
    currency: str,
    livemode: bool,
    *,
    new_id: str,
    now: int,
) -> str:
    """The id of the customer's wallet that is not closed, made under `new_id` if there is none.

    Raises NotFound, OutOfRange.
    """
    found = wallet_of(connection, customer_id, currency, livemode)
    if found is None:
        found = create_wallet(
            connection,
            id_=None,
            new_id=new_id,
            customer_id=customer_id,
            currency=currency,
            livemode=livemode,
            overdraft_limit=0,
            metadata={},
            now=now,
        )
    return found.id


def wallets(
    connection: Connection,
    after: str,
    size: int,
    *,
    livemode: bool | None,
    customer_id: str | None,
    currency: str | None,
    status: Status | None,
    not_closed: bool = False,
) -> list[Wallet]:
    """A page, and one more if there is a next one."""
    table = schema.wallets
    query = _wallets(connection.dialect.name)
    if not_closed:
        query = query.where(table.c.closed_at.is_(None))
    if livemode is not None:
        query = query.where(table.c.livemode == livemode)
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    if currency is not None:
        query = query.where(table.c.currency == currency)
    if status is not None:
        query = query.where(schema.wallet_states.c.status == status.value)
    return _whole(connection, _page(connection, query, table, after, size))


def scale(connection: Connection, code: str) -> int:
    """Digits after the point of a currency. Raises NotFound."""
    return require_currency(connection, code).scale


def create_wallet(
    connection: Connection,
    *,
    id_: str | None,
    new_id: str,
    customer_id: str,
    currency: str,
    livemode: bool,
    overdraft_limit: int,
    metadata: dict[str, str],
    now: int,
) -> Wallet:
    """The wallet, made under `id_` or else `new_id` unless it is there.

    The existing wallet is the one of this id, closed or not, or else the one of this customer,
    currency and mode that is not closed. Raises IdTaken, NotFound, OutOfRange.
    """
    owner = require_customer(connection, customer_id)
    require_currency(connection, currency)
    found = None if id_ is None else wallet(connection, id_)
    if found is None:
        found = wallet_of(connection, customer_id, currency, livemode)
    if found is None:
        refuse_archived(owner, "new wallet")
        before = succession(connection, customer_id, currency, livemode)
        if len(before) >= SUCCESSIVE_MAX:
            raise OutOfRange(
                f"a customer has at most {SUCCESSIVE_MAX} wallets of a currency and mode",
                param="customer_id",
            )
        number = connection.execute(
            insert(schema.wallets)
            .values(
                id=id_ or new_id,
                customer_id=customer_id,
                currency=currency,
                livemode=livemode,
                created_at=now,
                rows_before=before[-1].rows_before + before[-1].sequence if before else 0,
            )
            .returning(schema.wallets.c.number)
        ).scalar_one()
        connection.execute(
            insert(schema.wallet_states).values(
                wallet_number=number,
                status=Status.ACTIVE.value,
                overdraft_limit=overdraft_limit,
                metadata=dumped(metadata),
                updated_at=now,
            )
        )
        found = wallet(connection, id_ or new_id)
        assert found is not None
        return found
    same = (found.customer_id, found.currency, found.livemode, found.overdraft_limit)
    asked = (customer_id, currency, livemode, overdraft_limit)
    if id_ not in (None, found.id) or same != asked or found.metadata != metadata:
        raise taken("wallet", found.id)
    return found


_KEY_BY_HASH = select(schema.api_keys).where(schema.api_keys.c.secret_hash == bindparam("hash"))


def key_by_hash(connection: Connection, secret_hash: bytes) -> tuple[ApiKey, bytes] | None:
    """The API key whose secret has this hash, with the stored hash."""
    row = connection.execute(_KEY_BY_HASH, {"hash": secret_hash}).one_or_none()
    return None if row is None else (_api_key(row), row.secret_hash)


def api_key(connection: Connection, id_: str) -> ApiKey | None:
    """The API key of this id."""
    row = _one(connection, schema.api_keys, id_)
    return None if row is None else _api_key(row)


def api_keys(
    connection: Connection,
    after: str,
    size: int,
    *,
    now: int,
    customer_id: str | None = None,
    livemode: bool | None = None,
) -> list[ApiKey]:
    """A page, and one more if there is a next one. Sessions that have ended are left out."""
    table = schema.api_keys
    is_over = or_(table.c.revoked_at.is_not(None), table.c.expires_at <= now)
    query = select(table).where(not_(and_(table.c.is_session, is_over)))
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    if livemode is not None:
        query = query.where(table.c.livemode == livemode)
    return [_api_key(row) for row in _page(connection, query, table, after, size)]


def api_keys_of(
    connection: Connection, customer_id: str, wanted: Collection[str]
) -> dict[str, ApiKey]:
    """The customer's keys among these labels, by id."""
    return {key.id: key for key in keys_of(connection, customer_id) if key.id in wanted}


def keys_of(connection: Connection, customer_id: str) -> list[ApiKey]:
    """All of the customer's keys, of both modes, those revoked and expired too."""
    table = schema.api_keys
    rows = connection.execute(select(table).where(table.c.customer_id == customer_id))
    return [_api_key(row) for row in rows]


def create_api_key(
    connection: Connection,
    *,
    id_: str,
    secret_hash: bytes,
    name: str,
    scope: Scope,
    customer_id: str | None,
    livemode: bool,
    mask: str,
    expires_at: int | None,
    now: int,
    is_session: bool = False,
) -> ApiKey:
    """A new key. Raises NotFound for the customer, InvalidField for an archived one."""
    if customer_id is not None:
        refuse_archived(require_customer(connection, customer_id), "new API key")
    connection.execute(
        insert(schema.api_keys).values(
            id=id_,
            secret_hash=secret_hash,
            name=name,
            scope=scope.value,
            customer_id=customer_id,
            livemode=livemode,
            mask=mask,
            created_at=now,
            expires_at=expires_at,
            is_session=is_session,
        )
    )
    made = api_key(connection, id_)
    assert made is not None
    return made


def revoke_api_key(
    connection: Connection, id_: str, *, now: int, livemode: bool | None = None
) -> ApiKey | None:
    """The key, revoked now or earlier; None if there is none of this id and mode."""
    found = api_key(connection, id_)
    if found is None or livemode not in (None, found.livemode):
        return None
    if found.revoked_at is None:
        table = schema.api_keys
        connection.execute(update(table).where(table.c.id == id_).values(revoked_at=now))
        found = replace(found, revoked_at=now)
    return found


def end_api_key(connection: Connection, found: ApiKey, at: int) -> ApiKey:
    """The key, which ends by itself then, or before if it did."""
    ends = at if found.expires_at is None else min(at, found.expires_at)
    table = schema.api_keys
    connection.execute(update(table).where(table.c.id == found.id).values(expires_at=ends))
    return replace(found, expires_at=ends)


#: A use is written down if the last one that is written is as old as this.
USE_MS = clock.HOUR
_k = schema.api_keys.c
_USED = (
    update(schema.api_keys)
    .where(
        _k.number == bindparam("its_number"),
        or_(_k.last_used_at.is_(None), _k.last_used_at <= bindparam("before", type_=BigInteger)),
    )
    .values(last_used_at=bindparam("at"))
)


def write_uses(connection: Connection, uses: Mapping[int, int]) -> None:
    """Write down when keys, by their numbers, were used; others may have done so meanwhile."""
    values = [
        {"its_number": one, "at": at, "before": at - USE_MS} for one, at in sorted(uses.items())
    ]
    connection.execute(_USED, values)
