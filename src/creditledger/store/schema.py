"""The tables, for SQLAlchemy's Core: queries, migrations and the test that both agree.

Amounts, counters and times (milliseconds) are 64-bit integers; words are their model numbers.
Rows, postings and dimensions are append-only; triggers (in the migration) refuse their change.

The rows are keyed by what each database does best, the other tables are the same. SQLite has one
writer, so it numbers rows in commit order and appends; on PostgreSQL every key of a large table
starts with the wallet, so that the tables can be spread by it, and a row says which database
transaction wrote it. Queries name columns only, and the few that are not shared in dialects.py.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    UniqueConstraint,
    false,
    func,
    text,
    true,
)
from sqlalchemy import Text as _Text
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import UserDefinedType

from creditledger.domain.commands import SETTLE

CONVENTION = {
    "pk": "%(table_name)s_pk",
    "uq": "%(table_name)s_%(column_0_N_name)s_unique",
    "fk": "%(table_name)s_%(column_0_N_name)s_fk",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "ix": "%(table_name)s_%(column_0_N_name)s",
}
metadata = MetaData(naming_convention=CONVENTION)

#: SQLite makes a column the row's own number only if it is declared INTEGER.
Number = BigInteger().with_variant(Integer(), "sqlite")
#: Ordered by bytes and folded as ASCII on every database, whatever its locale.
Text = _Text().with_variant(_Text(collation="C"), "postgresql")


class Xid8(UserDefinedType[int]):
    """PostgreSQL's number of a transaction, never used again."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """As SQL spells it."""
        return "xid8"


currencies = Table(
    "currencies",
    metadata,
    Column("code", Text, primary_key=True),
    Column("scale", SmallInteger, nullable=False),
    Column("name", Text, nullable=False),
    CheckConstraint("scale BETWEEN 0 AND 9", name="scale"),
)

customers = Table(
    "customers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger),  # NULL: it was never changed.
    Column("archived_at", BigInteger),
    # What it was created as, as JSON, once that has changed: what a create is compared with.
    Column("created_as", Text),
)

