"""`verify` finds nothing in a ledger that the ledger wrote, and names whatever was changed in it.

The ledger is written once, by the real committer; every damage is done by hand, with the database's
own guards off: to a copy of its file, or on a server in a transaction that is undone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from importlib import import_module
from itertools import count, pairwise
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Boolean, Integer, create_engine, delete, select, update
from sqlalchemy.exc import DBAPIError

from creditledger import store
from creditledger.api.auth import LOCAL
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.billing_periods import Bucket
from creditledger.domain.commands import GrantChange, SetLimit, Usage, WalletChange
from creditledger.domain.model import Category, Kind, Period, Status
from creditledger.domain.operations import (
    Capture,
    Consume,
    PlaceHold,
    Release,
    ReportEvent,
    Transfer,
    VoidGrant,
)
from creditledger.domain.webhook_events import EventType, Place, Secret
from creditledger.engine.ledger import Ledger
from creditledger.outlets.statements.compute import StatementPeriod, Statements
from creditledger.store import CannotOpen, Store, schema
from creditledger.store.postgres import database as postgres
from creditledger.store.sqlite import database as sqlite
from creditledger.store.verify import guards, statement_checks, stored_checks
from creditledger.store.verify import verification as verify_module
from creditledger.store.verify.passes import passes
from creditledger.store.verify.proofs import Proof, proofs, tables
from creditledger.store.verify.spelling import SPELLINGS
from creditledger.store.verify.verification import Verification, found_by, verify
from creditledger.store.webhooks import endpoints
from creditledger.store.webhooks import feed as webhook_feed
from creditledger.store.webhooks.feed import New
from tests.support.commands import PATIENCE_SECONDS
from tests.support.setup import (
    BACKDATING_MS_MAX,
    START,
    Clock,
    add_meter,
    add_subscription,
    add_wallet,
    adjust,
    change,
    command,
    consume,
    file_of,
    findings,
    finished,
    give,
    is_file,
    look,
    refund,
    sqlite_url,
)
from tests.support.sums_over_time import fold_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from sqlalchemy import Connection, MetaData

    from creditledger.domain.commands import Operation
    from creditledger.engine.batch import Posted
    from creditledger.store.verify.check import Finding

    Damaged = Callable[..., list[Finding]]

ACME, BETA, GIVING, TAKING, MANAGED, OWING = 1, 2, 4, 5, 6, 7
CHECKS = [name for one in passes(SPELLINGS["sqlite"]) for name in one.checks]
CHECKS += [*statement_checks.CHECKS, *stored_checks.CHECKS, *guards.CHECKS]


def metered(amount: str, *quantities: int) -> Consume:
    usage = Usage("apk_1", "prd_1", "Chat", "llm", 1, quantities, (1, 2), (1, 1), 1)
    return Consume(amount, usage=usage)


def wallets(connection: Connection) -> None:
    add_wallet(connection, "wal_acme", overdraft_limit=10 * 10**9)
    add_wallet(connection, "wal_beta", currency="CREDIT")
    add_wallet(connection, "wal_empty")
    for wallet_id in ("wal_giving", "wal_taking", "wal_managed", "wal_owing"):
        add_wallet(connection, wallet_id)
    add_meter(connection, "mtr_calls")
    add_meter(connection, "mtr_images")
    add_subscription(connection, "sub_plan", customer_id="cus_of_wal_beta")


async def story(ledger: Ledger, clock: Clock) -> None:
    """Grants, draws over several of them, overdraft, refunds, expiry; the rows each makes."""
    keys = iter(range(100))

    async def post(
        operation: Operation, wallet_id: str = "wal_acme", *, effective_at: int | None = None
    ) -> Posted:
        return await ledger.post(
            command(
                operation,
                key=f"key_{next(keys)}",
                wallet_id=wallet_id,
                effective_at=effective_at,
                backdating_free=True,
            )
        )

    async def limit(
        amount: str,
        period: Period,
        *,
        hours: int | None = None,
        key: str | None = None,
        wallet_id: str = "wal_acme",
    ) -> None:
        zone = "Asia/Kathmandu" if period is Period.MONTH else None
        await ledger.limit(SetLimit(wallet_id, True, amount, key, period, zone, hours))

    def posting_id(posted: Posted) -> str:
        return ids.compose("pst", posted.posting.wallet, posted.posting.number)

    def hold_id(posted: Posted) -> str:
        return ids.compose("hld", posted.posting.wallet, posted.posting.number)

    await limit("100", Period.MONTH, wallet_id="wal_beta")
    await limit("100", Period.LIFETIME)
    await limit("100", Period.ROLLING, hours=2, key="apk_1")
    await post(give("10", expires_at=START + time.HOUR))  # 1
    await post(give("5", kind=Kind.ADMIN_CREDIT, category=Category.PROMOTIONAL))  # 2
    await post(give("20", kind=Kind.ADMIN_CREDIT, category=Category.PROMOTIONAL), "wal_beta")
    await post(give("3", kind=Kind.SUBSCRIPTION_RENEW, effective_at=START + time.DAY))  # 3
    over_two_grants = await post(metered("12", 1000, 500))  # 4: −10 of 1, 5: −2 of 2
    await post(metered("0.5", 7), "wal_beta")
    overdrawn = await post(consume("6"), effective_at=-1)  # 6: −3 of 2, 7: −3 overdraft
    await post(refund(posting_id(over_two_grants), "1"))  # 8: +1 to 2
    await post(refund(posting_id(overdrawn)))  # 9: +3 overdraft, 10: +3 to 2
    await post(adjust("-1"))  # 11: −1 of 2
    await post(adjust("-50", force=True))  # 12: −3 of 2, 13: −47 overdraft
    await post(give("100", expires_at=START + 2 * time.HOUR))  # 14: of which 47 pay back
    await post(adjust("2"))  # 15
    await post(give("1"), "wal_owing")  # 1
    await post(give("5", expires_at=START + 2 * time.HOUR), "wal_owing")  # 2
    of_one = adjust("-8", credit_grant_id=ids.compose("cg", OWING, 1), force=True)
    await post(of_one, "wal_owing")  # 3: −1 of 1, 4: −7 overdraft
    await post(give("4", effective_at=START + time.HOUR), "wal_owing")  # 5
    clock.advance(3 * time.HOUR)
    await post(give("2"), "wal_owing")  # 6: after 5 paid 4 and 2 paid 3, −2 of 2; 7
    await post(metered("0.25", 1, 2, 3, 4, 5, 6))  # 16: 14 expires, 17: −0.25 of 15
    await post(refund(posting_id(over_two_grants)))  # 18: +1 to 2, 19: +10 to a grant of its own
    await post(consume("1"), "wal_beta", effective_at=START - time.DAY)
    await post(PlaceHold("0.5", None, None))  # of 2
    given_back = await post(PlaceHold("3", None, None))
    await post(Release(hold_id(given_back)))
    captured = await post(PlaceHold("2", None, None), "wal_beta")
    await post(Capture(hold_id(captured), "1.5", usage=metered("1", 3).usage), "wal_beta")
    await post(give("5"), "wal_giving")  # 1
    await post(give("1", category=Category.PROMOTIONAL), "wal_giving")  # 2
    await post(give("1", effective_at=START + time.DAY), "wal_giving")  # 3
    await post(Transfer("wal_taking", "2"), "wal_giving")  # 4: −1 of 2, 5: −1 of 1
    await post(Transfer("wal_taking", "1"), "wal_giving")  # 6
    await post(Transfer("wal_taking", "2"), "wal_giving")  # 7
    await post(ReportEvent("1", "mtr_calls"), "wal_beta")  # paid
    await post(ReportEvent("30", "mtr_calls", "sub_plan"), "wal_beta")  # paid in part
    await post(ReportEvent("2", "mtr_calls", "sub_plan"), "wal_beta")  # not at all
    await post(give("5"), "wal_beta")  # goes into the second
    await ledger.change(WalletChange("wal_empty", livemode=True, status=Status.CLOSED))
    await change_and_void(ledger, lambda operation: post(operation, "wal_managed"))


async def change_and_void(ledger: Ledger, post: Callable[[Operation], Awaitable[Posted]]) -> None:
    """A grant that comes first, is held in part and voided; one that was used up before that."""
    end = START + 9 * time.DAY
    for _ in range(4):
        await post(give("1"))
    await post(give("4", expires_at=end))  # 5
    welcome = ids.compose("cg", MANAGED, 5)
    change = GrantChange(
        "wal_managed", welcome, True, None, "Spring", 10, end + 1, False, {"a": "b"}
    )
    await ledger.change(change)
    held = await post(PlaceHold("1", None, None))
    await post(VoidGrant(welcome))  # 6: -3 of 5
    await ledger.change(replace(change, priority=None, expires_at=None, name="Summer"))
    await post(Release(ids.compose("hld", MANAGED, held.posting.number)))  # 7: -1 of 5
    await post(give("0.5", expires_at=end))  # 8
    await post(consume("0.5"))  # 9: -0.5 of 8
    await post(VoidGrant(ids.compose("cg", MANAGED, 8)))


def told(connection: Connection) -> None:
    """Of a row, a balance and a grant of wal_managed, an endpoint of its customer's."""
    endpoint = endpoints.create(
        connection,
        id_="whe_managed",
        customer_id="cus_of_wal_managed",
        livemode=True,
        secret=Secret("whsec_1"),
        now=START,
        terms={"url": "https://acme.invalid/", "events": "[1]", "expiring_days": 7},
    )
    told_of = ((EventType.TRANSACTION_CREATED, 9), (EventType.GRANT_EXPIRING, 5))
    new = [
        New(number, endpoint.number, Place(type_, MANAGED, subject), "{}", 0)
        for number, (type_, subject) in enumerate(told_of, 1)
    ]
    feed = webhook_feed.feed(connection)
    assert webhook_feed.make(connection, feed, feed._replace(made=len(new)), new, START)


