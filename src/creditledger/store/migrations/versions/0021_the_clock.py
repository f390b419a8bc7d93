"""When the ledger's clock was last seen, and who accepted it."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
THING = "an acceptance of the clock"


def upgrade() -> None:
    on_server = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "clock_seen",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("doubted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="clock_seen_pk"),
        sa.CheckConstraint("number = 1", name=op.f("clock_seen_number_check")),
    )
    op.create_table(
        "clock_acceptances",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=False),
        sa.Column("expected_at", sa.BigInteger(), nullable=False),
        sa.Column("accepted_by", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("number", name="clock_acceptances_pk"),
    )
    for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if on_server else ())):
        trigger = (
            f"CREATE TRIGGER clock_acceptances_no_{act.lower()} BEFORE {act} ON clock_acceptances"
        )
        if on_server:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(
                f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is never changed; write another');"
                " END"
            )
