"""How the model's values lie in the columns of their tables.

Which column keeps which field, and in which form, is found out once, at import, from the class and
from schema.py. Writers and reads share it, so each table is written and read in one way.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate, chain, takewhile
from operator import attrgetter, itemgetter
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from sqlalchemy import ColumnElement, Table
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from creditledger.domain.model import (
    Dimension,
    Grant,
    GrantScope,
    GrantTerms,
    Hold,
    Kind,
    MeterEvent,
    Posting,
    Row,
    SpendLimit,
    Wallet,
    Word,
)
from creditledger.domain.overdraft import OverdraftDraw, Payer
from creditledger.store import schema, terms
from creditledger.store.write.batch import (
    CreditedReceipt,
    DroppedLimit,
    GrantPart,
    GrantRepayment,
    GrantRevision,
    Revision,
)

T = TypeVar("T")
V = TypeVar("V")

# --- forms ----------------------------------------------------------------------------------------

_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode
#: `json.loads` also looks for blanks around the value, which takes longer than most values do.
_decode = json.JSONDecoder().raw_decode


def dump(value: Mapping[str, object] | tuple[int, ...]) -> str | None:
    """Compact JSON with sorted keys, or None for nothing: how small structures are kept."""
    if not value:
        return None
    return _encode(value)


def load(text: str | None, nothing: T) -> T:
    """What `dump` wrote."""
    if text is None:
        return nothing
    value: T = _decode(text)[0]
    return value


class _Form(NamedTuple):
    """How the values of a type are kept in a column; None: as they are."""

    kept: Callable[[Any], object] | None
    read: Callable[[Any], Any] | None


def _integers(value: tuple[int, ...]) -> str | None:
    # What `dump` writes, in a third of the time: most consumptions have quantities.
    return f"[{','.join(map(str, value))}]" if value else None


def _pairs(parts: Mapping[int, int]) -> str:
    return json.dumps(list(parts.items()), separators=(",", ":"))


def _scope(scope: GrantScope | None) -> str | None:
    if scope is None:
        return None
    return dump({name: found for name, found in scope._asdict().items() if found})


def _read_scope(text: str | None) -> GrantScope | None:
    if text is None:
        return None
    return GrantScope(**{name: tuple(found) for name, found in _decode(text)[0].items()})


def _word(kind: type[Word]) -> _Form:
    # A dictionary: to ask the list of words costs more than the rest of a value.
    words: dict[int | None, Word | None] = {word.value: word for word in kind}
    words[None] = None
    return _Form(lambda word: None if word is None else int(word), words.__getitem__)


_AS_IT_IS = _Form(None, None)
#: By type, and whether the column may be NULL, which stands for nothing.
_FORMS: Mapping[tuple[object, bool], _Form] = {
    # SQLite knows no booleans.
    (bool, False): _Form(None, bool),
    (tuple[int, ...], True): _Form(_integers, lambda text: tuple(load(text, ()))),
    (tuple[int, ...], False): _Form(json.dumps, lambda text: tuple(_decode(text)[0])),
    (Mapping[str, str], True): _Form(dump, lambda text: load(text, {})),
    (Mapping[str, str], False): _Form(
        lambda words: json.dumps(dict(words)), lambda text: _decode(text)[0]
    ),
    (Mapping[str, object], True): _Form(dump, lambda text: load(text, {})),
    (dict[int, int], False): _Form(_pairs, lambda text: dict(_decode(text)[0])),
    (GrantScope, True): _Form(_scope, _read_scope),
}


def _form(hint: object, *, nullable: bool) -> _Form:
    if get_origin(hint) in (UnionType, Union):
        (hint,) = [one for one in get_args(hint) if one is not type(None)]
    if hint in (int, str):
        return _AS_IT_IS
    if isinstance(hint, type) and issubclass(hint, Word):
        return _word(hint)
    return _FORMS[hint, nullable]


# --- columns --------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """A field that is stored."""

    path: str  #: With dots where it is the field of a field.
    form: _Form


def _names(of: type) -> list[str]:
    return (
        [one.name for one in fields(of)] if is_dataclass(of) else list(getattr(of, "_fields", ()))
    )


def _stored(of: type, table: Table, before: str = "") -> dict[str, _Field]:
    """By column. A column that a value and its part both name is the value's."""
    found: dict[str, _Field] = {}
    parts = {}
    hints = get_type_hints(of)
    for name in _names(of):
        places = (f"{before}_{name}", name, f"{name}_number", f"{name}_sequence")
        column = next((place for place in places if place in table.c), None)
        if isinstance(hints[name], type) and hints[name] is not GrantScope and _names(hints[name]):
            parts[name] = hints[name]
        elif column is not None:
            found[column] = _Field(
                name, _form(hints[name], nullable=bool(table.c[column].nullable))
            )
    for name, part in parts.items():
        for column, field in _stored(part, table, name).items():
            found.setdefault(column, _Field(f"{name}.{field.path}", field.form))
    return found


