"""The tables, for SQLAlchemy's Core: queries, migrations and the test that both agree.

Amounts, counters and times (milliseconds) are 64-bit integers; words are their model numbers.
Every key of a large table starts with the wallet, so that the tables can be spread by it. Rows,
postings and dimensions are append-only; triggers (in the migration) refuse their change.
"""

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
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "uq": "%(table_name)s_%(column_0_N_name)s_unique",
        "fk": "%(table_name)s_%(column_0_N_name)s_fk",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s",
    }
)

#: SQLite makes a column the row's own number only if it is declared INTEGER.
Number = BigInteger().with_variant(Integer(), "sqlite")

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
    Column("status", SmallInteger, nullable=False),
    Column("overdraft_limit", BigInteger, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
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
    UniqueConstraint("customer_id", "currency", "livemode"),
    CheckConstraint("status BETWEEN 1 AND 3", name="status"),
    CheckConstraint("overdraft_limit >= 0", name="overdraft_limit"),
    CheckConstraint("overdraft_used >= 0", name="overdraft_used"),
    CheckConstraint(
        "sequence = usage_count + topup_count + subscription_renew_count + admin_credit_count"
        " + admin_debit_count + refund_count + expiry_count",
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

postings = Table(
    "postings",
    metadata,
    Column("number", Number, primary_key=True),
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("idempotency_key", Text),
    Column("operation", SmallInteger, nullable=False),
    Column("amount", BigInteger),
    Column("first_sequence", BigInteger, nullable=False),
    Column("row_count", Integer, nullable=False),
    Column("posted_by", BigInteger, ForeignKey("api_keys.number")),
    Column("description", Text),
    Column("note", Text),
    Column("metadata", Text),
    Column("source", Text),
    Column("meter_event_id", Text),
    Column("quantities", Text),
    Column("refund_of", BigInteger),
    Column("terms", Text),
    UniqueConstraint("wallet_number", "idempotency_key", name="postings_key_unique"),
)
Index(
    "postings_refunds",
    postings.c.wallet_number,
    postings.c.refund_of,
    sqlite_where=postings.c.refund_of.is_not(None),
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
    PrimaryKeyConstraint("wallet_number", "number"),
    CheckConstraint("amount > 0 AND amount <= 100000000000000000", name="amount"),
    CheckConstraint("remaining >= 0 AND remaining <= amount - overdraft_paid", name="remaining"),
    CheckConstraint("overdraft_paid >= 0", name="overdraft_paid"),
    CheckConstraint("(open <> 0) = (remaining > 0)", name="open"),
    CheckConstraint("category BETWEEN 1 AND 2", name="category"),
    CheckConstraint("priority BETWEEN 0 AND 100", name="priority"),
    CheckConstraint("expires_at IS NULL OR expires_at > effective_at", name="expires_at"),
    sqlite_with_rowid=False,
)
Index("grants_open", grants.c.wallet_number, sqlite_where=text("open = 1"))

transactions = Table(
    "credit_transactions",
    metadata,
    # Commit order over all wallets: what a reader of everything follows without a gap.
    Column("position", Number, primary_key=True),
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("posting_number", BigInteger, ForeignKey("postings.number"), nullable=False),
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
    UniqueConstraint("wallet_number", "sequence", name="credit_transactions_sequence_unique"),
    ForeignKeyConstraint(
        ["wallet_number", "grant_number"], ["grants.wallet_number", "grants.number"]
    ),
    ForeignKeyConstraint(
        ["wallet_number", "dimension_number"], ["dimensions.wallet_number", "dimensions.number"]
    ),
    CheckConstraint("sequence > 0", name="sequence"),
    CheckConstraint(
        "amount <> 0 AND amount BETWEEN -100000000000000000 AND 100000000000000000", name="amount"
    ),
    CheckConstraint("kind BETWEEN 1 AND 7", name="kind"),
    CheckConstraint("type BETWEEN 1 AND 4", name="type"),
    CheckConstraint("(kind = 6) = (kind_count IS NULL)", name="kind_count"),
)
#: Everything that is not usage, by kind: what the billing list shows and counts.
Index(
    "credit_transactions_kind",
    transactions.c.wallet_number,
    transactions.c.kind,
    transactions.c.sequence,
    transactions.c.kind_count,
    sqlite_where=text("kind <> 6"),
)
#: The order of lists over all wallets; rows come in this order, so it grows at its end only.
Index("credit_transactions_created", transactions.c.created_at)
#: What happened at another time than it was written: where bills look beside the sequence.
Index(
    "credit_transactions_effective",
    transactions.c.wallet_number,
    transactions.c.effective_at,
    sqlite_where=transactions.c.effective_at.is_not(None),
)

#: Sums by wallet, quarter of an hour (since 1970, UTC) and dimension. The first group adds up rows
#: whose effective time lies in the quarter, the `created_` group those written in it.
rollups = Table(
    "rollups",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    Column("quarter", BigInteger, nullable=False),
    Column("dimension_number", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("voucher_amount", BigInteger, nullable=False),
    Column("quantity_0", BigInteger, nullable=False),
    Column("quantity_1", BigInteger, nullable=False),
    Column("quantity_2", BigInteger, nullable=False),
    Column("quantity_3", BigInteger, nullable=False),
    Column("quantity_4", BigInteger, nullable=False),
    Column("quantity_5", BigInteger, nullable=False),
    Column("created_count", BigInteger, nullable=False),
    Column("created_amount", BigInteger, nullable=False),
    Column("created_quantity", BigInteger, nullable=False),
    PrimaryKeyConstraint("wallet_number", "quarter", "dimension_number"),
    sqlite_with_rowid=False,
)
