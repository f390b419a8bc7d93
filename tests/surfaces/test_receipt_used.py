"""A payment's receipt is credited once in a wallet, whatever the keys it is sent under."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.credit_transaction_pb2 import TransactionSource

from creditledger.domain import ids
from creditledger.domain.errors import ReceiptUsed
from creditledger.domain.model import Category, Kind
from creditledger.domain.operations import VoidGrant
from creditledger.store import schema
from creditledger.store.migrations import versions
from creditledger.store.receipts import RepeatedReceipt, repeated_receipts
from tests.store.test_verify import damaged_file, damaged_server
from tests.support.commands import creditledger
from tests.support.refusals import Refused, refused
from tests.support.server import grant, post
from tests.support.setup import (
    Clock,
    change,
    command,
    consume,
    file_of,
    findings,
    give,
    is_file,
    look,
    opened,
    posting_id,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from creditledger.domain.commands import Command
    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.server import Api

MIGRATION = "0019_receipts"


def paid(receipt_id: str | None, provider: str | None = "stripe", **fields: Any) -> dict[str, Any]:
    """A grant of 5 for this receipt, as fields of a posting."""
    source = TransactionSource(provider=provider, receipt_id=receipt_id)
    return grant("5", source=source, **fields)


def used(posting: pb.Posting) -> Refused:
    """The refusal of a receipt that this posting credited."""
    return Refused("RECEIPT_USED", "grant.source.receipt_id", {"posting_id": posting.posting_id})


async def test_a_receipt_is_credited_once(api: Api) -> None:
    """Under another key it is refused, naming the posting; under the same key it is a replay."""
    first = await api.post("webhook 1", **paid("ch_1"))

    assert await refused(api.post("webhook 2", **paid("ch_1"))) == used(first)
    assert await refused(api.post("renew", **paid("ch_1", kind="subscription_renew"))) == used(
        first
    )
    dry = api.wallets.Post(post("dry", **paid("ch_1"), validate_only=True), metadata=api.service)
    assert await refused(dry) == used(first)
    assert (await api.post("webhook 1", **paid("ch_1"))).replayed
    assert (await api.wallet_now()).balance == "5.00"


async def test_what_is_another_receipt(api: Api) -> None:
    """Another provider, no provider, another wallet, or an unpaid grant is another receipt."""
    await api.local.new_wallet("wal_other", "cus_other")
    await api.post("first", **paid("ch_1"))
    for key, fields in {
        "provider": paid("ch_1", "paypal"),
        "no provider": paid("ch_1", None),
        "letters": paid("CH_1"),
        "no receipt": paid(None),
        "none again": paid(None),
        "bonus": paid("ch_1", category="promotional"),
        "bonus again": paid("ch_1", category="promotional"),
    }.items():
        await api.post(key, **fields)
    await api.post("other", "wal_other", **paid("ch_1"))

    again = await refused(api.post("no provider again", **paid("ch_1", None)))
    assert again.reason == "RECEIPT_USED"
    assert (await api.wallet_now()).balance == "40.00"


async def test_a_receipt_within_a_batch(api: Api) -> None:
    """The first sound posting of a batch has the receipt; refused and dry ones do not."""
    dry = post("dry", **paid("ch_1"), validate_only=True)
    over = post(
        "over",
        grant=pb.GrantOperation(
            amount="1",
            source=TransactionSource(provider="stripe", receipt_id="ch_1"),
            expires_at="2001-01-01T00:00:00Z",
        ),
    )
    fates = await api.batch([dry, over, *(post(f"k{n}", **paid("ch_1")) for n in range(3))])

    assert fates[2] != ""
    assert isinstance(fates[2], str)
    expected = Refused("RECEIPT_USED", "grant.source.receipt_id", {"posting_id": fates[2]})
    assert fates[3:] == [expected, expected]
    assert (await api.wallet_now()).balance == "5.00"


async def test_a_receipt_by_many_at_once(api: Api) -> None:
    """Of twenty deliveries of one webhook at the same time, one credits the receipt."""
    calls = [api.post(f"delivery {n}", **paid("ch_1")) for n in range(20)]
    fates = await asyncio.gather(*calls, return_exceptions=True)

    assert len([one for one in fates if not isinstance(one, BaseException)]) == 1
    assert (await api.wallet_now()).balance == "5.00"


async def void(api: Api, key: str, posting: pb.Posting) -> None:
    """Take the posting's grant back."""
    request = grants_pb.CreditGrantServiceVoidRequest(
        id=posting.transactions[0].credit_grant_id, idempotency_key=key
    )
    await api.grants.Void(request, metadata=api.service)


async def test_a_voided_grant_frees_its_receipt(api: Api) -> None:
    """After a void the receipt can be credited once more; a repeated one still uses it."""
    first = await api.post("first", **paid("ch_1"))
    await void(api, "void", first)
    second = await api.post("second", **paid("ch_1"))
    assert await refused(api.post("third", **paid("ch_1"))) == used(second)

    repeated = await api.post("repeated", **paid("ch_1", allow_repeated_receipt=True))
    await void(api, "void second", second)
    assert await refused(api.post("third", **paid("ch_1"))) == used(repeated)
    await void(api, "void repeated", repeated)
    await api.post("third", **paid("ch_1"))
    assert (await api.wallet_now()).balance == "5.00"