class Columns(Generic[V]):
    """The columns in which a table keeps the values of a class, in the order of its fields.

    A field lies in the column of its name. A field that names another value lies in its
    `…_number` or `…_sequence`. A field that is a value of several fields lies in the columns of
    those. A field without a column is not stored.
    """

    def __init__(self, of: type[V], table: Table, only: Iterable[str] | None = None) -> None:
        """`only`: these columns, in this order."""
        stored = _stored(of, table)
        self._of, self._table = of, table
        self.names = list(stored) if only is None else list(only)
        found = [stored[name] for name in self.names]
        self.fields = [field.path for field in found]
        forms = list(enumerate(field.form for field in found))
        self._kept = [(place, form.kept) for place, form in forms if form.kept is not None]
        self.read = [(place, form.read) for place, form in forms if form.read is not None]
        self._get: Callable[[V], tuple[object, ...]] = attrgetter(*self.fields)
        assert len(self.names) > 1, "attrgetter answers no tuple of one"

    def only(self, *names: str) -> "Columns[V]":
        """These columns of them, in this order."""
        return Columns(self._of, self._table, names)

    def without(self, *names: str) -> "Columns[V]":
        """All the others of them."""
        return Columns(self._of, self._table, [n for n in self.names if n not in names])

    def sql(self, alias: str) -> str:
        """The columns in a SELECT, of a table that it calls so."""
        return ", ".join(f"{alias}.{name}" for name in self.names)

    def of(self, table: ReadOnlyColumnCollection[str, Any]) -> list[ColumnElement[Any]]:
        """The columns for SQLAlchemy, of the table's own or an alias's `c`."""
        return [table[name] for name in self.names]

    def stored(self, value: V) -> tuple[object, ...]:
        """What the columns keep of a value."""
        columns = self._get(value)
        if not self._kept:
            return columns
        kept = list(columns)
        for place, form in self._kept:
            kept[place] = form(kept[place])
        return tuple(kept)

    def value(self, columns: Iterable[Any]) -> V:
        """The value that the columns keep: the first fields of its class are those stored."""
        return self._of(*self._values(columns))

    def by_field(self, columns: Iterable[Any]) -> dict[str, Any]:
        """The same as fields by name, for a value that lies in several tables."""
        return dict(zip(self.fields, self._values(columns), strict=True))

    def _values(self, columns: Iterable[Any]) -> list[Any]:
        values = list(columns)
        for place, form in self.read:
            values[place] = form(values[place])
        return values


class Parts:
    """The columns of a SELECT, group after group, and its rows by these groups."""

    def __init__(self, *parts: Sequence[ColumnElement[Any]]) -> None:
        self.columns = list(chain.from_iterable(parts))
        ends = list(accumulate(map(len, parts)))
        self._slices = [slice(end - len(part), end) for part, end in zip(parts, ends, strict=True)]

    def split(self, row: Iterable[Any]) -> list[tuple[Any, ...]]:
        """What the row has of each group."""
        columns = tuple(row)
        return [columns[part] for part in self._slices]


# --- the tables -----------------------------------------------------------------------------------

GRANT = Columns(Grant, schema.grants)
#: What a revision changes of a grant.
GRANT_TERMS = GRANT.only(*GrantTerms._fields, "revision")
GRANT_REVISION = Columns(GrantRevision, schema.grant_revisions)
GRANT_REPAYMENT = Columns(GrantRepayment, schema.grant_repayments)
GRANT_PART = Columns(GrantPart, schema.grant_parts)
RECEIPT = Columns(CreditedReceipt, schema.receipts)
OVERDRAFT = Columns(OverdraftDraw, schema.overdraft_draws)
PAYER = Columns(Payer, schema.overdraft_payers)
HOLD = Columns(Hold, schema.holds)
HOLD_REVISION = Columns(Revision, schema.hold_revisions)
EVENT = Columns(MeterEvent, schema.meter_events)
LIMIT = Columns(SpendLimit, schema.spend_limits)
DROPPED_LIMIT = Columns(DroppedLimit, schema.dropped_limits)
DIMENSION = Columns(Dimension, schema.dimensions)
ROW = Columns(Row, schema.transactions)

#: What never changes of a wallet, and what does.
WALLET = Columns(Wallet, schema.wallets)
STATE = Columns(Wallet, schema.wallet_states)
#: What changes of a wallet by a command about it.
WALLET_TERMS = STATE.only("overdraft_limit", "status", "metadata", "updated_at")
#: What changes as it is overdrawn or pays back.
WALLET_OVERDRAFT = STATE.only("overdrawn", "repaid_to")
#: What changes by every posting, and its rows by kind, of which usage is counted beside.
_MOVED = STATE.without(*WALLET_TERMS.names, *WALLET_OVERDRAFT.names)
_COUNTED = [int(kind) for kind in Kind if kind is not Kind.USAGE]
_COUNTS = [f"{Kind(number).word}_count" for number in _COUNTED]
_counts = itemgetter(*_COUNTED)
STATE_NAMES = [*STATE.names, *_COUNTS]
COUNTER_NAMES = [*_MOVED.names, *_COUNTS]

