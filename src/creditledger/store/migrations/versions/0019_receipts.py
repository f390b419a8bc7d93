"""Receipts that grants have credited; those of older grants too, with what repeats one apart."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
#: Of paid grants (category 1) of kinds topup (1) and subscription_renew (2) that were not voided.
FILL = """
INSERT INTO receipts (wallet_number, grant_number, provider, receipt_id, copy)
SELECT wallet_number, grant_number, provider, receipt_id,
       CASE nth WHEN 1 THEN 0 ELSE grant_number END
FROM (SELECT wallet_number, grant_number, provider, receipt_id,
             row_number() OVER (PARTITION BY wallet_number, provider, receipt_id
                                ORDER BY grant_number) AS nth
      FROM (SELECT t.wallet_number, t.sequence AS grant_number,
                   coalesce({provider}, '') AS provider, {receipt_id} AS receipt_id
            FROM credit_transactions AS t
            JOIN postings AS p
              ON p.wallet_number = t.wallet_number AND p.number = t.posting_number
            JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.sequence
            WHERE t.kind <> 6 AND t.kind IN (1, 2) AND g.category = 1 AND g.voided_at IS NULL
              AND p.source IS NOT NULL) AS said
      WHERE receipt_id <> '') AS counted"""


def upgrade() -> None:
    op.create_table(
        "receipts",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=False),
        sa.Column("provider", TEXT, nullable=False),
        sa.Column("receipt_id", TEXT, nullable=False),
        sa.Column("copy", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="receipts_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "grant_number", name="receipts_pk"),
        sa.UniqueConstraint(
            *("wallet_number", "provider", "receipt_id", "copy"), name="receipts_receipt_unique"
        ),
        sa.CheckConstraint("copy = 0 OR copy = grant_number", name=op.f("receipts_copy_check")),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        said = "CAST(p.source AS json) ->> '{}'"
        op.execute("ALTER TABLE receipts SET (autovacuum_analyze_threshold = 1000)")
    else:
        said = "json_extract(p.source, '$.{}')"
    op.execute(FILL.format(provider=said.format("provider"), receipt_id=said.format("receipt_id")))