async def test_a_receipt_may_be_repeated_on_purpose(api: Api, database_url: str) -> None:
    """`allow_repeated_receipt` credits it again and is part of the compared request."""
    await api.post("first", **paid("ch_1"))
    fields = paid("ch_1", allow_repeated_receipt=True)
    await api.post("rest", **fields)

    assert (await api.post("rest", **fields)).replayed
    other = await refused(api.post("rest", **paid("ch_1")))
    assert (other.reason, other.metadata) == (
        "IDEMPOTENCY_KEY_REUSED",
        {"fields": "grant.allow_repeated_receipt"},
    )
    alone = await api.post("alone", **paid("ch_2", allow_repeated_receipt=True))
    assert await refused(api.post("again", **paid("ch_2"))) == used(alone)
    assert look(database_url, repeated_receipts) == []


async def test_receipts_that_were_repeated_before(
    ledger: Ledger, store: Store, database_url: str
) -> None:
    """An older ledger keeps its duplicates, `verify` lists them, and no more of them come."""

    def giving(key: str, **fields: Any) -> Command:
        source = {"provider": "stripe", "receipt_id": "ch_1"}
        return command(replace(give("5"), **{"source": source, **fields}), key=key)

    def forget(connection: Connection) -> None:
        connection.execute(schema.receipts.delete())

    async def posted(key: str, **fields: Any) -> Posted:
        answer = await ledger.post(giving(key, **fields))
        await store.write(forget)
        return answer

    first, again = await posted("first"), await posted("again")
    renewed = await posted("renewed", kind=Kind.SUBSCRIPTION_RENEW)
    wrong = await posted("wrong")
    await posted("bonus", category=Category.PROMOTIONAL)
    await posted("alone", source={"receipt_id": "ch_1"})
    grant_id = ids.compose("cg", 1, wrong.posting.rows[0].sequence)
    await ledger.post(command(VoidGrant(grant_id), key="void"))
    await ledger.close()
    await store.close()

    def migrate(connection: Connection) -> None:
        schema.receipts.drop(connection)
        with Operations.context(MigrationContext.configure(connection)):
            import_module(f"{versions.__name__}.{MIGRATION}").upgrade()

    change(database_url, migrate)

    assert findings(database_url) == []
    assert look(database_url, repeated_receipts) == [
        RepeatedReceipt(
            "wal_acme", "stripe", "ch_1", tuple(map(posting_id, (first, again, renewed)))
        )
    ]
    words = creditledger("verify", "--database-url", database_url)
    said = creditledger("verify", "--json", "--database-url", database_url)
    assert (words.returncode, said.returncode) == (0, 0)
    assert all(posting_id(one) in words.stdout for one in (first, again, renewed))
    assert json.loads(said.stdout)["repeated_receipts"] == [
        {
            "wallet_id": "wal_acme",
            "provider": "stripe",
            "receipt_id": "ch_1",
            "posting_ids": [posting_id(one) for one in (first, again, renewed)],
        }
    ]
    async with opened(database_url, Clock()) as (_, later):
        with pytest.raises(ReceiptUsed) as refusal:
            await later.post(giving("more"))
        assert refusal.value.metadata == {"posting_id": posting_id(first)}
        for key, one in (("void 1", first), ("void 2", again), ("void 3", renewed)):
            grant_id = ids.compose("cg", 1, one.posting.rows[0].sequence)
            await later.post(command(VoidGrant(grant_id), key=key))
        await later.post(giving("more"))
    assert look(database_url, repeated_receipts) == []


#: How a receipt is damaged, and the check that says so. Row 1 gave a grant for it, row 2 a bonus.
DAMAGES = {
    "DELETE FROM receipts": "receipt",
    "UPDATE receipts SET receipt_id = 'ch_2'": "receipt",
    "UPDATE receipts SET provider = ''": "receipt",
    "UPDATE receipts SET grant_number = 2": "receipt",
    "UPDATE grants SET voided_at = created_at WHERE number = 1": "receipt",
    "INSERT INTO receipts SELECT wallet_number, 2, 'x', receipt_id, 0 FROM receipts": "receipt",
    "INSERT INTO receipts SELECT wallet_number, 3, 'x', receipt_id, 0 FROM receipts": "receipt_row",
    "INSERT INTO receipts SELECT wallet_number, 9, 'x', receipt_id, 0 FROM receipts": "receipt_row",
}


async def test_verify_names_a_receipt_that_is_wrong(
    ledger: Ledger, store: Store, database_url: str, tmp_path: Path
) -> None:
    """A receipt without its grant is named, and a grant without its receipt."""
    source = {"provider": "stripe", "receipt_id": "ch_1"}
    await ledger.post(command(replace(give("5"), source=source), key="paid"))
    bonus = replace(give("1"), source=source, category=Category.PROMOTIONAL)
    await ledger.post(command(bonus, key="bonus"))
    await ledger.post(command(consume("1"), key="spent"))
    await ledger.close()
    await store.close()

    for statement, check in DAMAGES.items():
        if is_file(database_url):
            found = damaged_file(file_of(database_url), tmp_path / "copy", [statement])
        else:
            found = damaged_server(database_url, [statement])
        assert check in {one.check for one in found}, statement