#: What changes of a grant as a part is added to it, and as it pays overdraft back.
GRANT_GROWN = GRANT.only("amount", "overdraft_paid")
GRANT_REPAID = GRANT.only("remaining", "repaid")
#: What changes of a hold, of a meter event and of a spend limit.
HOLD_CHANGED = HOLD.only("captured", "parts", "beyond", "deadline", "ended", "ended_at")
EVENT_CHANGED = EVENT.only("unpaid", "paid_at", "canceled_at", "return_below")
LIMIT_CHANGED = LIMIT.only("amount", "updated_at", "counted_from", "parts", "counted_until")

_POSTING = Columns(Posting, schema.postings)
_POSTING_TERMS = _POSTING.names.index("terms")
_UNLINKED = (None, None)
POSTING_NAMES = [*_POSTING.names, "linked_wallet", "linked_posting"]
#: And where its rows lie.
POSTING_INSERTED = [*POSTING_NAMES, "first_sequence", "row_count"]


#: Of wallets and their currencies, what a `WalletPlace` shows.
_wallets = schema.wallets.c
PLACE = (
    *(_wallets.id, _wallets.customer_id, _wallets.currency),
    *(schema.currencies.c.scale, _wallets.livemode),
)


#: The row of a wallet: its currency's scale, then the columns of WALLET and STATE_NAMES.
_ROW_OF_WALLET = ["scale", *WALLET.fields, *STATE.fields]
#: Those that are the first fields of the class, in its order, and those that come later.
_HEAD = list(takewhile(_ROW_OF_WALLET.__contains__, _names(Wallet)))
_head = itemgetter(*map(_ROW_OF_WALLET.index, _HEAD))
_TAIL = [(n, name) for n, name in enumerate(_ROW_OF_WALLET) if name not in _HEAD]
_READ = [
    *((1 + n, read) for n, read in WALLET.read),
    *((1 + len(WALLET.fields) + n, read) for n, read in STATE.read),
]


def wallet_value(columns: Iterable[Any], scale: int) -> Wallet:
    """A wallet, still without grants, of the columns of WALLET and STATE_NAMES."""
    values = [scale, *columns]
    for place, read in _READ:
        values[place] = read(values[place])
    wallet = Wallet(*_head(values))
    for place, name in _TAIL:
        setattr(wallet, name, values[place])
    for kind, count in zip(_COUNTED, values[len(_ROW_OF_WALLET) :], strict=True):
        wallet.kind_counts[kind] = count
    return wallet


#: Of each term its field, its place among STATE_NAMES, and how it is read.
_TERMS = [
    (name, STATE.names.index(name), dict(STATE.read).get(STATE.names.index(name)))
    for name in WALLET_TERMS.names
]


def set_terms(wallet: Wallet, columns: Sequence[Any]) -> None:
    """Take over the terms of a wallet, of the columns STATE_NAMES."""
    for name, place, read in _TERMS:
        value = columns[place]
        setattr(wallet, name, value if read is None else read(value))


def counters(wallet: Wallet) -> tuple[object, ...]:
    """The columns COUNTER_NAMES."""
    return (*_MOVED.stored(wallet), *_counts(wallet.kind_counts))


def posting_value(columns: Iterable[Any]) -> Posting:
    """A posting, still without rows, of the columns POSTING_NAMES."""
    *own, wallet, number = columns
    posting = _POSTING.value(own)
    posting.linked = None if wallet is None else (wallet, number)
    posting.terms = terms.by_attribute(posting.operation, posting.terms)
    return posting


def posting_columns(posting: Posting) -> tuple[object, ...]:
    """The columns POSTING_INSERTED."""
    rows = posting.rows
    first = rows[0].sequence if rows else 0
    own = _POSTING.stored(posting)
    if posting.terms:
        kept = dump(terms.by_stored_name(posting.operation, posting.terms))
        own = (*own[:_POSTING_TERMS], kept, *own[_POSTING_TERMS + 1 :])
    return (*own, *(posting.linked or _UNLINKED), first, len(rows))


def dropped_value(columns: Sequence[Any]) -> DroppedLimit:
    """A spend limit that is no more, of its columns; what it counted is not kept."""
    shown = DROPPED_LIMIT.by_field(columns)
    limit = {name[6:]: shown.pop(name) for name in list(shown) if name.startswith("limit.")}
    last = SpendLimit(**limit, since=0, counted_from=0, parts={}, counted_until=None)
    return DroppedLimit(last, **shown)


def digest(dimension: Dimension) -> str:
    """What a dimension is found by: 128 bits, so that its index stays narrow."""
    text = json.dumps(dimension, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