async def written(url: str) -> None:
    clock = Clock()
    writing = Store(url, clock=clock)
    await writing.open()
    await writing.write(wallets)
    ledger = Ledger(
        writing,
        queue_max=100,
        backdating_ms_max=BACKDATING_MS_MAX,
        on_disk_failure=lambda: pytest.fail("the disk failed"),
    )
    await ledger.start()
    await story(ledger, clock)
    closing = Statements(writing, ledger, clock)
    for bucket in pairwise([START - time.DAY, START + time.HOUR, START + 2 * time.HOUR, clock.now]):
        await closing.close(
            StatementPeriod(
                "wal_acme", Bucket(*bucket), ZoneInfo("Asia/Kathmandu"), is_month=False
            ),
            LOCAL,
        )
    await ledger.close()
    await writing.derive(lambda connection: fold_all(connection, but=1))
    await writing.write(told)
    await writing.close()


@pytest.fixture(scope="module")
def ledger(new_database: Callable[[], str]) -> str:
    url = new_database()
    asyncio.run(written(url))
    return url


@pytest.fixture
def damaged(ledger: str, tmp_path: Path) -> Damaged:
    """What is found in the ledger after statements that nothing stops."""
    if is_file(ledger):
        return lambda *statements: damaged_file(file_of(ledger), tmp_path / "copy", statements)
    return lambda *statements: damaged_server(ledger, statements)


TRIGGERS = "SELECT sql FROM sqlite_master WHERE type = 'trigger'"


