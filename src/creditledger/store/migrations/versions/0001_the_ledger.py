"""The ledger: registry, wallets, postings, credit transactions, grants, roll-ups."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import SchemaItem

from creditledger.store.schema import Xid8

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

#: What is never changed or taken away once it is written: (table, what the refusal calls it).
APPEND_ONLY = (
    ("credit_transactions", "a credit transaction"),
    ("postings", "a posting"),
    ("dimensions", "a dimension"),
)
CURRENCIES = (("USD", 9, "US dollar"), ("CNY", 9, "Renminbi"), ("CREDIT", 6, "Credit"))


#: Tables whose rows change with every posting: room for new versions beside the old.
CHANGED_OFTEN = ("wallet_states", "grants", "rollups")


def upgrade() -> None:
    by_wallet = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "currencies",
        sa.Column("code", TEXT, nullable=False),
        sa.Column("scale", sa.SmallInteger(), nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.CheckConstraint("scale BETWEEN 0 AND 9", name=op.f("currencies_scale_check")),
        sa.PrimaryKeyConstraint("code", name="currencies_pk"),
    )
    op.create_table(
        "customers",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("email", TEXT, nullable=False),
        sa.Column("metadata", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="customers_pk"),
    )
    op.create_table(
        "api_keys",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("scope", sa.SmallInteger(), nullable=False),
        sa.Column("customer_id", TEXT, nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("mask", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(scope = 1) = (customer_id IS NOT NULL)", name=op.f("api_keys_customer_check")
        ),
        sa.CheckConstraint("scope BETWEEN 1 AND 3", name=op.f("api_keys_scope_check")),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="api_keys_customer_id_fk"),
        sa.PrimaryKeyConstraint("number", name="api_keys_pk"),
        sa.UniqueConstraint("id", name="api_keys_id_unique"),
        sa.UniqueConstraint("secret_hash", name="api_keys_secret_hash_unique"),
    )
    op.create_index("api_keys_customer_id", "api_keys", ["customer_id"], unique=False)
    op.create_table(
        "meters",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("event_name", TEXT, nullable=False),
        sa.Column("unit", TEXT, nullable=False),
        sa.Column("currency", TEXT, nullable=True),
        sa.Column("metadata", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["currency"], ["currencies.code"], name="meters_currency_fk"),
        sa.PrimaryKeyConstraint("id", name="meters_pk"),
        sa.UniqueConstraint("event_name", name="meters_event_name_unique"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("customer_id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("metadata", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name="subscriptions_customer_id_fk"
        ),
        sa.PrimaryKeyConstraint("id", name="subscriptions_pk"),
    )
    op.create_index("subscriptions_customer_id", "subscriptions", ["customer_id"], unique=False)
    op.create_table(
        "wallets",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("customer_id", TEXT, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["currency"], ["currencies.code"], name="wallets_currency_fk"),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="wallets_customer_id_fk"),
        sa.PrimaryKeyConstraint("number", name="wallets_pk"),
        sa.UniqueConstraint(
            "customer_id",
            "currency",
            "livemode",
            name="wallets_customer_id_currency_livemode_unique",
        ),
        sa.UniqueConstraint("id", name="wallets_id_unique"),
    )
    op.create_table(
        "wallet_states",
        sa.Column("wallet_number", NUMBER, autoincrement=False, nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("overdraft_limit", sa.BigInteger(), nullable=False),
        sa.Column("metadata", TEXT, nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("running_balance", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("overdraft_used", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("posted_at", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("moved_sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("usage_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("usage_amount", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("usage_quantity", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("unmetered_amount", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("topup_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "subscription_renew_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column(
            "admin_credit_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column(
            "admin_debit_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column("refund_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("expiry_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "overdraft_limit >= 0", name=op.f("wallet_states_overdraft_limit_check")
        ),
        sa.CheckConstraint("overdraft_used >= 0", name=op.f("wallet_states_overdraft_used_check")),
        sa.CheckConstraint(
            "sequence = usage_count + topup_count + subscription_renew_count + admin_credit_count"
            " + admin_debit_count + refund_count + expiry_count",
            name=op.f("wallet_states_counters_check"),
        ),
        sa.CheckConstraint("status BETWEEN 1 AND 3", name=op.f("wallet_states_status_check")),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="wallet_states_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", name="wallet_states_pk"),
    )
    op.create_table(
        "dimensions",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("meter_id", TEXT, nullable=True),
        sa.Column("subscription_id", TEXT, nullable=True),
        sa.Column("has_usage", sa.Boolean(), nullable=False),
        sa.Column("api_key_id", TEXT, nullable=False),
        sa.Column("product_id", TEXT, nullable=False),
        sa.Column("product_name", TEXT, nullable=False),
        sa.Column("category", TEXT, nullable=False),
        sa.Column("billing_method", sa.Integer(), nullable=False),
        sa.Column("base_prices", TEXT, nullable=False),
        sa.Column("discount_prices", TEXT, nullable=False),
        sa.Column("price_precision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="dimensions_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="dimensions_pk"),
        sa.UniqueConstraint(
            "wallet_number", "digest", name="dimensions_wallet_number_digest_unique"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "grants",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("overdraft_paid", sa.BigInteger(), nullable=False),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("category", sa.SmallInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("name", TEXT, nullable=True),
        sa.Column("effective_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("open = (remaining > 0)", name=op.f("grants_open_check")),
        sa.CheckConstraint(
            "amount > 0 AND amount <= 100000000000000000", name=op.f("grants_amount_check")
        ),
        sa.CheckConstraint("category BETWEEN 1 AND 2", name=op.f("grants_category_check")),
        sa.CheckConstraint(
            "expires_at IS NULL OR expires_at > effective_at", name=op.f("grants_expires_at_check")
        ),
        sa.CheckConstraint("overdraft_paid >= 0", name=op.f("grants_overdraft_paid_check")),
        sa.CheckConstraint("priority BETWEEN 0 AND 100", name=op.f("grants_priority_check")),
        sa.CheckConstraint(
            "remaining >= 0 AND remaining <= amount - overdraft_paid",
            name=op.f("grants_remaining_check"),
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="grants_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="grants_pk"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "grants_open",
        "grants",
        ["wallet_number"],
        unique=False,
        sqlite_where=sa.text("open = 1"),
        postgresql_where=sa.text("open"),
    )
    op.create_table(
        "postings",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("idempotency_key", TEXT, nullable=True),
        sa.Column("operation", sa.SmallInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=True),
        sa.Column("first_sequence", sa.BigInteger(), nullable=False),
        sa.Column("row_count", sa.Integer(), nullable=False),
        sa.Column("posted_by", sa.BigInteger(), nullable=True),
        sa.Column("description", TEXT, nullable=True),
        sa.Column("note", TEXT, nullable=True),
        sa.Column("metadata", TEXT, nullable=True),
        sa.Column("source", TEXT, nullable=True),
        sa.Column("meter_event_id", TEXT, nullable=True),
        sa.Column("quantities", TEXT, nullable=True),
        sa.Column("refund_of", sa.BigInteger(), nullable=True),
        sa.Column("terms", TEXT, nullable=True),
        *(_posting_keys_by_wallet() if by_wallet else _posting_keys_by_number()),
        sa.UniqueConstraint("wallet_number", "idempotency_key", name="postings_key_unique"),
    )
    op.create_index(
        "postings_refunds",
        "postings",
        ["wallet_number", "refund_of"],
        unique=False,
        sqlite_where=sa.text("refund_of IS NOT NULL"),
        postgresql_where=sa.text("refund_of IS NOT NULL"),
    )
    op.create_table(
        "rollups",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("quarter", sa.BigInteger(), nullable=False),
        sa.Column("dimension_number", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("voucher_amount", sa.BigInteger(), nullable=False),
        sa.Column("quantity_0", sa.BigInteger(), nullable=False),
        sa.Column("quantity_1", sa.BigInteger(), nullable=False),
        sa.Column("quantity_2", sa.BigInteger(), nullable=False),
        sa.Column("quantity_3", sa.BigInteger(), nullable=False),
        sa.Column("quantity_4", sa.BigInteger(), nullable=False),
        sa.Column("quantity_5", sa.BigInteger(), nullable=False),
        sa.Column("created_count", sa.BigInteger(), nullable=False),
        sa.Column("created_amount", sa.BigInteger(), nullable=False),
        sa.Column("created_quantity", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="rollups_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "quarter", "dimension_number", name="rollups_pk"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "credit_transactions",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("posting_number", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("running_balance", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("effective_at", sa.BigInteger(), nullable=True),
        sa.Column("dimension_number", sa.BigInteger(), nullable=False),
        sa.Column("kind_count", sa.BigInteger(), nullable=True),
        sa.Column("usage_count", sa.BigInteger(), nullable=False),
        sa.Column("usage_amount", sa.BigInteger(), nullable=False),
        sa.Column("usage_quantity", sa.BigInteger(), nullable=False),
        sa.Column("unmetered_amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(kind = 6) = (kind_count IS NULL)", name=op.f("credit_transactions_kind_count_check")
        ),
        sa.CheckConstraint(
            "amount <> 0 AND amount BETWEEN -100000000000000000 AND 100000000000000000",
            name=op.f("credit_transactions_amount_check"),
        ),
        sa.CheckConstraint("kind BETWEEN 1 AND 7", name=op.f("credit_transactions_kind_check")),
        sa.CheckConstraint("sequence > 0", name=op.f("credit_transactions_sequence_check")),
        sa.CheckConstraint("type BETWEEN 1 AND 4", name=op.f("credit_transactions_type_check")),
        *(_row_keys_by_wallet() if by_wallet else _row_keys_by_position()),
    )
    if by_wallet:
        op.create_index("credit_transactions_written", "credit_transactions", ["written_in"])
    op.create_index("credit_transactions_created", "credit_transactions", ["created_at"])
    op.create_index(
        "credit_transactions_effective",
        "credit_transactions",
        ["wallet_number", "effective_at"],
        unique=False,
        sqlite_where=sa.text("effective_at IS NOT NULL"),
        postgresql_where=sa.text("effective_at IS NOT NULL"),
    )
    op.create_index(
        "credit_transactions_kind",
        "credit_transactions",
        ["wallet_number", "kind", "sequence", "kind_count"],
        unique=False,
        sqlite_where=sa.text("kind <> 6"),
        postgresql_where=sa.text("kind <> 6"),
    )
    if by_wallet:
        _guard_on_postgresql()
        # Each batch takes one step of it: room for the postings of the largest.
        op.execute("CREATE SEQUENCE posting_numbers INCREMENT BY 4096")
        for table in CHANGED_OFTEN:
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 60)")
    else:
        _guard_on_sqlite()
    currencies = sa.table("currencies", sa.column("code"), sa.column("scale"), sa.column("name"))
    op.bulk_insert(
        currencies,
        [{"code": code, "scale": scale, "name": name} for code, scale, name in CURRENCIES],
    )


def _posting_keys_by_wallet() -> list[SchemaItem]:
    return [sa.PrimaryKeyConstraint("wallet_number", "number", name="postings_pk")]


def _posting_keys_by_number() -> list[SchemaItem]:
    return [
        sa.PrimaryKeyConstraint("number", name="postings_pk"),
        sa.ForeignKeyConstraint(["posted_by"], ["api_keys.number"], name="postings_posted_by_fk"),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="postings_wallet_number_fk"
        ),
    ]


def _row_keys_by_wallet() -> list[SchemaItem]:
    now = sa.text("pg_current_xact_id()")
    return [
        sa.Column("written_in", Xid8, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("wallet_number", "sequence", name="credit_transactions_pk"),
    ]


def _row_keys_by_position() -> list[SchemaItem]:
    return [
        sa.Column("position", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="credit_transactions_pk"),
        sa.UniqueConstraint(
            "wallet_number", "sequence", name="credit_transactions_sequence_unique"
        ),
        sa.ForeignKeyConstraint(
            ["posting_number"], ["postings.number"], name="credit_transactions_posting_number_fk"
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number", "dimension_number"],
            ["dimensions.wallet_number", "dimensions.number"],
            name="credit_transactions_wallet_number_dimension_number_fk",
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number", "grant_number"],
            ["grants.wallet_number", "grants.number"],
            name="credit_transactions_wallet_number_grant_number_fk",
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="credit_transactions_wallet_number_fk"
        ),
    ]


def _guard_on_sqlite() -> None:
    for table, thing in APPEND_ONLY:
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{thing} is never changed; write another'); END"
            )


def _guard_on_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION '% is never changed; write another', TG_ARGV[0]"
        " USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table, thing in APPEND_ONLY:
        for act in ("UPDATE", "DELETE", "TRUNCATE"):
            # For each statement: rows that are only added pay nothing.
            op.execute(
                f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table}"
                f" EXECUTE FUNCTION refuse_change('{thing}')"
            )
