"""A migrated database is the one that the queries are written for."""

from __future__ import annotations

import asyncio
import json
import re
from importlib import import_module
from itertools import chain, count, product
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, inspect, select, text
from sqlalchemy.dialects.postgresql.base import PGDialect

from creditledger import store
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.commands import SetLimit, WalletChange
from creditledger.domain.model import Category, Period, Status
from creditledger.domain.operations import PlaceHold
from creditledger.store import DatabaseLocked, Store, schema
from creditledger.store.migrations import migrate, newest, revision, versions
from creditledger.store.registry import records
from tests.store.test_verify import ACME, BETA, TAKING, written
from tests.support.setup import (
    START,
    Clock,
    add_wallet,
    change,
    command,
    consume,
    findings,
    give,
    is_file,
    look,
    opened,
    posting_id,
    refund,
)
from tests.support.setup import migrate as brought_up_to_date
from tests.support.sums_over_time import fold_all

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

    from creditledger.domain.commands import Operation
    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger

#: (table, column)
ADDED_BY_0003 = (
    ("wallet_states", "topup_amount"),
    ("wallet_states", "refund_amount"),
    ("rollups", "posting_count"),
)
WHO_PAID = "0020_who_paid_overdrafts"
#: (kind, name) -> what the definition says.
Definitions = dict[tuple[str, str], Any]


def metadata(url: str) -> MetaData:
    """The tables as this kind of database has them."""
    return schema.metadata if is_file(url) else schema.postgresql


def definitions(connection: Connection) -> Definitions:
    """All that a schema consists of.

    Autogenerate looks at columns, keys and indexes; this also sees checks, triggers, WITHOUT ROWID.
    """
    if connection.dialect.name == "sqlite":
        found = connection.execute(
            text("SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL")
        )
        every = {(kind, name): clauses(sql) for kind, name, sql in found}
    else:
        found = connection.exec_driver_sql(CATALOG)
        every = {(kind, name): said for kind, name, said in found}
    return {key: said for key, said in every.items() if "alembic" not in key[1]}


def clauses(sql: str) -> list[str]:
    """The parts between the outermost commas: columns as they stand, constraints by name.

    Blanks, quotes and the order of constraints are left out.
    """
    parts, depth = [""], 0
    for character in re.sub(r"\s+", " ", sql.replace('"', "")):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += character
    *inner, last = [part.strip() for part in parts]
    last, _, tail = last.rpartition(")")
    body = [*inner, last.strip()]
    columns = [part for part in body if not part.startswith("CONSTRAINT")]
    return [*columns, *sorted(set(body) - set(columns)), tail.strip()]


CATALOG = """
SELECT 'column', c.relname || '.' || a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, l.collname,
                 pg_get_expr(d.adbin, d.adrelid))
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE contype <> 'n' AND connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT 'sequence', sequencename, increment_by::text FROM pg_sequences WHERE schemaname = 'public'"""