def damaged_file(file: Path, copy: Path, statements: Iterable[str]) -> list[Finding]:
    with closing(unguarded(file, copy)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
        with closing(sqlite3.connect(file)) as whole:
            guards_on = whole.execute(TRIGGERS).fetchall()
        for (guard,) in guards_on:
            connection.execute(guard)
        connection.commit()
    return findings(sqlite_url(copy))


def unguarded(file: Path, copy: Path) -> sqlite3.Connection:
    """A copy of a file that takes whatever is written to it."""
    connection = sqlite3.connect(shutil.copyfile(file, copy))
    connection.execute("PRAGMA ignore_check_constraints = ON")
    triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    for (name,) in triggers.fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    return connection


class Undone(Exception):
    """What was found; nothing of what led to it stays."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found


#: Triggers and references are off for who says so, checks of what is changed have to go.
_GUARDS_OFF = """DO $$ DECLARE c record; BEGIN
SET LOCAL session_replication_role = replica;
CREATE TEMP TABLE guards_off ON COMMIT DROP AS
    SELECT format('ALTER TABLE %s', conrelid::regclass) AS place, format('%I', conname) AS name,
           pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0
    AND position(conrelid::regclass::text in '{statements}') > 0;
FOR c IN SELECT * FROM guards_off LOOP
    EXECUTE c.place || ' DROP CONSTRAINT ' || c.name;
END LOOP; END $$"""


def guards_off(*changes: str) -> str:
    """What stops none of these changes of tables that they name."""
    return _GUARDS_OFF.replace("{statements}", " ".join(changes).replace("'", ""))


#: They come back as they were, whatever is in the tables by now.
GUARDS_ON = """DO $$ DECLARE c record; BEGIN
FOR c IN SELECT * FROM guards_off LOOP
    EXECUTE c.place || ' ADD CONSTRAINT ' || c.name || ' ' || c.definition || ' NOT VALID';
END LOOP;
SET LOCAL session_replication_role = origin; END $$"""


def damaged_server(url: str, statements: Iterable[str]) -> list[Finding]:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql(guards_off(*statements))
        for statement in statements:
            assert connection.exec_driver_sql(statement).rowcount > 0, statement
        connection.exec_driver_sql(GUARDS_ON)
        raise Undone(list(verify(connection)))

    with pytest.raises(Undone) as undone:
        change(url, work)
    return undone.value.found


def number(first_sequence: int, wallet: int = ACME) -> str:
    """The number of the posting whose first row this is."""
    return (
        f"(SELECT p.number FROM postings AS p"
        f" WHERE p.wallet_number = {wallet} AND p.first_sequence = {first_sequence})"
    )


def dropped_limit(number: int) -> str:
    """A spend limit of wal_acme that is said to be no more."""
    return (
        "INSERT INTO dropped_limits (wallet_number, number, amount, period, created_at, updated_at,"
        f" spent, held, dropped_at) VALUES ({ACME}, {number}, 1, 5, 0, 0, 0, 0, 0)"
    )


def change_key(subject: str, customer_id: str = "") -> str:
    """An idempotency key that says it changed this."""
    return (
        "INSERT INTO change_keys"
        " (customer_id, livemode, rpc, idempotency_key, request, created_at, subject)"
        f" VALUES ('{customer_id}', TRUE, 'A/B', 'one', '{{}}', 0, {subject})"
    )


def row(sequence: int, changed: str, wallet: int = ACME) -> str:
    return (
        f"UPDATE credit_transactions SET {changed}"
        f" WHERE wallet_number = {wallet} AND sequence = {sequence}"
    )


def posting(first_sequence: int, changed: str, wallet: int = ACME) -> str:
    return (
        f"UPDATE postings SET {changed}"
        f" WHERE wallet_number = {wallet} AND first_sequence = {first_sequence}"
    )


def grant(grant_number: int, changed: str) -> str:
    where = f"wallet_number = {ACME} AND number = {grant_number}"
    return f"UPDATE grants SET {changed} WHERE {where}"


def registered(changed: str) -> str:
    return f"UPDATE wallets SET {changed} WHERE number = {ACME}"


#: The number of wal_managed's hold.
HELD = f"(SELECT number FROM holds WHERE wallet_number = {MANAGED})"


def wallet(changed: str) -> str:
    return f"UPDATE wallet_states SET {changed} WHERE wallet_number = {ACME}"


def hold(changed: str, ended: str = "IS NULL") -> str:
    return f"UPDATE holds SET {changed} WHERE wallet_number = {ACME} AND ended {ended}"


def spend_limit(changed: str, period: int = 5) -> str:
    """A change of the limit for ever, or of the one of rolling hours."""
    return f"UPDATE spend_limits SET {changed} WHERE wallet_number = {ACME} AND period = {period}"


def delete_row(sequence: int) -> str:
    return f"DELETE FROM credit_transactions WHERE wallet_number = 1 AND sequence = {sequence}"


WITHOUT_ROWS = """INSERT INTO postings (number, wallet_number, operation, first_sequence, row_count)
    VALUES (99, 1, 2, 20, 1)"""

EXTRA_GRANT = """INSERT INTO grants
    SELECT 1, {}, 5, 0, 0, false, 1, 50, NULL, 1, NULL, 1, NULL, NULL, 0, 0, false, 1, NULL"""

EXTRA_FOLD = "INSERT INTO folds SELECT 1, 7, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0"

IN_A_FILE, ON_A_SERVER = pytest.mark.only("sqlite"), pytest.mark.only("postgresql")

#: (check, sequence in wal_acme, what is done to it). The first finding is about that row, and
#: the check is the first of those that find something there, unless said otherwise.
DAMAGES: list[Any] = [
    ("sequence", 2, (delete_row(1),)),
    ("sequence", 9, (delete_row(8),)),
    ("wallet_sequence", 19, (delete_row(19), "DELETE FROM grants WHERE number = 19",
                            posting(18, "row_count = 1"))),
    ("running_balance", 11, (row(11, "running_balance = running_balance + 1"),)),
    ("running_balance", 11, (row(11, "amount = amount - 1"),)),
    ("running_balance", 1, (row(1, "running_balance = 0"),)),
    ("created_at", 18, (row(17, "created_at = created_at + 1"),)),
    pytest.param("position", 5, (row(5, "position = -5"),), marks=IN_A_FILE),
    pytest.param("position", 8, (row(8, "written_in = CAST('3' AS xid8)"),), marks=ON_A_SERVER),
    pytest.param("position", 8, (row(7, "position = CAST('999999999' AS xid8)"),),
                 marks=ON_A_SERVER),
    ("posting", 8, (posting(8, "number = 0"), row(8, "posting_number = 0"))),
    ("posting", 11, (row(11, "posting_number = 999999999"),)),
    ("posting", 8, (row(8, f"posting_number = {number(6)}"),)),
    ("posting", 8, (row(8, f"posting_number = {number(3, BETA)}"),)),
    ("posting", 11, (f"DELETE FROM postings WHERE number = {number(11)}",)),
    ("posting", 7, (posting(6, "row_count = 1"),)),
    ("posting", 6, (posting(6, "first_sequence = 7, row_count = 1"),)),
    ("one_posting", 5, (row(5, "effective_at = created_at + 1"),)),
    ("one_posting", 5, (row(5, "dimension_number = 5"),)),
    ("one_posting", 10, (row(10, "created_at = created_at + 1"),)),
    ("kind", 8, (posting(8, "operation = 3"),)),
    ("kind", 17, (row(17, "kind = 7, kind_count = 2"),)),
    ("kind", 17, (row(17, "type = 3"),)),
    ("dimension", 11, (row(11, "dimension_number = 999"),)),
    ("dimension", 11, (row(11, "dimension_number = 1"),)),
    ("dimension", 6, (posting(6, "quantities = '[]'"),)),
    ("usage_count", 17, (row(17, "usage_count = usage_count + 1"),)),
    ("usage_amount", 17, (row(17, "usage_amount = usage_amount + 1"),)),
    ("usage_quantity", 17, (row(17, "usage_quantity = usage_quantity + 1"),)),
    ("usage_quantity", 5, (row(5, "usage_quantity = 3000"),)),
    ("usage_quantity", 4, (posting(4, "quantities = '[1000, 501]'"),)),
    ("usage_quantity", 4, (posting(4, "quantities = NULL"),)),
    ("unmetered_amount", 17, (row(17, "unmetered_amount = unmetered_amount + 1"),)),
    ("unmetered_amount", 6, ("UPDATE dimensions SET has_usage = true WHERE number = 5",)),
    ("grant", 11, (row(11, "grant_number = 999"),)),
    ("grant", 11, (row(11, "grant_number = 11"),)),
    ("grant", 5, (row(5, "grant_number = 14"),)),
    ("grant", 14, (row(14, "grant_number = NULL"),)),
    ("grant", 15, ("DELETE FROM grants WHERE number = 15",)),
    ("grant_origin", 3, (grant(3, "effective_at = effective_at - 1"),)),
    ("grant_origin", 19, (grant(19, "amount = amount + 1"),)),
    ("grant_time", 17, (grant(15, f"expires_at = {START + time.HOUR}"),)),
    ("grant_time", 5, (row(5, "grant_number = 3"),)),
    ("expiration", 16, (row(16, "effective_at = effective_at + 1"),)),
    ("expiration", 16, (grant(14, "expires_at = NULL"),)),
    ("expiration", 16, (grant(14, f"expires_at = {START + time.DAY}"),)),
    ("kind_count", 12, (row(12, "kind_count = 9"),)),
    ("kind_count", 1, (row(1, "kind_count = 2"),)),
    ("posting_rows", 11, (posting(11, "row_count = 2"),)),
    ("posting_rows", 20, (WITHOUT_ROWS,)),
    ("posting_shape", 11, (posting(11, "idempotency_key = NULL"),)),
    ("posting_shape", 16, (posting(16, "idempotency_key = 'expired'"),)),
    ("posting_shape", 11, (posting(11, f"refund_of = {number(4)}"),)),
    ("posting_shape", 8, (posting(8, "refund_of = NULL"),)),
    ("posting_shape", 11, (posting(11, "meter_event_id = 'event'"),)),
    ("posting_amount", 1, (posting(1, "amount = amount + 1"),)),
    ("posting_amount", 1, (posting(1, "amount = NULL"),)),
    ("posting_amount", 4, (posting(4, "amount = amount + 1"),)),
    ("posting_amount", 8, (posting(8, "amount = amount + 1"),)),
    ("posting_amount", 12, (posting(12, "amount = -amount"),)),
    ("posting_amount", 16, (posting(16, "amount = -53000000000"),)),
    ("refund_of", 8, (posting(8, f"refund_of = {number(1)}"),)),
    ("refund_of", 8, (posting(8, f"refund_of = {number(2, BETA)}"),)),
    ("refund_of", 8, (posting(8, f"refund_of = {number(17)}"),)),
    ("refund_of", 8, (posting(8, "refund_of = 999"),)),
    ("refund_total", 9, (posting(8, f"refund_of = {number(6)}"), row(8, "dimension_number = 7"))),
    ("refund_usage", 8, ("UPDATE dimensions SET product_id = 'prd_2' WHERE number = 6",)),
    ("refund_usage", 8, ("UPDATE dimensions SET base_prices = '[]' WHERE number = 6",)),
    ("grant_row", 99, (EXTRA_GRANT.format(99),)),
    ("grant_row", 11, (EXTRA_GRANT.format(11),)),
    ("grant_remaining", 2, (grant(2, "remaining = remaining + 1"),)),
    ("grant_remaining", 14, (grant(14, "overdraft_paid = overdraft_paid - 1"),)),
    ("grant_overdraft", 14, (grant(14, "scope = '{\"categories\":[\"none\"]}'"),)),
    ("row_scope", 5, (grant(2, "scope = '{\"categories\":[\"image\"]}'"),)),
    ("row_scope", 17, (grant(15, "scope = '{\"meter_ids\":[\"mtr_1\"]}'"),)),
    ("row_scope", 6, (grant(2, "scope = '{\"categories\":[\"llm\",\"x\"]}'"),)),
    ("row_scope", 11, (grant(2, "scope = '{\"categories\":[\"llm\"]}'"),
                       "UPDATE dimensions SET category = 'llm' WHERE number IN (5, 7)")),
    ("grant_open", 15, (grant(15, "open = false"),)),
    ("grant_bounds", 2, (row(13, "grant_number = 2"), grant(2, "remaining = -46000000000"))),
    ("grant_expired", 3, (grant(3, f"expires_at = {START + 2 * time.HOUR}"),)),
    ("grant_held", 2, (hold("parts = '[[2,9000000000]]'"),)),
    ("posting_hold", 0, (f"DELETE FROM hold_revisions WHERE wallet_number = {ACME}",)),
    ("hold_posting", None, (hold("amount = amount + 1"),)),
    ("hold_dimension", None, (hold("dimension_number = 999"),)),
    ("hold_dimension", None, (hold("dimension_number = 1"),)),
    ("hold_captured", None, (hold("captured = 1"), hold("captured = 1", "= 2"),
                             "UPDATE hold_revisions SET captured = 1 WHERE wallet_number = 1")),
    ("hold_revision", None, (hold("deadline = deadline + 1"),)),
    ("hold_revision", None, (hold("parts = '[]'"),)),
    ("hold_revision", None, (hold("ended = 1", "= 2"),)),
    ("revision_posting", None, (f"DELETE FROM holds WHERE wallet_number = {ACME} AND ended = 2",)),
    ("limit_made", None, (wallet("limits_made = 1"),)),
    ("limit_made", None, (spend_limit("since = 20"),)),
    ("limit_spent", None, (spend_limit("parts = '[]'"),)),
    ("limit_spent", None, (spend_limit("since = 17"),)),
    ("limit_spent", None, (spend_limit("api_key_id = 'apk_2'"),)),
    ("limit_spent", None, (spend_limit(f"counted_from = {START + time.DAY}", 4),)),
    ("limit_spent", None, (spend_limit("parts = '[[0,250000000]]'", 4),)),
    ("limit_period", None, (spend_limit(f"counted_until = {START + time.DAY}"),)),
    ("wallet_state", None, (f"DELETE FROM wallet_states WHERE wallet_number = {ACME}",)),
    ("wallet_currency", 19, (registered("currency = 'XXX'"),)),
    ("wallet_customer", 19, (registered("customer_id = 'cus_none'"),)),
    ("wallet_sequence", 18, (wallet("sequence = 18"),)),
    ("wallet_sequence", 20, (wallet("sequence = 20"),)),
    *(
        (f"wallet_{column}", 19, (wallet(f"{column} = {column} + 1"),))
        for column in (
            "posted_at",
            "moved_sequence",
            "running_balance",
            "usage_count",
            "usage_amount",
            "usage_quantity",
            "unmetered_amount",
            "topup_amount",
            "refund_amount",
            "credited_amount",
            *(f"{kind.word}_count" for kind in Kind if kind is not Kind.USAGE),
            "overdraft_used",
        )
    ),
    ("wallet_closed", 19, (wallet("status = 3"),)),
    ("wallet_closed_at", 19, (registered(f"closed_at = {START}"),)),
    ("wallet_closed_at", 19, (registered(f"closed_at = {START}"), wallet(f"updated_at = {START}"))),
    ("wallet_succession", 19, (registered("rows_before = 1"),)),
    ("wallet_succession", 19, (
        f"""UPDATE wallets SET customer_id = (SELECT o.customer_id FROM wallets AS o
        WHERE o.number = {ACME}) WHERE id = 'wal_empty'""",
    )),
    ("fold", None, ("DELETE FROM folds WHERE quarter = -1",)),
    ("fold_count", None, (EXTRA_FOLD,)),
    ("fold_count", None, ("UPDATE fold_ends SET sequence = sequence + 1",)),
    ("fold_end", None, ("UPDATE fold_ends SET sequence = sequence + 2",)),
    ("fold_count", None, ("UPDATE fold_ends SET sequence = sequence - 1",)),
    ("fold_count", None, ("DELETE FROM fold_ends",)),
    ("fold_created_count", None, ("DELETE FROM folds WHERE created_amount = -6000000000",)),
    ("day_fold", None, ("DELETE FROM day_folds WHERE quantity_5 = 6",)),
    ("day_fold_sums", None, ("UPDATE day_folds SET amount = amount + 1 WHERE quantity_5 = 6",)),
    ("day_fold_sums", None, ("UPDATE fold_ends SET has_days = NOT has_days",)),
    *(
        (f"fold_{name}", None, (f"UPDATE folds SET {name} = {name} + 1 WHERE quantity_5 = 6",))
        for name in schema.folds.columns.keys()[3:]
    ),
]  # fmt: skip


#: (check, sequence in wal_giving, what is done to the transfers).
TRANSFER_DAMAGES: list[Any] = [
    ("posting_shape", 6, (posting(6, "linked_wallet = NULL, linked_posting = NULL", GIVING),)),
    ("posting_shape", 6, (posting(6, "linked_wallet = NULL", GIVING),)),
    ("kind", 6, (posting(6, "operation = 2", GIVING),)),
    ("grant", 6, (row(6, "grant_number = NULL", GIVING),)),
    ("grant_time", 6, (row(6, "grant_number = 3", GIVING),)),
    ("transfer_link", 6, (posting(6, "linked_posting = 999", GIVING),)),
    ("transfer_link", 6, (posting(6, f"linked_posting = {number(4, TAKING)}", GIVING),)),
    ("transfer_wallets", 4, (f"UPDATE wallets SET livemode = false WHERE number = {GIVING}",)),
    ("transfer_wallets", 4, (f"UPDATE wallets SET currency = 'CNY' WHERE number = {GIVING}",)),
    ("transfer_category", 5, (
        f"UPDATE grants SET category = 2 WHERE wallet_number = {TAKING} AND number = 2",
    )),
    # Its wallet was not ahead of the other one.
    ("transfer_time", 6, (
        row(6, "created_at = created_at + 1", GIVING),
        row(7, "created_at = created_at + 1", GIVING),
        f"UPDATE wallet_states SET posted_at = posted_at + 1 WHERE wallet_number = {GIVING}",
    )),
    # Two transfers of which each has the other's other side.
    ("transfer_rows", 6, tuple(
        posting(mine, f"linked_posting = {number(theirs, of)}", wallet_number)
        for ours, others in ((6, 4), (7, 3))
        for mine, theirs, wallet_number, of in (
            (ours, others, GIVING, TAKING), (others, ours, TAKING, GIVING)
        )
    )),
]  # fmt: skip


def event(value: int, changed: str) -> str:
    return f"UPDATE meter_events SET {changed} WHERE value = {value}000000"


UNPAID_OTHERWISE = f"UPDATE wallet_states SET unpaid_amount = 1 WHERE wallet_number = {BETA}"
NUMBERED_OTHERWISE = (
    f"UPDATE wallet_states SET last_posting = last_posting - 1 WHERE wallet_number = {BETA}"
)

#: The same of the meter events, which are wal_beta's: these have no row to be named by.
EVENT_DAMAGES: list[tuple[str, tuple[str, ...]]] = [
    ("posting_event", (event(30, "identifier = 'another'"),)),
    ("posting_event", ("DELETE FROM meter_events WHERE value = 2000000",)),
    ("event_posting", (event(2, "value = 3000000, unpaid = 3000000"),)),
    ("event_posting", (event(2, "number = number + 1"),)),
    ("event_meter", (event(2, "meter_id = 'mtr_none'"),)),
    ("event_unpaid", (event(30, "unpaid = unpaid - 1"),)),
    ("event_unpaid", (event(1, "unpaid = 1, paid_at = NULL"),)),
    ("event_paid_at", (event(2, "paid_at = created_at"),)),
    ("event_paid_at", (event(1, "paid_at = created_at - 1"),)),
    ("event_dimension", (event(30, "meter_id = 'mtr_images'"),)),
    ("event_dimension", (event(30, "subscription_id = NULL"),)),
    ("event_canceled", (event(1, "canceled_at = paid_at"),)),
    ("event_canceled", (event(1, "return_below = 5"),)),
    ("wallet_unpaid_amount", (UNPAID_OTHERWISE,)),
    *(("limit_period", (f"UPDATE spend_limits SET {changed} WHERE wallet_number = {BETA}",))
      for changed in ("counted_until = NULL", "counted_until = counted_from",
                      f"counted_until = counted_from + {33 * time.DAY}")),
    ("limit_spent", (f"""UPDATE spend_limits SET counted_until = {START + time.HOUR}
        WHERE wallet_number = {BETA}""",)),
    ("limit_zone", (
        f"UPDATE spend_limits SET time_zone = 'Factory' WHERE wallet_number = {BETA}",
    )),
    ("wallet_last_posting", (NUMBERED_OTHERWISE,)),
    ("wallet_posted_at", (event(2, "created_at = created_at + 1"),)),
]  # fmt: skip


@pytest.mark.parametrize(("check", "statements"), EVENT_DAMAGES)
def test_a_damage_of_meter_events_is_named(
    damaged: Damaged, check: str, statements: tuple[str, ...]
) -> None:
    """What an event says of itself is what its postings and rows say."""
    found = damaged(*statements)

    assert check in [one.check for one in found]
    assert {one.wallet_id for one in found} == {"wal_beta"}


def delivery(type_: int, changed: str) -> str:
    return f"UPDATE webhook_deliveries SET {changed} WHERE type = {type_}"


def hook(changed: str) -> str:
    return f"UPDATE webhook_endpoints SET {changed}"


#: The same of what wal_managed's customer is told.
HOOK_DAMAGES: list[tuple[str, tuple[str, ...]]] = [
    ("delivery_subject", (delivery(1, "subject = 99"),)),
    ("delivery_subject", (delivery(4, "subject = 9"),)),
    # A hold that was given back, and none.
    ("delivery_subject", (delivery(1, f"type = 6, subject = {HELD}"),)),
    ("delivery_subject", (delivery(1, "type = 6"),)),
    ("delivery_endpoint", (delivery(1, "endpoint_number = 9"),)),
    ("delivery_endpoint", (hook("livemode = false"),)),
    ("delivery_endpoint", (hook("customer_id = 'cus_of_wal_acme'"),)),
    ("delivery_number", ("UPDATE webhook_feed SET made = 1",)),
    ("delivery_number", ("DELETE FROM webhook_feed",)),
]


@pytest.mark.parametrize(("check", "statements"), HOOK_DAMAGES)
def test_a_damage_of_webhooks_is_named(
    damaged: Damaged, check: str, statements: tuple[str, ...]
) -> None:
    """Nobody is told of what is not there, nor of a wallet that is not his to know of."""
    # What refers to nothing is told as that too.
    found = [one for one in damaged(*statements) if one.check != "reference"]

    assert {one.check for one in found} == {check}
    assert {one.wallet_id for one in found} == {"wal_managed"}


def test_a_ledger_that_the_ledger_wrote_has_nothing_wrong(ledger: str) -> None:
    """Grants, draws, overdraft, refunds, expiry, backdating before 1970: nothing is found."""
    assert findings(ledger) == []


@pytest.mark.parametrize(("check", "sequence", "statements"), DAMAGES)
def test_a_damage_is_named(
    damaged: Damaged, check: str, sequence: int | None, statements: tuple[str, ...]
) -> None:
    """The first finding says what is wrong, in which wallet, at which row."""
    first = damaged(*statements)[0]

    assert (first.check, first.wallet_id, first.wallet_number, first.sequence) == (
        check,
        "wal_acme",
        ACME,
        sequence,
    )


def test_a_capture_of_nothing_has_no_rows(damaged: Damaged) -> None:
    """A capture of 0 with rows is named, and so is one of an amount without rows."""
    first = damaged("UPDATE postings SET amount = 0 WHERE operation = 7")[0]
    assert (first.check, first.wallet_id, first.sequence) == ("posting_rows", "wal_beta", 4)

    none = "row_count = 0, first_sequence = 0, quantities = NULL"
    found = damaged(f"UPDATE postings SET {none} WHERE operation = 7")
    assert ("posting_rows", "wal_beta") in {(one.check, one.wallet_id) for one in found}


@pytest.mark.parametrize(("check", "sequence", "statements"), TRANSFER_DAMAGES)
def test_a_damage_of_a_transfer_is_named(
    damaged: Damaged, check: str, sequence: int, statements: tuple[str, ...]
) -> None:
    """The same of the wallet that sent credit."""
    found = damaged(*statements)

    ours = [one for one in found if one.wallet_number == GIVING]
    assert (ours[0].check, ours[0].wallet_id, ours[0].sequence) == (check, "wal_giving", sequence)


def terms_of(grant_number: int, changed: str) -> str:
    return (
        f"UPDATE grants SET {changed} WHERE wallet_number = {MANAGED} AND number = {grant_number}"
    )


def became(changed: str, where: str) -> str:
    return f"UPDATE grant_revisions SET {changed} WHERE wallet_number = {MANAGED} AND {where}"


FIRST, CHANGED = "grant_number = 5 AND number = 0", "grant_number = 5 AND number = 1"
VOIDED, AFTER = "grant_number = 5 AND number = 2", "grant_number = 5 AND number = 3"
#: The same of wal_managed, whose grants were changed and voided.
DAMAGED_TERMS: list[Any] = [
    ("expiration", 6, (row(6, "effective_at = created_at", MANAGED),)),
    ("expiration", 6, (terms_of(5, "voided_at = voided_at - 1"),)),
    ("expiration", 7, (row(7, "effective_at = created_at - 1", MANAGED),)),
    ("grant_time", 9, (terms_of(8, "voided_at = created_at - 1"),)),
    ("posting_void", 0, (became("posting_number = NULL", "grant_number = 8 AND number = 1"),)),
    ("posting_void", 6, (became("posting_number = 1", VOIDED),)),
    ("posting_rows", 6, (posting(6, "row_count = 2", MANAGED),)),
    ("posting_amount", 6, (posting(6, "amount = 1", MANAGED),)),
    ("grant_voided", 5, (terms_of(5, "expires_at = voided_at"),)),
    ("grant_voided", 8, (terms_of(8, "voided_at = voided_at + 1"),)),
    ("grant_revision", 5, (terms_of(5, "name = 'Autumn'"),)),
    ("grant_revision", 5, (terms_of(5, "priority = 11"),)),
    ("grant_revision", 5, (terms_of(5, "expires_at = NULL"),)),
    ("grant_revision", 1, (terms_of(1, "voided_at = 1"), terms_of(1, "remaining = 0"))),
    ("grant_revision", 5, (f"DELETE FROM grant_revisions WHERE {AFTER}",)),
    ("grant_history", 5, (f"DELETE FROM grant_revisions WHERE {FIRST}",)),
    ("grant_history", 5, (became("metadata = '{}'", FIRST),)),
    ("grant_history", 5, (became("created_at = created_at - 1", FIRST),)),
    ("grant_history", 5, (became("created_at = created_at - 1", CHANGED),)),
    ("grant_history", 5, (terms_of(5, "revision = 2"), became("name = 'Spring'", AFTER),
                          terms_of(5, "name = 'Spring'"))),
    ("revision_void", 5, (became("voided_at = created_at", CHANGED),)),
    ("revision_void", 5, (became("posting_number = 1", CHANGED),)),
    ("revision_void", 5, (became("created_at = created_at + 1", VOIDED),
                          became("created_at = created_at + 1", AFTER))),
]  # fmt: skip


@pytest.mark.parametrize(("check", "sequence", "statements"), DAMAGED_TERMS)
def test_a_damage_of_a_grant_s_terms_is_named(
    damaged: Damaged, check: str, sequence: int, statements: tuple[str, ...]
) -> None:
    """Something of what is found says what is wrong, of which grant."""
    found = damaged(*statements)

    assert (check, "wal_managed", MANAGED, sequence) in [
        (one.check, one.wallet_id, one.wallet_number, one.sequence) for one in found
    ]


def repaid(grant_number: int, changed: str) -> str:
    where = f"wallet_number = {OWING} AND grant_number = {grant_number}"
    return f"UPDATE grant_repayments SET {changed} WHERE {where}"


def owing(grant_number: int, changed: str) -> str:
    return f"UPDATE grants SET {changed} WHERE wallet_number = {OWING} AND number = {grant_number}"


def overdrawn(changed: str) -> str:
    return f"UPDATE overdraft_draws SET {changed} WHERE wallet_number = {OWING}"


def payer(grant_number: int, changed: str) -> str:
    where = f"wallet_number = {OWING} AND grant_number = {grant_number}"
    return f"UPDATE overdraft_payers SET {changed} WHERE {where}"


def state(changed: str) -> str:
    return f"UPDATE wallet_states SET {changed} WHERE wallet_number = {OWING}"


#: What is done to the repayments of wal_owing: of grant 5 as it began, of grant 2 as it ended.
DAMAGED_REPAYMENTS: list[tuple[str, int, tuple[str, ...]]] = [
    ("overdraft_row", 4, (overdrawn("amount = amount + 1"),)),
    ("overdraft_row", 4, (overdrawn("start = 1"),)),
    ("overdraft_row", 3, (overdrawn("sequence = 3"),)),
    ("overdraft_forgiven", 4, (overdrawn("forgiven = 1"),)),
    ("payer_place", 2, (payer(5, "until = until - 1, amount = amount - 1"),)),
    ("payer_place", 2, (payer(2, "amount = amount - 1"),)),
    ("payer_place", 2, (payer(2, "until = until + 1, amount = amount + 1"),)),
    ("payer_grant", 6, (payer(5, "grant_number = 6"),)),
    ("payer_grant", 5, (payer(5, "amount = amount - 1"),)),
    ("payer_row", 5, (payer(5, "row_sequence = 1"),)),
    ("payer_row", 5, (payer(5, "row_sequence = 99"),)),
    (
        "wallet_overdrawn",
        7,
        (
            f"DELETE FROM overdraft_draws WHERE wallet_number = {OWING}",
            state("overdrawn = 0, repaid_to = 0"),
        ),
    ),
    ("wallet_repaid_to", 7, (state("repaid_to = repaid_to - 1"),)),
    ("wallet_draws", 7, (f"DELETE FROM overdraft_draws WHERE wallet_number = {OWING}",)),
    (
        "wallet_payers",
        7,
        (
            f"""DELETE FROM overdraft_payers WHERE wallet_number = {OWING} AND start =
              (SELECT max(start) FROM overdraft_payers WHERE wallet_number = {OWING})""",
        ),
    ),
    ("grant_repaid", 5, (owing(5, "repaid = 0"),)),
    ("grant_repaid", 2, (repaid(2, "amount = amount - 1"),)),
    ("grant_repaid", 2, (f"DELETE FROM grant_repayments WHERE wallet_number = {OWING}",)),
    ("grant_remaining", 5, (owing(5, "remaining = 1, open = true"),)),
    ("grant_overdraft", 5, (owing(5, 'scope = \'{"categories":["none"]}\''),)),
    ("repayment_grant", 5, (repaid(5, "start = 1"),)),
    ("repayment_grant", 9, (repaid(5, "grant_number = 9"),)),
    ("repayment_time", 5, (repaid(5, "repaid_at = repaid_at - 1"),)),
    ("repayment_time", 2, (repaid(2, "repaid_at = repaid_at + 1"),)),
    ("repayment_time", 2, (repaid(2, "sequence = 99"),)),
    ("repayment_time", 5, ("UPDATE wallets SET repays_from = 1790003600000 WHERE number = 7",)),
]


@pytest.mark.parametrize(("check", "sequence", "statements"), DAMAGED_REPAYMENTS)
def test_a_damage_of_repayments_is_named(
    damaged: Damaged, check: str, sequence: int, statements: tuple[str, ...]
) -> None:
    """A finding says which grant did not repay so much, or not at that moment."""
    found = damaged(*statements)

    assert (check, "wal_owing", OWING, sequence) in [
        (one.check, one.wallet_id, one.wallet_number, one.sequence) for one in found
    ]


def statement(statement_number: int, changed: str) -> str:
    where = f"wallet_number = {ACME} AND number = {statement_number}"
    return f"UPDATE statements SET {changed} WHERE {where}"


def reworded(statement_number: int, word: str, other: str) -> str:
    return statement(statement_number, f"content = replace(content, '{word}', '{other}')")


#: (check, what is done to the three statements of wal_acme).
STATEMENT_DAMAGES: list[tuple[str, tuple[str, ...]]] = [
    ("statement_chain", (statement(2, "starts_at = starts_at + 1"),)),
    ("statement_chain", (statement(2, "closed_sequence = 20"),)),
    ("statement_chain", (f"DELETE FROM statements WHERE wallet_number = {ACME} AND number = 1",)),
    ("statement_chain", (statement(3, "opening_balance = opening_balance + 1"),)),
    ("statement_chain", (statement(3, "wallet_number = 99"),)),
    ("statement_digest", (statement(3, "content = content || ' '"),)),
    ("statement_digest", (statement(3, "sha256 = '00'"),)),
    ("statement_content", (statement(3, "closing_balance = closing_balance + 1"),)),
    ("statement_content", (statement(3, "closed_at = closed_at + 1"),)),
    ("statement_content", (statement(3, "time_zone = 'UTC'"),)),
    ("statement_content", (statement(2, "sha256 = '00'"),)),
    ("statement_content", (statement(3, "content = '[]'"),)),
    ("statement_figures", (reworded(1, '"usage"', '"refund"'),)),
    ("statement_figures", (reworded(1, '"apk_1"', '"apk_2"'),)),
    ("statement_figures", (reworded(1, '"paid"', '"gift"'),)),
    ("statement_figures", (reworded(1, '"calls":"1"', '"calls":"2"'),)),
    ("statement_figures", (reworded(1, '"quantity":"1500"', '"quantity":"1501"'),)),
    ("statement_figures", (reworded(3, '"by_product"', '"by_nothing"'),)),
    ("statement_figures", (row(4, f"effective_at = {START + time.HOUR}"),)),
    ("statement_figures", (grant(14, "overdraft_paid = overdraft_paid - 1"),)),
]  # fmt: skip


@pytest.mark.parametrize(("check", "statements"), STATEMENT_DAMAGES)
def test_a_damage_of_a_statement_is_named(
    damaged: Damaged, check: str, statements: tuple[str, ...]
) -> None:
    """A statement goes on where the last one ended, has its digest, and says what its rows do."""
    found = damaged(*statements)

    assert check in [one.check for one in found]
    assert {one.wallet_number for one in found} <= {ACME, 99}


#: wal_acme's hold that was given back, as it was made.
GIVEN_BACK = f"""wallet_number = {ACME} AND posting_number = hold_number AND hold_number =
    (SELECT number FROM holds WHERE wallet_number = {ACME} AND ended = 2)"""

#: (check, what is done to what was asked for, what came before, or what is stored beside it).
STORED_DAMAGES: list[Any] = [
    ("given_terms", (grant(1, "priority = 7"),)),
    ("given_terms", (grant(1, "name = 'x'"),)),
    ("given_terms", (grant(2, "category = 1"),)),
    ("given_terms", (grant(3, "expires_at = 9999999999999"),)),
    ("given_terms", (grant(2, "scope = '{\"categories\":[\"llm\"]}'"),)),
    ("given_terms", (posting(1, "terms = NULL"),)),
    ("given_source", (posting(1, "source = '{\"receipt_id\":\"another\"}'"),)),
    ("hold_begun", (f"UPDATE hold_revisions SET beyond = 1 WHERE {GIVEN_BACK}",)),
    ("hold_begun", (hold("created_at = created_at - 1"),)),
    ("hold_step", (f"UPDATE hold_revisions SET deadline = deadline + 1 WHERE {GIVEN_BACK}",)),
    ("refund_source", (row(8, "grant_number = 15"),)),
    ("refund_source", (row(9, "grant_number = 3"),
                       row(6, "grant_number = 2"), row(7, "grant_number = 2"))),
    ("burn_order", (grant(2, "priority = 10"),)),
    ("reference", ("DELETE FROM subscriptions",)),
    ("reference", (posting(1, "posted_by = 99"),)),
    ("subscription_owner", ("UPDATE subscriptions SET customer_id = 'cus_of_wal_acme'",)),
    ("column_check", (spend_limit("hours = 0", 4),)),
    ("column_check", ("UPDATE spend_limits SET time_zone = NULL WHERE period = 3",)),
    pytest.param("whole_number", ("UPDATE folds SET amount = 0.5 WHERE quantity_5 = 6",),
                 marks=IN_A_FILE),
    ("dimension_digest", ("UPDATE dimensions SET product_name = 'X' WHERE product_id = 'prd_1'",)),
    ("dimension_digest", ("UPDATE dimensions SET base_prices = '[3]' WHERE has_usage",)),
    ("change_key", (change_key("'cus_none'"),)),
    ("change_key", (change_key("NULL"),)),
    ("change_key", (change_key("'cus_of_wal_acme'", "cus_none"),)),
    ("dropped_limit", (dropped_limit(1),)),
    ("dropped_limit", (dropped_limit(9),)),
    ("refund_named", (posting(8, "terms = NULL"),)),
    ("refund_named", (posting(8, "terms = '{\"refund.posting_id\":\"pst_1\"}'"),)),
]  # fmt: skip


@pytest.mark.parametrize(("check", "statements"), STORED_DAMAGES)
def test_a_damage_of_what_is_stored_is_named(
    damaged: Damaged, check: str, statements: tuple[str, ...]
) -> None:
    """Changed requests, earlier states and references are named."""
    assert check in [one.check for one in damaged(*statements)]


#: (check, what is done to a file, what is done to a server).
GUARD_DAMAGES = [
    (
        "guard_trigger",
        "DROP TRIGGER postings_no_delete",
        "DROP TRIGGER postings_no_delete ON postings",
    ),
    (
        "guard_trigger",
        "DROP TRIGGER credit_transactions_no_update",
        "ALTER TABLE credit_transactions DISABLE TRIGGER credit_transactions_no_update",
    ),
    (
        "guard_trigger",
        "DROP TRIGGER statements_no_update",
        "ALTER TABLE statements ENABLE REPLICA TRIGGER statements_no_update",
    ),
    ("guard_index", "DROP INDEX grants_open", "DROP INDEX grants_open"),
    (
        "guard_constraint",
        "UPDATE sqlite_master SET sql = replace(sql, 'CONSTRAINT grants_remaining_check', '')",
        "ALTER TABLE grants DROP CONSTRAINT grants_remaining_check",
    ),
]


@pytest.mark.parametrize(("check", "of_file", "of_server"), GUARD_DAMAGES)
def test_a_guard_that_is_gone_is_named(
    ledger: str, tmp_path: Path, check: str, of_file: str, of_server: str
) -> None:
    """A missing or disabled trigger, constraint or index is named, and nothing else."""
    if is_file(ledger):
        copy = shutil.copyfile(file_of(ledger), tmp_path / "copy")
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(of_file)
            connection.commit()
        found = findings(sqlite_url(copy))
    else:

        def work(connection: Connection) -> None:
            connection.exec_driver_sql(of_server)
            raise Undone(list(verify(connection)))

        with pytest.raises(Undone) as undone:
            change(ledger, work)
        found = undone.value.found

    assert {one.check for one in found} == {check}


def test_a_row_of_no_wallet_is_named(damaged: Damaged) -> None:
    """A row whose wallet does not exist is found under the number that it has."""
    found = damaged(row(3, "wallet_number = 99", BETA))

    assert ("row_wallet", None, 99, 3) in [
        (one.check, one.wallet_id, one.wallet_number, one.sequence) for one in found
    ]


def test_credit_that_grants_do_not_have_is_named(damaged: Damaged) -> None:
    """A wallet's balance is what its grants have less its overdraft, whatever else agrees."""
    found = damaged(grant(2, "remaining = remaining - 1"))

    assert [one.check for one in found] == ["grant_remaining", "wallet_credit"]


def test_another_wallet_is_not_suspected(damaged: Damaged) -> None:
    """Findings name the damaged wallet only."""
    found = damaged(row(2, "running_balance = 0", BETA))

    assert {(one.wallet_id, one.wallet_number) for one in found} == {("wal_beta", BETA)}
    assert [(one.check, one.sequence) for one in found[:2]] == [
        ("running_balance", 2),
        ("running_balance", 3),
    ]


def test_findings_say_what_is_there_and_what_should_be(damaged: Damaged) -> None:
    """A message holds both figures."""
    found, and_so = damaged(wallet("refund_count = 7"))

    # The schema's own check of the counters, which the damage went past, is broken with it.
    assert and_so.check == "column_check"
    assert found.message == "refund_count is 7, not 5"


def test_every_check_has_a_damage() -> None:
    """No check is there that nothing has shown to find something."""
    listed = [getattr(one, "values", one) for one in (*DAMAGES, *TRANSFER_DAMAGES, *DAMAGED_TERMS)]
    listed += [*EVENT_DAMAGES, *HOOK_DAMAGES, *STATEMENT_DAMAGES, *DAMAGED_REPAYMENTS]
    listed += [*GUARD_DAMAGES, *(getattr(one, "values", one) for one in STORED_DAMAGES)]
    shown = {check for check, *_ in listed} | {"row_wallet", "wallet_credit"}
    # They import this file, so they are looked up only here.
    for name in ("test_open_grants", "test_receipt_used"):
        shown |= set(import_module(f"tests.surfaces.{name}").DAMAGES.values())

    assert set(CHECKS) == shown
    assert len(CHECKS) == len(set(CHECKS))


def disagreements(connection: Connection, tables: MetaData, name: str) -> list[str]:
    """Changes of a table's rows that proofs find nothing wrong with and passes do, or vice versa.

    Of a few rows every column is changed, in a few ways, and each is deleted.
    """
    table, found = tables.tables[name], []
    keys = connection.execute(select(*table.primary_key).order_by(*table.primary_key)).all()
    # The statements are the same for both; on a server they take ten times as long.
    rows_max = 6 if connection.dialect.name == "sqlite" else 3
    for key in Random(name).sample(keys, min(rows_max, len(keys))):
        chosen = [column == value for column, value in zip(table.primary_key, key, strict=True)]
        changes: list[Any] = [delete(table).where(*chosen)]
        for column in table.columns:
            if isinstance(column.type, Boolean):
                others: list[Any] = [~column]
            else:
                others = [column + 1, -column] if isinstance(column.type, Integer) else ["[7]"]
            others += [None] if column.nullable else []
            changes += [update(table).where(*chosen).values({column: other}) for other in others]
        for statement in changes:
            savepoint = connection.begin_nested()
            # What no column can hold is no damage.
            with suppress(DBAPIError):
                connection.execute(statement)
                if proofs_fail(connection) is not passes_find(connection):
                    found.append(f"{key}: {statement} {statement.compile().params}")
            savepoint.rollback()
    return found


def proofs_fail(connection: Connection) -> bool:
    run = Verification()
    run.prove(connection)
    return run.failed


def passes_find(connection: Connection) -> bool:
    try:
        with connection.begin_nested():
            every = passes(SPELLINGS[connection.dialect.name])
            return any(True for one in every for _ in found_by(connection, one)) or any(
                (*statement_checks.found(connection), *stored_checks.found(connection))
            )
    except DBAPIError:
        return True  # a figure or text that it cannot work with


@pytest.mark.parametrize(
    "name",
    [
        *("wallets", "wallet_states", "dimensions", "grants", "folds", "day_folds"),
        *("postings", "credit_transactions", "holds", "hold_revisions", "meter_events"),
        "spend_limits",
        *("grant_revisions", "statements"),
    ],
)
def test_proofs_fail_where_and_only_where_passes_find(
    ledger: str, tmp_path: Path, name: str
) -> None:
    """Whatever is changed, the short way learns what the long way does."""
    if is_file(ledger):
        copy = tmp_path / "copy"
        engine = create_engine("sqlite://", creator=lambda: unguarded(file_of(ledger), copy))
        with engine.connect() as connection:
            assert disagreements(connection, schema.metadata, name) == []
        return

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(guards_off(name))
        raise Undone(disagreements(connection, schema.postgresql, name))

    with pytest.raises(Undone) as undone:
        change(ledger, work)
    assert undone.value.found == []


def test_a_proof_without_rows_to_look_at_holds(ledger: str, tmp_path: Path) -> None:
    """A check may be left out only where the tables that it is about are empty."""

    def failing(connection: Connection) -> list[str]:
        kind, failed = connection.dialect.name, []
        for proof in proofs(kind):
            savepoint = connection.begin_nested()
            for table in proof.about or ():
                connection.exec_driver_sql(f"DELETE FROM {table}")
            everything = frozenset(tables(kind)) - frozenset(proof.about or ())
            if not verify_module.holds(connection, proof, everything):
                failed.append(proof.name)
            savepoint.rollback()
        return failed

    def work(connection: Connection) -> None:
        connection.exec_driver_sql(guards_off())
        raise Undone(failing(connection))

    if is_file(ledger):
        copy = tmp_path / "copy"
        engine = create_engine("sqlite://", creator=lambda: unguarded(file_of(ledger), copy))
        with engine.connect() as connection:
            assert failing(connection) == []
        return
    with pytest.raises(Undone) as undone:
        change(ledger, work)
    assert undone.value.found == []


def test_passes_find_nothing_in_a_ledger_that_the_ledger_wrote(ledger: str) -> None:
    """They run only when a proof has failed, so here by themselves."""
    assert not look(ledger, passes_find)


def test_progress_is_told_proof_by_proof(ledger: str) -> None:
    """Each proof is announced as it begins; memory lent to it is given back."""
    told: list[tuple[str, int, int]] = []

    def memory(connection: Connection) -> Any:
        lent = "PRAGMA cache_size" if is_file(ledger) else "SHOW work_mem"
        return connection.exec_driver_sql(lent).scalar_one()

    def work(connection: Connection) -> tuple[Any, list[Finding], Any]:
        before = memory(connection)
        found = list(verify(connection, on_progress=lambda *step: told.append(step)))
        return before, found, memory(connection)

    before, found, after = look(ledger, work)

    assert found == []
    every = proofs("sqlite" if is_file(ledger) else "postgresql")
    assert told == [(one.name, done, len(every)) for done, one in enumerate(every)]
    assert before == after


def count_wallets(connection: Connection) -> int:
    found: int = connection.exec_driver_sql("SELECT count(*) FROM wallets").scalar_one()
    return found


def test_who_looks_together_sees_one_snapshot(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connections, and whatever is written meanwhile."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(postgres, "TOGETHER_MAX", 3)
    url, ids_, seen = new_database(), count(), list[int]()
    change(url, lambda connection: add_wallet(connection, "wal_first"))

    def each(connection: Connection) -> None:
        change(url, lambda other: add_wallet(other, f"wal_{next(ids_)}"))
        seen.append(count_wallets(connection))

    last = finished(store.look_together(url, each, count_wallets))

    assert (seen, last) == ([1, 1, 1], 1)
    assert look(url, count_wallets) == 4


@pytest.mark.only("sqlite")
def test_who_is_written_to_while_it_begins_begins_anew(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file has no snapshots to share, so they begin until none was written in between."""
    versions = iter([1, 2, 3, 3])
    monkeypatch.setattr(sqlite, "_version", lambda _driver: next(versions))
    url = new_database()

    assert finished(store.look_together(url, lambda _: None, count_wallets)) == 0
    assert list(versions) == []


def test_an_error_of_one_who_looks_ends_the_others(new_database: Callable[[], str]) -> None:
    """It is told as it is, not as one of several."""
    url = new_database()

    def each(_connection: Connection) -> None:
        raise Undone([])

    with pytest.raises(Undone):
        finished(store.look_together(url, each, count_wallets))


@pytest.mark.only("sqlite")
def test_what_one_connection_finds_is_not_lost(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof that holds and ends later does not undo one that failed beside it."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one_has_failed = Event()

    def ends_later(_connection: Connection, _filled: object) -> bool:
        return one_has_failed.wait(PATIENCE_SECONDS)

    def fails(_connection: Connection, _filled: object) -> bool:
        return False

    made = tuple(Proof(run.__name__, (), None, holds=run) for run in (ends_later, fails))
    monkeypatch.setattr(verify_module, "proofs", lambda _dialect: made)
    run = Verification()

    def each(connection: Connection) -> None:
        run.prove(connection)
        one_has_failed.set()

    finished(store.look_together(new_database(), each, count_wallets))

    assert run.failed


def test_what_befell_a_proof_is_told(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof that cannot be made is no finding where the passes find nothing."""
    monkeypatch.setattr(
        verify_module, "proofs", lambda _dialect: (Proof("none", ("SELECT x",), None),)
    )

    with pytest.raises((CannotOpen, DBAPIError)):
        findings(ledger)