meters = Table(
    "meters",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("event_name", Text, nullable=False, unique=True),
    Column("unit", Text, nullable=False),
    Column("currency", Text, ForeignKey("currencies.code")),
    Column("metadata", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("active", Boolean, nullable=False, server_default=true()),
    Column("description", Text),
    Column("updated_at", BigInteger),  # NULL: when it was made.
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("customer_id", Text, ForeignKey("customers.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("scope", SmallInteger, nullable=False),
    Column("customer_id", Text, ForeignKey("customers.id"), index=True),
    Column("livemode", Boolean, nullable=False),
    Column("mask", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    # A code opened it.
    Column("is_session", Boolean, nullable=False, server_default=false()),
    # Written at most once an hour.
    Column("last_used_at", BigInteger),
    CheckConstraint("scope BETWEEN 1 AND 3", name="scope"),
    CheckConstraint("(scope = 1) = (customer_id IS NOT NULL)", name="customer"),
)

#: Codes that open sessions. One that is used is gone.
session_codes = Table(
    "session_codes",
    metadata,
    Column("code_hash", LargeBinary, primary_key=True),
    Column("scope", SmallInteger, nullable=False),
    Column("customer_id", Text, ForeignKey("customers.id")),
    Column("livemode", Boolean, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    CheckConstraint("scope BETWEEN 1 AND 3", name="scope"),
    CheckConstraint("(scope = 1) = (customer_id IS NOT NULL)", name="customer"),
)

wallets = Table(
    "wallets",
    metadata,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("customer_id", Text, ForeignKey("customers.id"), nullable=False),
    Column("currency", Text, ForeignKey("currencies.code"), nullable=False),
    Column("livemode", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # From then on its grants pay overdraft back as they begin and end: 0, or when the ledger learnt
    # to, if the wallet is older than that.
    Column("repays_from", BigInteger, nullable=False, server_default=text("0")),
    # NULL: it is not closed. The status in wallet_states says the same.
    Column("closed_at", BigInteger),
    # Rows of the customer's earlier wallets of this currency and mode, all of them closed.
    Column("rows_before", BigInteger, nullable=False, server_default=text("0")),
)
_is_not_closed = text("closed_at IS NULL")
_SUCCESSION = (wallets.c.customer_id, wallets.c.currency, wallets.c.livemode)
#: Of a customer, currency and mode at most one wallet is not closed.
Index(
    "wallets_open",
    *_SUCCESSION,
    unique=True,
    sqlite_where=_is_not_closed,
    postgresql_where=_is_not_closed,
)
Index("wallets_succession", *_SUCCESSION, wallets.c.number)

#: What changes of a wallet, apart from what never does: this row is what writers lock.
wallet_states = Table(
    "wallet_states",
    metadata,
    Column(
        "wallet_number",
        Number,
        ForeignKey("wallets.number"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("status", SmallInteger, nullable=False),
    Column("overdraft_limit", BigInteger, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    # What follows is that of the last transaction, written with it.
    Column("sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("running_balance", BigInteger, nullable=False, server_default=text("0")),
    Column("overdraft_used", BigInteger, nullable=False, server_default=text("0")),
    Column("posted_at", BigInteger, nullable=False, server_default=text("0")),
    Column("moved_sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("usage_count", BigInteger, nullable=False, server_default=text("0")),
    Column("usage_amount", BigInteger, nullable=False, server_default=text("0")),
    Column("usage_quantity", BigInteger, nullable=False, server_default=text("0")),
    Column("unmetered_amount", BigInteger, nullable=False, server_default=text("0")),
    Column("topup_count", BigInteger, nullable=False, server_default=text("0")),
    Column("subscription_renew_count", BigInteger, nullable=False, server_default=text("0")),
    Column("admin_credit_count", BigInteger, nullable=False, server_default=text("0")),
    Column("admin_debit_count", BigInteger, nullable=False, server_default=text("0")),
    Column("refund_count", BigInteger, nullable=False, server_default=text("0")),
    Column("expiry_count", BigInteger, nullable=False, server_default=text("0")),
    # Moved on by every posting, with or without rows: who knew the wallet sees that it has moved.
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    # Σ amounts of these kinds: what was ever paid in, and ever given back.
    Column("topup_amount", BigInteger, nullable=False, server_default=text("0")),
    Column("refund_amount", BigInteger, nullable=False, server_default=text("0")),
    Column("transfer_out_count", BigInteger, nullable=False, server_default=text("0")),
    Column("transfer_in_count", BigInteger, nullable=False, server_default=text("0")),
    # Σ unpaid of its meter events: 0 tells that there are none to read.
    Column("unpaid_amount", BigInteger, nullable=False, server_default=text("0")),
    # How many spend limits there ever were: the number of the last one.
    Column("limits_made", BigInteger, nullable=False, server_default=text("0")),
    # Σ of all amounts above 0: bounds every other sum over the wallet's rows.
    Column("credited_amount", BigInteger, nullable=False, server_default=text("0")),
    # The number of its last posting.
    Column("last_posting", BigInteger, nullable=False, server_default=text("0")),
    # All that was ever drawn beyond the grants, and up to where of that it is paid back: written
    # only by postings that overdraw or pay back.
    Column("overdrawn", BigInteger, nullable=False, server_default=text("0")),
    Column("repaid_to", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("status BETWEEN 1 AND 3", name="status"),
    CheckConstraint("overdraft_limit >= 0", name="overdraft_limit"),
    CheckConstraint("overdraft_used >= 0", name="overdraft_used"),
    CheckConstraint(
        "sequence = usage_count + topup_count + subscription_renew_count + admin_credit_count"
        " + admin_debit_count + refund_count + expiry_count"
        " + transfer_out_count + transfer_in_count",
        name="counters",
    ),
)

dimensions = Table(
    "dimensions",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("type", SmallInteger, nullable=False),
    Column("meter_id", Text),
    Column("subscription_id", Text),
    Column("has_usage", Boolean, nullable=False),
    Column("api_key_id", Text, nullable=False),
    Column("product_id", Text, nullable=False),
    Column("product_name", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("billing_method", Integer, nullable=False),
    Column("base_prices", Text, nullable=False),
    Column("discount_prices", Text, nullable=False),
    Column("price_precision", Integer, nullable=False),
    PrimaryKeyConstraint("wallet_number", "number"),
    UniqueConstraint("wallet_number", "digest"),
    sqlite_with_rowid=False,
)

grants = Table(
    "grants",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("overdraft_paid", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    # Whether anything remains, beside `remaining`: so the index of those that have something left
    # changes only when one is used up, not with every draw.
    Column("open", Boolean, nullable=False),
    Column("category", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("name", Text),
    Column("effective_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    # What it pays for, as JSON: lists by name, none of them empty; NULL is everything.
    Column("scope", Text),
    Column("voided_at", BigInteger),
    # The number of the last of its revisions; 0 where its terms were never changed.
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    # The sum of its repayments: what of it paid overdraft back as it began or ended.
    Column("repaid", BigInteger, nullable=False, server_default=text("0")),
    # Promotional credit that came back after its grant had ended: it gets no new end once more.
    Column("returned", Boolean, nullable=False, server_default=false()),
    # What made it: a grant, an adjustment, or the ledger by itself for a refund or a transfer.
    Column("origin", SmallInteger, nullable=False, server_default=text("1")),
    # Of what the ledger made: digest of its metadata; NULL is none. Of older ones with metadata
    # that of nothing, so that nothing becomes a part of them.
    Column("words", Text),
    PrimaryKeyConstraint("wallet_number", "number"),
    CheckConstraint("amount > 0 AND amount <= 100000000000000000", name="amount"),
    CheckConstraint("remaining >= 0 AND remaining <= amount - overdraft_paid", name="remaining"),
    CheckConstraint("overdraft_paid >= 0", name="overdraft_paid"),
    CheckConstraint("open = (remaining > 0)", name="open"),
    CheckConstraint("category BETWEEN 1 AND 2", name="category"),
    CheckConstraint("priority BETWEEN 0 AND 100", name="priority"),
    CheckConstraint("expires_at IS NULL OR expires_at > effective_at", name="expires_at"),
    sqlite_with_rowid=False,
)
Index(
    "grants_open",
    grants.c.wallet_number,
    sqlite_where=text("open = 1"),
    postgresql_where=grants.c.open,
)
#: What has ended and is not written down: what the sweeper looks for, over all wallets.
Index(
    "grants_due",
    *(grants.c.expires_at, grants.c.wallet_number, grants.c.number),
    sqlite_where=text("open = 1 AND expires_at IS NOT NULL"),
    postgresql_where=text("open AND expires_at IS NOT NULL"),
)
#: The order of the list over all wallets; grants come in this order, so it grows at its end only.
Index("grants_created", grants.c.created_at, grants.c.wallet_number, grants.c.number)

#: What changes of a grant's terms made of them, number 1 and on; number 0 is what it was given as.
#: A grant whose terms were never changed has none. How a grant at a past moment is known.
grant_revisions = Table(
    "grant_revisions",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("grant_number", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # The API key that asked for it; of number 0 the grant's own posting knows.
    Column("changed_by", BigInteger),
    # Of the posting that voided it; what only changes terms is no posting.
    Column("posting_number", BigInteger),
    Column("name", Text),
    Column("priority", SmallInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("voided_at", BigInteger),
    Column("metadata", Text),
    PrimaryKeyConstraint("wallet_number", "grant_number", "number"),
    sqlite_with_rowid=False,
)

#: What grants paid back of overdraft as they began or ended; `start` is what the grant had repaid
#: before. No row says so: how a grant at a past moment is known. What a grant paid back as it was
#: given is its own `overdraft_paid`.
grant_repayments = Table(
    "grant_repayments",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("grant_number", BigInteger, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("repaid_at", BigInteger, nullable=False),
    # When it was written down: by the first posting on the wallet after `repaid_at`, or a sweep.
    Column("created_at", BigInteger, nullable=False),
    # The wallet's last row then.
    Column("sequence", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "grant_number", "start"),
    CheckConstraint("start >= 0 AND amount > 0", name="amount"),
    CheckConstraint("repaid_at <= created_at", name="repaid_at"),
    sqlite_with_rowid=False,
)
#: Rows that added a part to a grant that was there: its `amount` and `overdraft_paid` hold those of
#: all its parts. What the row of its own number gave is the first part, and has no line here.
grant_parts = Table(
    "grant_parts",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("grant_number", BigInteger, nullable=False),
    Column("overdraft_paid", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "sequence"),
    CheckConstraint("grant_number < sequence", name="grant_number"),
    CheckConstraint("overdraft_paid >= 0", name="overdraft_paid"),
    sqlite_with_rowid=False,
)
Index("grant_parts_grant", grant_parts.c.wallet_number, grant_parts.c.grant_number)

#: What rows drew beyond the grants, one behind the other on one line for each wallet: the places
#: [start, start + amount), of whose end refunds gave back `forgiven` before it was paid back.
overdraft_draws = Table(
    "overdraft_draws",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("forgiven", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "sequence"),
    CheckConstraint("start >= 0 AND amount > 0", name="amount"),
    CheckConstraint("forgiven >= 0 AND forgiven <= amount", name="forgiven"),
    sqlite_with_rowid=False,
)
_is_forgiven = text("forgiven > 0")
Index(
    "overdraft_draws_forgiven",
    *(overdraft_draws.c.wallet_number, overdraft_draws.c.start),
    sqlite_where=_is_forgiven,
    postgresql_where=_is_forgiven,
)

#: Which grant paid which places of that line back, but for what was forgiven in between. A draw's
#: payers are the stretches that overlap it, so a repayment is one row however many draws it pays.
overdraft_payers = Table(
    "overdraft_payers",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("grant_number", BigInteger, nullable=False),
    # The row that gave the credit; NULL: the grant paid as it began or ended.
    Column("row_sequence", BigInteger),
    PrimaryKeyConstraint("wallet_number", "start"),
    CheckConstraint("start >= 0 AND amount > 0 AND until - start >= amount", name="amount"),
    sqlite_with_rowid=False,
)

#: Rows of refunds that give back promotional credit which had paid an overdraft back. In bills they
#: are paid, as the rows are that they reverse.
overdraft_returns = Table(
    "overdraft_returns",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "sequence"),
    sqlite_with_rowid=False,
)

#: Credit set aside, as it is now; by number of the posting that made it. `parts` is JSON: pairs of
#: a grant's number and what is set aside of it, in the order it is drawn.
holds = Table(
    "holds",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("captured", BigInteger, nullable=False),
    Column("parts", Text, nullable=False),
    Column("beyond", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("dimension_number", BigInteger, nullable=False),
    Column("quantities", Text),
    Column("meter_event_id", Text),
    Column("ended", SmallInteger),
    Column("ended_at", BigInteger),
    PrimaryKeyConstraint("wallet_number", "number"),
    CheckConstraint("amount > 0 AND captured >= 0 AND beyond >= 0", name="amount"),
    CheckConstraint("ended IS NULL OR ended BETWEEN 1 AND 3", name="ended"),
    CheckConstraint("(ended IS NULL) = (ended_at IS NULL)", name="ended_at"),
    CheckConstraint("ended IS NULL OR (parts = '[]' AND beyond = 0)", name="parts"),
    CheckConstraint("deadline > created_at", name="deadline"),
    sqlite_with_rowid=False,
)
_is_open = holds.c.ended.is_(None)
Index("holds_open", holds.c.wallet_number, sqlite_where=_is_open, postgresql_where=_is_open)
Index(
    "holds_due",
    *(holds.c.deadline, holds.c.wallet_number, holds.c.number),
    sqlite_where=_is_open,
    postgresql_where=_is_open,
)

#: The same of those that are written down as over by their deadline: what webhooks tell of.
_has_expired = text("ended = 3")
Index(
    "holds_expired",
    *(holds.c.deadline, holds.c.wallet_number, holds.c.number),
    sqlite_where=_has_expired,
    postgresql_where=_has_expired,
)

#: What each posting about a hold left of it: how a balance at a past moment is known.
hold_revisions = Table(
    "hold_revisions",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("hold_number", BigInteger, nullable=False),
    Column("posting_number", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("captured", BigInteger, nullable=False),
    Column("parts", Text, nullable=False),
    Column("beyond", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("ended", SmallInteger),
    PrimaryKeyConstraint("wallet_number", "hold_number", "posting_number"),
    sqlite_with_rowid=False,
)
Index("hold_revisions_created", hold_revisions.c.wallet_number, hold_revisions.c.created_at)

#: What meters counted, and what of it is still unpaid; by number of the posting that reported it.
meter_events = Table(
    "meter_events",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("identifier", Text, nullable=False),
    Column("meter_id", Text, ForeignKey("meters.id"), nullable=False),
    Column("subscription_id", Text),
    Column("value", BigInteger, nullable=False),
    Column("unpaid", BigInteger, nullable=False),
    Column("happened_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("paid_at", BigInteger),
    Column("canceled_at", BigInteger),
    # If it is canceled: what rows below this sequence drew for it is still to be returned.
    Column("return_below", BigInteger),
    PrimaryKeyConstraint("wallet_number", "number"),
    UniqueConstraint("wallet_number", "identifier"),
    CheckConstraint("value > 0 AND unpaid >= 0 AND unpaid <= value", name="unpaid"),
    CheckConstraint("(unpaid = 0) = (paid_at IS NOT NULL)", name="paid_at"),
    sqlite_with_rowid=False,
)
_is_unpaid = text("unpaid > 0")
Index(
    "meter_events_unpaid",
    meter_events.c.wallet_number,
    sqlite_where=_is_unpaid,
    postgresql_where=_is_unpaid,
)
#: Canceled ones of which something is still to be returned: seldom any.
_is_returned = meter_events.c.return_below.is_not(None)
Index(
    "meter_events_returned",
    *(meter_events.c.wallet_number, meter_events.c.canceled_at, meter_events.c.number),
    sqlite_where=_is_returned,
    postgresql_where=_is_returned,
)
#: Lists and statistics over all wallets: in the order they came, and of one meter by when it was.
Index("meter_events_created", meter_events.c.created_at)
Index("meter_events_meter", meter_events.c.meter_id, meter_events.c.happened_at)

#: How much may be spent in a period, and what was. `parts` is JSON: pairs of where a part of the
#: period begins and what was spent in it less what was refunded of that.
spend_limits = Table(
    "spend_limits",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("api_key_id", Text),
    Column("period", SmallInteger, nullable=False),
    Column("time_zone", Text),
    Column("hours", SmallInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("counted_from", BigInteger, nullable=False),
    Column("parts", Text, nullable=False),
    # Where the period that began at `counted_from` ends, as it was when it began: of a calendar's
    # periods only.
    Column("counted_until", BigInteger),
    PrimaryKeyConstraint("wallet_number", "number"),
    CheckConstraint("amount >= 0 AND amount <= 100000000000000000", name="amount"),
    CheckConstraint("period BETWEEN 1 AND 5", name="period"),
    CheckConstraint("(period <= 3) = (time_zone IS NOT NULL)", name="time_zone"),
    CheckConstraint("(period = 4) = (hours IS NOT NULL)", name="hours"),
    CheckConstraint("hours IS NULL OR hours BETWEEN 1 AND 744", name="hours_range"),
    sqlite_with_rowid=False,
)


def _sums() -> list[Column[int]]:
    """Most of what folds add up; the number of postings came later."""
    names = (
        *("count", "amount", "voucher_amount", *(f"quantity_{i}" for i in range(6))),
        *("created_count", "created_amount", "created_quantity"),
    )
    return [Column(name, BigInteger, nullable=False) for name in names]


#: Sums by wallet, quarter of an hour (since 1970, UTC) and dimension, of the rows up to the
#: wallet's fold end. The first group adds up rows whose effective time lies in the quarter, the
#: `created_` group those written in it. They are derived: rows and fold ends alone make them.
folds = Table(
    "folds",
    metadata,
    Column("wallet_number", BigInteger, nullable=False),
    Column("quarter", BigInteger, nullable=False),
    Column("dimension_number", BigInteger, nullable=False),
    *_sums(),
    # Of the first group: a posting counts once, with its first row, as its quantities do.
    Column("posting_count", BigInteger, nullable=False, server_default=text("0")),
    # SQLite cannot rename a constraint, so both have the names that they were made with.
    ForeignKeyConstraint(["wallet_number"], ["wallets.number"], name="rollups_wallet_number_fk"),
    PrimaryKeyConstraint("wallet_number", "quarter", "dimension_number", name="rollups_pk"),
    sqlite_with_rowid=False,
)
#: The same by day (UTC), of wallets with many rows: what their folds of each day add up to.
day_folds = Table(
    "day_folds",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("dimension_number", BigInteger, nullable=False),
    *_sums(),
    Column("posting_count", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "day", "dimension_number"),
    sqlite_with_rowid=False,
)
#: How far each wallet is folded: its rows up to this sequence are in `folds`, and in `day_folds` if
#: it has days. Without a row: none.
fold_ends = Table(
    "fold_ends",
    metadata,
    Column(
        "wallet_number",
        Number,
        ForeignKey("wallets.number"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("sequence", BigInteger, nullable=False),
    Column("has_days", Boolean, nullable=False),
    CheckConstraint("sequence >= 0", name="sequence"),
)

# A paid grant of kind topup or subscription_renew that names a receipt has a row here until it is
# voided. The row says nothing that the grant's posting does not say; its key keeps two writers from
# crediting a receipt twice.
receipts = Table(
    "receipts",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("grant_number", BigInteger, nullable=False),
    # "" where none was given.
    Column("provider", Text, nullable=False),
    Column("receipt_id", Text, nullable=False),
    # 0 of the first grant that credits it; of one that repeats it, the grant's number.
    Column("copy", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "grant_number"),
    UniqueConstraint(
        "wallet_number", "provider", "receipt_id", "copy", name="receipts_receipt_unique"
    ),
    CheckConstraint("copy = 0 OR copy = grant_number", name="copy"),
    sqlite_with_rowid=False,
)

# Deliveries begin with the wallet that they are about, so they are spread with it; no posting reads
# or writes any of what follows for webhooks.
webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("customer_id", Text, ForeignKey("customers.id"), index=True),
    Column("livemode", Boolean, nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text),
    # JSON: numbers of event types; triples of currency, amount and percentage.
    Column("events", Text, nullable=False),
    Column("thresholds", Text, nullable=False),
    Column("expiring_days", SmallInteger, nullable=False),
    Column("enabled", Boolean, nullable=False),
    # As they are, for the server has to sign with them; "" of an endpoint that is no more.
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_until", BigInteger),
    Column("since", BigInteger, nullable=False),
    Column("begins", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    # How it was shown last, as JSON without a secret; NULL of one deleted by an older version.
    Column("deleted_as", Text),
    CheckConstraint("expiring_days BETWEEN 1 AND 90", name="expiring_days"),
    CheckConstraint("(previous_secret IS NULL) = (previous_until IS NULL)", name="previous_until"),
    CheckConstraint("deleted_at IS NULL OR (NOT enabled AND secret = '')", name="deleted_at"),
)
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    # Counted over all of them.
    Column("number", BigInteger, nullable=False),
    Column("endpoint_number", BigInteger, ForeignKey("webhook_endpoints.number"), nullable=False),
    Column("type", SmallInteger, nullable=False),
    # Sequence of a row, number of a grant or of a hold.
    Column("subject", BigInteger, nullable=False),
    Column("variant", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # From when on its age counts: what it tells of may be to come.
    Column("kept_from", BigInteger, nullable=False),
    # Of one that is being sent: when another server may.
    Column("next_attempt_at", BigInteger, nullable=False),
    Column("give_up_at", BigInteger, nullable=False),
    Column("last_attempt_at", BigInteger),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    Column("delivered_at", BigInteger),
    PrimaryKeyConstraint("wallet_number", "number"),
    UniqueConstraint(
        *("wallet_number", "endpoint_number", "type", "subject", "variant"),
        name="webhook_deliveries_once",
    ),
    CheckConstraint("type BETWEEN 1 AND 6", name="type"),
    CheckConstraint("status BETWEEN 1 AND 3", name="status"),
    CheckConstraint("(status = 2) = (delivered_at IS NOT NULL)", name="delivered_at"),
)
_deliveries = webhook_deliveries.c
_pending = text("status = 1")
Index(
    "webhook_deliveries_due",
    *(_deliveries.endpoint_number, _deliveries.next_attempt_at),
    sqlite_where=_pending,
    postgresql_where=_pending,
)
#: An endpoint's log, newest first.
Index("webhook_deliveries_log", _deliveries.endpoint_number, _deliveries.number)
#: What is old enough to go.
Index("webhook_deliveries_age", _deliveries.kept_from)
#: One row, locked by who makes deliveries: where in commit order the rows were last looked at,
#: how many deliveries there ever were, and until which deadline expired holds were looked for.
webhook_feed = Table(
    "webhook_feed",
    metadata,
    Column("number", SmallInteger, primary_key=True, autoincrement=False),
    Column("mark", Text, nullable=False),
    Column("made", BigInteger, nullable=False),
    Column("holds_until", BigInteger, nullable=False),
    CheckConstraint("number = 1", name="number"),
)
#: Closed ones. Rows are only ever added; triggers refuse their change.
statements = Table(
    "statements",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("starts_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("closed_sequence", BigInteger, nullable=False),
    Column("opening_balance", BigInteger, nullable=False),
    Column("closing_balance", BigInteger, nullable=False),
    Column("closed_at", BigInteger, nullable=False),
    # The API key that asked for it; NULL is the command line.
    Column("closed_by", BigInteger),
    Column("content", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    PrimaryKeyConstraint("wallet_number", "number"),
    CheckConstraint("number > 0", name="number"),
    CheckConstraint("ends_at > starts_at", name="ends_at"),
)
#: One row.
clock_seen = Table(
    "clock_seen",
    metadata,
    Column("number", Number, primary_key=True),
    # The ledger's time at that moment.
    Column("seen_at", BigInteger, nullable=False),
    # What the clock showed at that moment, where the server did not believe it.
    Column("doubted_at", BigInteger),
    CheckConstraint("number = 1", name="number"),
)
#: How the whole ledger was verified last: one row, none before the first time.
last_verification = Table(
    "last_verification",
    metadata,
    Column("number", Number, primary_key=True),
    Column("finished_at", BigInteger, nullable=False),
    # Names of the checks that found something wrong, as JSON.
    Column("failed_checks", Text, nullable=False),
    CheckConstraint("number = 1", name="number"),
)
#: Rows are only ever added; triggers (in the migration) refuse their change.
clock_acceptances = Table(
    "clock_acceptances",
    metadata,
    # Counted from 1.
    Column("number", Number, primary_key=True),
    # What the clock showed, which became the ledger's time.
    Column("accepted_at", BigInteger, nullable=False),
    # What the ledger's time was before.
    Column("expected_at", BigInteger, nullable=False),
    Column("accepted_by", Text, nullable=False),
)
#: Spend limits that are no more, as they were shown last: what a replay answers.
dropped_limits = Table(
    "dropped_limits",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("api_key_id", Text),
    Column("period", SmallInteger, nullable=False),
    Column("time_zone", Text),
    Column("hours", SmallInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("resets_at", BigInteger),
    Column("dropped_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "number"),
    CheckConstraint("period BETWEEN 1 AND 5", name="period"),
    sqlite_with_rowid=False,
)
#: Idempotency keys of changes that are no wallet's, whose own are those of its postings. Rows are
#: never deleted; triggers (in the migration) refuse it.
change_keys = Table(
    "change_keys",
    metadata,
    # Whose key it is; "" is the operator's.
    Column("customer_id", Text, nullable=False),
    Column("livemode", Boolean, nullable=False),
    # Service and method: "RegistryService/CreateCustomer".
    Column("rpc", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    # What was asked: the digest of each field that was given, by name, as JSON.
    Column("request", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # The API key that asked; NULL is the command line.
    Column("asked_by", BigInteger, ForeignKey("api_keys.number")),
    # The id of what was changed; NULL where that has none.
    Column("subject", Text),
    # What cannot be looked up again of the answer; NULL: nothing.
    Column("answer", Text),
    # Of a change in several transactions: where it goes on; NULL: it is done.
    Column("place", Text),
    PrimaryKeyConstraint("customer_id", "livemode", "rpc", "idempotency_key"),
    sqlite_with_rowid=False,
)

#: Exports that were streamed to their end.
exports = Table(
    "exports",
    metadata,
    # Random, as in the headers of the answer.
    Column("id", Text, primary_key=True),
    # Of the API key that exported; "local" for the command line.
    Column("key_id", Text, nullable=False),
    # Of a customer's key; absent for an operator's.
    Column("customer_id", Text),
    Column("livemode", Boolean, nullable=False),
    Column("finished_at", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    # Of all bytes of the file, in hexadecimal.
    Column("sha256", Text, nullable=False),
    Index("exports_by_time", "finished_at"),
    Index("exports_by_key", "key_id", "finished_at"),
)


def _postings(to: MetaData, *key: SchemaItem) -> Table:
    table = Table(
        "postings",
        to,
        Column("wallet_number", BigInteger, nullable=False),
        # Counts from 1 in each wallet.
        Column("number", Number, nullable=False),
        Column("idempotency_key", Text),
        Column("operation", SmallInteger, nullable=False),
        Column("amount", BigInteger),
        Column("first_sequence", BigInteger, nullable=False),
        Column("row_count", Integer, nullable=False),
        Column("posted_by", BigInteger),
        Column("description", Text),
        Column("note", Text),
        Column("metadata", Text),
        Column("source", Text),
        Column("meter_event_id", Text),
        Column("quantities", Text),
        Column("refund_of", BigInteger),
        Column("terms", Text),
        Column("hold_number", BigInteger),
        # Of a transfer: its other side.
        Column("linked_wallet", BigInteger),
        Column("linked_posting", BigInteger),
        PrimaryKeyConstraint("wallet_number", "number"),
        UniqueConstraint("wallet_number", "idempotency_key", name="postings_key_unique"),
        *key,
    )
    where = table.c.refund_of.is_not(None)
    Index(
        "postings_refunds",
        table.c.wallet_number,
        table.c.refund_of,
        sqlite_where=where,
        postgresql_where=where,
    )
    #: What was paid later for a meter event.
    settles = text(f"operation = {SETTLE}")
    Index(
        "postings_settlements",
        *(table.c.wallet_number, table.c.meter_event_id, table.c.first_sequence),
        sqlite_where=settles,
        postgresql_where=settles,
    )
    of_hold = table.c.hold_number.is_not(None)
    Index(
        "postings_holds",
        *(table.c.wallet_number, table.c.hold_number, table.c.number),
        sqlite_where=of_hold,
        postgresql_where=of_hold,
    )
    return table


def _transactions(to: MetaData, *key: SchemaItem) -> Table:
    table = Table(
        "credit_transactions",
        to,
        Column("wallet_number", BigInteger, nullable=False),
        Column("sequence", BigInteger, nullable=False),
        Column("posting_number", BigInteger, nullable=False),
        Column("kind", SmallInteger, nullable=False),
        Column("type", SmallInteger, nullable=False),
        Column("grant_number", BigInteger),
        Column("amount", BigInteger, nullable=False),
        Column("running_balance", BigInteger, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("effective_at", BigInteger),
        Column("dimension_number", BigInteger, nullable=False),
        Column("kind_count", BigInteger),
        Column("usage_count", BigInteger, nullable=False),
        Column("usage_amount", BigInteger, nullable=False),
        Column("usage_quantity", BigInteger, nullable=False),
        Column("unmetered_amount", BigInteger, nullable=False),
        CheckConstraint("sequence > 0", name="sequence"),
        CheckConstraint(
            "amount <> 0 AND amount BETWEEN -100000000000000000 AND 100000000000000000",
            name="amount",
        ),
        CheckConstraint("kind BETWEEN 1 AND 9", name="kind"),
        CheckConstraint("type BETWEEN 1 AND 4", name="type"),
        CheckConstraint("(kind = 6) = (kind_count IS NULL)", name="kind_count"),
        *key,
    )
    c = table.c
    not_usage, moved = text("kind <> 6"), c.effective_at.is_not(None)
    #: Everything that is not usage, by kind: what the billing list shows and counts.
    Index(
        "credit_transactions_kind",
        *(c.wallet_number, c.kind, c.sequence, c.kind_count),
        sqlite_where=not_usage,
        postgresql_where=not_usage,
    )
    #: The order of lists over all wallets; rows come in this order, so it grows at its end only.
    Index("credit_transactions_created", c.created_at)
    #: What happened at another time than it was written: where bills look beside the sequence.
    Index(
        "credit_transactions_effective",
        *(c.wallet_number, c.effective_at),
        sqlite_where=moved,
        postgresql_where=moved,
    )
    return table


# --- SQLite: numbered in commit order ---

# References are checked as well, which costs little here; see the decision on PostgreSQL.

postings = _postings(
    metadata,
    ForeignKeyConstraint(["wallet_number"], ["wallets.number"]),
    ForeignKeyConstraint(["posted_by"], ["api_keys.number"]),
)
transactions = _transactions(
    metadata,
    ForeignKeyConstraint(["wallet_number"], ["wallets.number"]),
    ForeignKeyConstraint(
        ["wallet_number", "posting_number"], ["postings.wallet_number", "postings.number"]
    ),
    ForeignKeyConstraint(
        ["wallet_number", "grant_number"], ["grants.wallet_number", "grants.number"]
    ),
    ForeignKeyConstraint(
        ["wallet_number", "dimension_number"], ["dimensions.wallet_number", "dimensions.number"]
    ),
    # Commit order over all wallets: what a reader of everything follows without a gap.
    Column("position", Integer, primary_key=True),
    UniqueConstraint("wallet_number", "sequence", name="credit_transactions_sequence_unique"),
)

# --- PostgreSQL: keyed by wallet ---

#: The same tables as PostgreSQL has them; queries are written with those above.
postgresql = MetaData(naming_convention=CONVENTION)
for _table in metadata.sorted_tables:
    if _table not in (postings, transactions):
        _table.to_metadata(postgresql)
_postings(postgresql)
_NOBODY = text("CAST('0' AS xid8)")
#: The database transaction that wrote its last row, or an earlier one, whichever began last.
postgresql.tables["wallet_states"].append_column(
    Column("written_in", Xid8, nullable=False, server_default=_NOBODY)
)
_in_commit_order = _transactions(
    postgresql,
    # Which snapshots it belongs to.
    Column("written_in", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    # Where it stands in commit order, if a transaction that began later wrote on the wallet before.
    Column("position", Xid8),
    PrimaryKeyConstraint("wallet_number", "sequence"),
)
#: What a reader of everything follows: no row appears later below the oldest that still runs.
Index(
    "credit_transactions_place",
    func.coalesce(_in_commit_order.c.position, _in_commit_order.c.written_in),
)