def test_migrations_make_the_schema_of_the_queries(
    database_url: str, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, columns, types, defaults, constraints and indexes of both are the same."""
    monkeypatch.setitem(PGDialect.ischema_names, "xid8", schema.Xid8)
    tables = metadata(database_url)

    def compared(connection: Connection) -> Definitions:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, tables) == []
        return definitions(connection)

    def created(connection: Connection) -> Definitions:
        tables.create_all(connection)
        return definitions(connection)

    by_migration = change(database_url, compared)
    by_tables = change(empty_url, created)

    more = {key: by_migration.pop(key) for key in by_migration.keys() - by_tables.keys()}
    assert by_tables == by_migration
    # What is no part of a table.
    assert {kind for kind, _ in more} <= {"trigger"}


def test_every_append_only_table_has_its_triggers(database_url: str) -> None:
    """Rows, postings and dimensions are guarded against UPDATE and DELETE, and TRUNCATE."""
    triggers = {name for kind, name in look(database_url, definitions) if kind == "trigger"}

    acts = ("update", "delete") if is_file(database_url) else ("update", "delete", "truncate")
    assert triggers == {
        f"{table}_no_{act}"
        for table in (
            *("credit_transactions", "postings", "dimensions", "hold_revisions"),
            *("grant_revisions", "grant_repayments", "overdraft_payers", "overdraft_returns"),
            *("grant_parts", "statements", "clock_acceptances"),
        )
        for act in acts
    } | {f"change_keys_no_{act}" for act in acts if act != "update"}


def test_a_new_database_has_the_currencies(database_url: str) -> None:
    """USD and CNY have nine digits after the point, CREDIT six."""
    rows = look(database_url, lambda c: c.execute(schema.currencies.select()).all())

    assert {(row.code, row.scale) for row in rows} == {("USD", 9), ("CNY", 9), ("CREDIT", 6)}


def test_an_empty_database_has_no_revision_until_it_is_migrated(empty_url: str) -> None:
    """The revision goes from none to the newest, which is the last of the files."""
    assert change(empty_url, revision) is None
    assert change(empty_url, migrate) == (None, newest())
    assert look(empty_url, revision) == newest()


def test_migrating_again_changes_nothing(empty_url: str) -> None:
    """What is there stays as it is, schema and rows, however often a database is migrated."""
    brought_up_to_date(empty_url)
    change(empty_url, lambda connection: add_wallet(connection, "wal_acme"))
    before = look(empty_url, definitions)

    for _ in range(2):
        assert change(empty_url, migrate) == (newest(), newest())

    assert before == look(empty_url, definitions)
    wallet = look(empty_url, lambda c: c.execute(schema.wallets.select()).one())
    assert (wallet.id, wallet.created_at) == ("wal_acme", START)
    assert len(look(empty_url, lambda c: c.execute(schema.currencies.select()).all())) == 3


def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    """Migrating is one transaction: undone, the database is as empty as before."""

    def migrate_and_fail(connection: Connection) -> None:
        migrate(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change(empty_url, migrate_and_fail)

    assert change(empty_url, lambda connection: inspect(connection).get_table_names()) == []
    assert change(empty_url, revision) is None
    assert change(empty_url, migrate) == (None, newest())


async def test_migrations_at_the_same_time(empty_url: str) -> None:
    """Of several one makes the schema; the others find it there, or find a file held."""
    done = await asyncio.gather(
        *[asyncio.to_thread(lambda: asyncio.run(store.migrate(empty_url, migrate))) for _ in "123"],
        return_exceptions=True,
    )

    found = [one for one in done if not isinstance(one, DatabaseLocked)]
    assert sorted(found, key=repr)[-1] == (None, newest())
    assert all(one == (newest(), newest()) for one in sorted(found, key=repr)[:-1])
    if not is_file(empty_url):
        assert len(found) == 3


@pytest.mark.only("sqlite")
async def test_a_table_made_anew_is_what_it_was(
    ledger: Ledger, store: Store, database_url: str
) -> None:
    """0005 copies two tables to change a check of each: rows, indexes and triggers stay."""
    await ledger.post(command(give("5"), key="1"))
    await ledger.post(command(consume("2"), key="2"))
    await ledger.close()
    await store.close()
    migration: Any = import_module(f"{versions.__name__}.0005_transfers")

    def rows(connection: Connection) -> list[Any]:
        tables = (schema.transactions, schema.wallet_states)
        return [connection.execute(table.select()).all() for table in tables]

    before = look(database_url, definitions), look(database_url, rows)

    def rebuild(connection: Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            for table, _, old, new in migration.CHECKS:
                migration.rebuild(table, new, old)
                assert definitions(connection)["table", table] != before[0]["table", table]
                migration.rebuild(table, old, new)

    change(database_url, rebuild)

    assert before == (look(database_url, definitions), look(database_url, rows))
    assert findings(database_url) == []


#: The table as it was before 0017, with its rows of now.
ONE_WALLET_FOR_EVER = (
    "PRAGMA defer_foreign_keys = ON",
    "CREATE TEMP TABLE kept AS SELECT * FROM wallets",
    "DROP TABLE wallets",
    """CREATE TABLE wallets (
        number INTEGER NOT NULL, id TEXT NOT NULL, customer_id TEXT NOT NULL,
        currency TEXT NOT NULL, livemode BOOLEAN NOT NULL, created_at BIGINT NOT NULL,
        repays_from BIGINT DEFAULT 0 NOT NULL,
        CONSTRAINT wallets_pk PRIMARY KEY (number),
        CONSTRAINT wallets_currency_fk FOREIGN KEY(currency) REFERENCES currencies (code),
        CONSTRAINT wallets_customer_id_currency_livemode_unique
          UNIQUE (customer_id, currency, livemode),
        CONSTRAINT wallets_customer_id_fk FOREIGN KEY(customer_id) REFERENCES customers (id),
        CONSTRAINT wallets_id_unique UNIQUE (id))""",
    """INSERT INTO wallets SELECT number, id, customer_id, currency, livemode, created_at,
        repays_from FROM temp.kept""",
    "DROP TABLE temp.kept",
)
ONE_WALLET_FOR_EVER_ON_A_SERVER = (
    *("DROP INDEX wallets_open", "DROP INDEX wallets_succession"),
    *("ALTER TABLE wallets DROP COLUMN closed_at", "ALTER TABLE wallets DROP COLUMN rows_before"),
    """ALTER TABLE wallets ADD CONSTRAINT wallets_customer_id_currency_livemode_unique
        UNIQUE (customer_id, currency, livemode)""",
)


async def test_wallets_that_were_closed_before_bar_nobody_any_more(
    ledger: Ledger, store: Store, clock: Clock, database_url: str
) -> None:
    """0017 finds out which wallets are closed; every table that refers to them stays as it was."""
    await store.write(lambda connection: add_wallet(connection, "wal_open"))
    await ledger.post(command(give("5"), key="1"))
    await ledger.post(command(PlaceHold("1", None, None), key="2"))
    await ledger.post(command(give("2"), key="1", wallet_id="wal_open"))
    await ledger.post(command(consume("2"), key="2", wallet_id="wal_open"))
    clock.advance(time.HOUR)
    await ledger.change(WalletChange("wal_open", livemode=True, status=Status.CLOSED))
    await ledger.close()
    await store.close()
    before = look(database_url, definitions)
    back = ONE_WALLET_FOR_EVER if is_file(database_url) else ONE_WALLET_FOR_EVER_ON_A_SERVER

    def again(connection: Connection) -> None:
        for statement in back:
            connection.exec_driver_sql(statement)
        with Operations.context(MigrationContext.configure(connection)):
            import_module(f"{versions.__name__}.0017_successive_wallets").upgrade()

    change(database_url, again)

    assert look(database_url, definitions) == before
    assert findings(database_url) == []
    wallets = look(database_url, lambda c: c.execute(schema.wallets.select()).all())
    assert {one.id: one.closed_at for one in wallets} == {
        "wal_acme": None,
        "wal_open": START + time.HOUR,
    }
    connected = Store(database_url, clock=clock)
    await connected.open()
    made = await connected.write(
        lambda c: records.wallet_for(
            c, "cus_of_wal_open", "USD", livemode=True, new_id="wal_next", now=clock()
        )
    )
    await connected.close()
    assert made == "wal_next"


async def test_figures_that_came_later_are_those_of_the_rows(
    ledger: Ledger, store: Store, database_url: str
) -> None:
    """What 0003 adds is filled in from what was posted before it, row by row."""
    spent = await ledger.post(command(give("5"), key="1"))
    await ledger.post(command(give("3", category=Category.PROMOTIONAL), key="2"))
    spent = await ledger.post(command(consume("6"), key="3", effective_at=START - time.DAY))
    await ledger.post(command(consume("0.5"), key="4"))
    await ledger.post(command(refund(posting_id(spent), "5.5"), key="5"))
    assert len(spent.posting.rows) == 2
    await ledger.close()
    await store.close()

    def again(connection: Connection) -> None:
        fold_all(connection)
        for statement in AS_ROLLUPS:
            connection.exec_driver_sql(statement)
        for table, column in ADDED_BY_0003:
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        with Operations.context(MigrationContext.configure(connection)):
            import_module(f"{versions.__name__}.0003_sums_of_kinds_and_postings").upgrade()
            import_module(f"{versions.__name__}.0029_folds").upgrade()

    change(database_url, again)

    assert findings(database_url) == []
    wallet = look(database_url, lambda c: c.execute(schema.wallet_states.select()).one())
    assert (wallet.topup_amount, wallet.refund_amount) == (8 * 10**9, 5_500_000_000)
    folds = look(database_url, lambda c: c.execute(schema.folds.select()).all())
    assert sorted(one.posting_count for one in folds) == [1, 1, 1, 2]


#: Where numbers of postings stand, also as numbers of what they made: (table, column).
NUMBERED = (
    *(("postings", "number"), ("postings", "refund_of"), ("postings", "hold_number")),
    ("credit_transactions", "posting_number"),
    *(("holds", "number"), ("hold_revisions", "hold_number"), ("hold_revisions", "posting_number")),
    *(("grant_revisions", "posting_number"), ("meter_events", "number")),
)


#: What 0023, 0024 and 0026 made, taken away.
WITHOUT_CANCELED_EVENTS = (
    *("DROP INDEX meter_events_returned", "DROP INDEX postings_settlements"),
    *(f"ALTER TABLE meter_events DROP COLUMN {name}" for name in ("canceled_at", "return_below")),
)
WITHOUT_CHANGES_OF_CUSTOMERS = tuple(
    f"ALTER TABLE customers DROP COLUMN {name}"
    for name in ("updated_at", "archived_at", "created_as")
)
#: What 0029 made, undone.
AS_ROLLUPS = ("ALTER TABLE folds RENAME TO rollups", "DROP TABLE fold_ends", "DROP TABLE day_folds")
#: What 0030 made, taken away.
WITHOUT_SESSIONS = ("DROP TABLE session_codes", "ALTER TABLE api_keys DROP COLUMN is_session")
#: What 0031 made, taken away.
WITHOUT_LAST_VERIFICATION = ("DROP TABLE last_verification",)
#: What 0032 made, taken away.
WITHOUT_USES_OF_KEYS = ("ALTER TABLE api_keys DROP COLUMN last_used_at",)
WITHOUT_ENDS_OF_LIMITS = ("ALTER TABLE spend_limits DROP COLUMN counted_until",)


def number_over_all_wallets(connection: Connection) -> None:
    """The ledger as 0017 had it: a posting's number is used by no other wallet."""
    migration: Any = import_module(f"{versions.__name__}.0018_postings_count_within_their_wallet")
    fold_all(connection)
    later = (
        WITHOUT_USES_OF_KEYS,
        WITHOUT_LAST_VERIFICATION,
        WITHOUT_SESSIONS,
        AS_ROLLUPS,
        WITHOUT_CHANGES_OF_CUSTOMERS,
        WITHOUT_CANCELED_EVENTS,
        WITHOUT_ENDS_OF_LIMITS,
    )
    for statement in chain.from_iterable(later):
        connection.exec_driver_sql(statement)
    forget_who_paid(connection)
    guards: list[Any] = []
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        guards = list(connection.exec_driver_sql(triggers))
        for name, _ in guards:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
    else:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    for table, column in NUMBERED:
        connection.exec_driver_sql(f"UPDATE {table} SET {column} = {column} * 100 + wallet_number")
    connection.exec_driver_sql(
        "UPDATE postings SET linked_posting = linked_posting * 100 + linked_wallet"
    )
    # What a refund's request named is a number too.
    for wallet, number, refund_of, terms in connection.exec_driver_sql(
        "SELECT wallet_number, number, refund_of, terms FROM postings WHERE refund_of IS NOT NULL"
    ).all():
        named = json.dumps(
            {**json.loads(terms), "refund.posting_id": ids.compose("pst", wallet, refund_of)}
        )
        posting = (schema.postings.c.wallet_number == wallet) & (schema.postings.c.number == number)
        connection.execute(schema.postings.update().where(posting).values(terms=named))
    for _, sql in guards:
        connection.exec_driver_sql(sql)
    connection.exec_driver_sql("ALTER TABLE wallet_states DROP COLUMN last_posting")
    if connection.dialect.name == "sqlite":
        with Operations.context(MigrationContext.configure(connection)):
            migration.rekey(migration.POSTINGS[::-1], migration.ROWS[::-1])
    else:
        connection.exec_driver_sql("CREATE SEQUENCE posting_numbers INCREMENT BY 4096")
    # What later migrations make, they make anew.
    tables = ("receipts", "clock_seen", "clock_acceptances", "exports", "change_keys")
    for table in (*tables, "dropped_limits"):
        connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql("ALTER TABLE webhook_endpoints DROP COLUMN deleted_as")
    forget_parts(connection)
    connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0017'")


#: Each part as the grant that it was before 0022. Nothing is drawn of grants with parts.
AS_GRANTS = """
INSERT INTO grants (wallet_number, number, amount, overdraft_paid, remaining, open, category,
  priority, name, effective_at, expires_at, created_at)
SELECT t.wallet_number, t.sequence, t.amount, x.overdraft_paid, t.amount - x.overdraft_paid,
  t.amount > x.overdraft_paid, g.category, g.priority, g.name, t.created_at, g.expires_at,
  t.created_at
FROM grant_parts AS x
JOIN credit_transactions AS t ON t.wallet_number = x.wallet_number AND t.sequence = x.sequence
JOIN grants AS g ON g.wallet_number = x.wallet_number AND g.number = x.grant_number"""
WITHOUT_PARTS = """
UPDATE grants SET amount = grants.amount - s.amount, overdraft_paid = overdraft_paid - s.paid,
  remaining = remaining - s.amount + s.paid
FROM (SELECT x.wallet_number, x.grant_number, sum(t.amount) AS amount, sum(x.overdraft_paid) AS paid
      FROM grant_parts AS x JOIN credit_transactions AS t
        ON t.wallet_number = x.wallet_number AND t.sequence = x.sequence
      GROUP BY x.wallet_number, x.grant_number) AS s
WHERE grants.wallet_number = s.wallet_number AND grants.number = s.grant_number"""
OF_ITS_OWN = """
UPDATE credit_transactions SET grant_number = sequence WHERE (wallet_number, sequence) IN
  (SELECT wallet_number, sequence FROM grant_parts)"""


def forget_parts(connection: Connection) -> None:
    """Grants as 0021 had them: what a transfer brought was a grant of its own."""
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        guard = "SELECT sql FROM sqlite_master WHERE name = 'credit_transactions_no_update'"
        trigger = connection.exec_driver_sql(guard).scalar_one()
        connection.exec_driver_sql("DROP TRIGGER credit_transactions_no_update")
    for statement in (AS_GRANTS, WITHOUT_PARTS, OF_ITS_OWN, "DROP TABLE grant_parts"):
        connection.exec_driver_sql(statement)
    for column in ("origin", "words"):
        connection.exec_driver_sql(f"ALTER TABLE grants DROP COLUMN {column}")
    if is_sqlite:
        connection.exec_driver_sql(trigger)


async def test_numbers_of_postings_stay_and_go_on_within_each_wallet(empty_url: str) -> None:
    """0018 leaves every id of an older ledger valid, and counts on behind the highest used."""
    brought_up_to_date(empty_url)
    anew = look(empty_url, definitions)
    await written(empty_url)
    change(empty_url, number_over_all_wallets)
    ids_before = look(empty_url, numbers)

    assert change(empty_url, migrate) == ("0017", newest())

    assert look(empty_url, definitions) == anew
    assert look(empty_url, numbers) == ids_before
    assert findings(empty_url) == []
    highest: dict[int, int] = {}
    for wallet, number in ids_before:
        highest[wallet] = max(number, highest.get(wallet, 0))
    clock = Clock(START + time.DAY)
    async with opened(empty_url, clock) as (_, ledger):
        for wallet in (ACME, BETA, TAKING):
            posted = await ledger.post(command(give("9"), key="new", wallet_id=WALLETS[wallet]))
            assert posted.posting.number > highest[wallet]
            first = ledger.post(command(give("9"), key="new", wallet_id=WALLETS[wallet]))
            assert (await first).replayed
        spent = ids.compose("pst", ACME, look(empty_url, last_consumption))
        refunded = await ledger.post(command(refund(spent, "0.01"), key="refund of an old one"))
        assert refunded.posting.refund_of == ids.resolve("pst", spent)[1]  # type: ignore[index] # it is one
    assert findings(empty_url) == []


WALLETS = {ACME: "wal_acme", BETA: "wal_beta", TAKING: "wal_taking"}


def numbers(connection: Connection) -> list[tuple[int, int]]:
    """(wallet number, number) of every posting."""
    p = schema.postings.c
    rows = connection.execute(select(p.wallet_number, p.number).order_by(p.wallet_number, p.number))
    return [(wallet, number) for wallet, number in rows]


def last_consumption(connection: Connection) -> int:
    """The number of the last one of wal_acme."""
    p = schema.postings.c
    query = select(func.max(p.number)).where(p.wallet_number == ACME, p.operation == 2)
    found: int = connection.execute(query).scalar_one()
    return found


def forget_who_paid(connection: Connection) -> None:
    """The ledger as 0019 had it."""
    for name in ("draws", "payers", "returns"):
        connection.exec_driver_sql(f"DROP TABLE overdraft_{name}")
    for column in ("overdrawn", "repaid_to"):
        connection.exec_driver_sql(f"ALTER TABLE wallet_states DROP COLUMN {column}")
    connection.exec_driver_sql("ALTER TABLE grants DROP COLUMN returned")


async def test_who_paid_overdrafts_is_worked_out_from_the_rows(
    ledger: Ledger, store: Store, clock: Clock, database_url: str
) -> None:
    """What the ledger writes as it goes is what the migration finds in an older ledger."""
    keys = (f"k{number}" for number in count())

    async def post(operation: Operation) -> Posted:
        return await ledger.post(command(operation, key=next(keys)))

    await ledger.change(WalletChange("wal_acme", livemode=True, overdraft_limit="100"))
    spent = [await post(consume("3")) for _ in range(5)]
    await post(give("2", category=Category.PROMOTIONAL))
    await post(give("2", effective_at=clock.now + time.HOUR))
    await post(refund(posting_id(spent[2])))
    clock.advance(time.DAY)
    await post(refund(posting_id(spent[0]), "1"))
    await post(give("7"))
    await post(refund(posting_id(spent[4]), "2"))
    await post(refund(posting_id(spent[1])))
    await post(consume("50"))
    await ledger.close()
    await store.close()

    def line(connection: Connection) -> list[Any]:
        states = schema.wallet_states.c
        found = [connection.execute(select(states.overdrawn, states.repaid_to)).all()]
        tables = schema.overdraft_draws, schema.overdraft_payers
        found += [sorted(connection.execute(table.select()).all()) for table in tables]
        return found

    def again(connection: Connection) -> None:
        returns = connection.execute(schema.overdraft_returns.select()).all()
        forget_who_paid(connection)
        with Operations.context(MigrationContext.configure(connection)):
            import_module(f"{versions.__name__}.{WHO_PAID}").upgrade()
        for wallet, sequence in returns:
            row = {"wallet_number": wallet, "sequence": sequence}
            connection.execute(schema.overdraft_returns.insert().values(row))

    before = look(database_url, line)
    assert len(before[1]) == 6
    assert len(before[2]) == 4
    change(database_url, again)

    assert look(database_url, line) == before


async def test_running_periods_of_limits_get_their_ends(
    ledger: Ledger, store: Store, clock: Clock, database_url: str
) -> None:
    """0026 finds the ends that the ledger writes by itself, of periods of the calendar only."""
    zones = ("UTC", "America/New_York", "Pacific/Apia")
    for period, zone in product((Period.DAY, Period.WEEK, Period.MONTH), zones):
        await ledger.limit(SetLimit("wal_acme", True, "100", None, period, zone, None))
    await ledger.limit(SetLimit("wal_acme", True, "100", None, Period.ROLLING, None, 5))
    await ledger.limit(SetLimit("wal_acme", True, "100", None, Period.LIFETIME, None, None))
    await ledger.post(command(give("5"), key="1"))
    clock.advance(20 * time.DAY)
    await ledger.post(command(consume("2"), key="2"))
    await ledger.close()
    await store.close()

    def ends(connection: Connection) -> list[tuple[int, int, int | None]]:
        limits = schema.spend_limits.c
        query = select(limits.number, limits.counted_from, limits.counted_until)
        return [tuple(row) for row in connection.execute(query.order_by(limits.number))]

    def again(connection: Connection) -> None:
        for statement in WITHOUT_ENDS_OF_LIMITS:
            connection.exec_driver_sql(statement)
        with Operations.context(MigrationContext.configure(connection)):
            import_module(f"{versions.__name__}.0026_ends_of_limits").upgrade()

    before = look(database_url, definitions), look(database_url, ends)
    assert [until is None for _, _, until in before[1]] == [False] * 9 + [True] * 2
    change(database_url, again)

    assert (look(database_url, definitions), look(database_url, ends)) == before


def test_a_refund_that_lowered_what_others_owed_stays_as_booked() -> None:
    """The grant that had paid the refunded draw then paid the oldest draws that were owed."""
    line = import_module(f"{versions.__name__}.{WHO_PAID}").OverdraftLine(1)
    line.draw(sequence=1, posting=1, amount=5)
    line.draw(sequence=2, posting=2, amount=5)
    line.pay(grant=3, amount=5, row=3)

    line.give_back(sequence=4, posting=1, amount=4)

    assert line.payers == [(0, 5, 5, 3, 3), (5, 9, 4, 3, 4)]
    assert (line.drawn, line.repaid) == (10, 9)
    assert [forgiven for *_, forgiven in line.draws.values()] == [0, 0]


def test_a_refund_of_what_is_owed_is_gone_past() -> None:
    """The end of the refunded draw is forgiven, and later grants pay the other draws."""
    line = import_module(f"{versions.__name__}.{WHO_PAID}").OverdraftLine(1)
    for number in (1, 2, 3):
        line.draw(sequence=number, posting=number, amount=5)
    line.give_back(sequence=4, posting=2, amount=3)
    line.pay(grant=5, amount=8, row=5)

    assert line.payers == [(0, 11, 8, 5, 5)]
    line.give_back(sequence=6, posting=3, amount=4)
    assert (line.drawn, line.repaid) == (15, 15)
    assert [forgiven for *_, forgiven in line.draws.values()] == [0, 3, 4]
