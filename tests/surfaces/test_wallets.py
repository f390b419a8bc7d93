"""Wallets over gRPC: their modes are apart, they freeze, close and change their terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import ids
from tests.support.cases import in_turn
from tests.support.refusals import Refused, refused
from tests.support.server import (
    WALLET,
    adjust,
    consume,
    fate,
    grant,
    post,
    ranked,
    refund,
    wallet,
)

if TYPE_CHECKING:
    from tests.support.server import Api


async def test_modes_are_apart(api: Api) -> None:
    """A key of one mode neither sees nor moves what is of the other; naming it is MODE_MISMATCH."""
    local = api.local
    await local.new_wallet("wal_test", "cus_acme", livemode=False)
    test = await local.key("admin", livemode=False)
    await api.post("topup", **grant("1"))
    await api.wallets.Post(post("topup", "wal_test", **grant("2")), metadata=test)

    for metadata, own, other in [
        (api.admin, WALLET, "wal_test"),
        (test, "wal_test", WALLET),
    ]:
        listed = await api.wallets.ListWallets(pb.ListWalletsRequest(), metadata=metadata)
        assert [one.id for one in listed.wallets] == [own]
        rows = await api.transactions.List(
            transactions_pb.CreditTransactionServiceListRequest(), metadata=metadata
        )
        assert [one.wallet_id for one in rows.list] == [own]
        retrieve = transactions_pb.CreditTransactionServiceRetrieveRequest
        hidden = ids.compose("ct", 1 if other == WALLET else 2, 1)
        for call in (
            api.wallets.GetWallet(pb.GetWalletRequest(wallet_id=other), metadata=metadata),
            api.wallets.Post(post("key", other, **grant("1")), metadata=metadata),
            api.wallets.UpdateWallet(
                pb.UpdateWalletRequest(wallet_id=other, status="frozen"), metadata=metadata
            ),
            api.wallets.GetPosting(
                pb.GetPostingRequest(wallet_id=other, idempotency_key="topup"), metadata=metadata
            ),
        ):
            assert await refused(call) == Refused("NOT_FOUND", "wallet_id")
        retrieved = api.transactions.Retrieve(retrieve(id=hidden), metadata=metadata)
        assert await refused(retrieved) == Refused("NOT_FOUND", "id")
        named = pb.ListWalletsRequest(livemode=metadata is test)
        listing = api.wallets.ListWallets(named, metadata=metadata)
        assert await refused(listing) == Refused("MODE_MISMATCH", "livemode")
    many = await api.wallets.BatchPost(
        pb.BatchPostRequest(
            postings=[post("a", **grant("1")), post("b", "wal_test", **grant("1"))]
        ),
        metadata=test,
    )
    assert ranked(map(fate, many.results)) == [Refused("NOT_FOUND", "wallet_id"), 1]


async def change(api: Api, **fields: Any) -> pb.Wallet:
    """What an administrator changes of wal_acme."""
    request = pb.UpdateWalletRequest(wallet_id=WALLET, **fields)
    return await api.wallets.UpdateWallet(request, metadata=api.admin)


async def test_a_frozen_wallet_takes_and_does_not_give(api: Api) -> None:
    """Consumption and unforced debit are WALLET_FROZEN; the rest, replays and thawing go on."""
    await api.post("topup", **grant("10"))
    call = await api.post("call", **consume("1"))
    frozen = await change(api, status="frozen")

    refusals = [
        await refused(api.post("call-2", **consume("1"))),
        await refused(api.post("debit", **adjust("-1"))),
    ]
    await api.post("grant", **grant("1"))
    await api.post("credit", **adjust("1"))
    await api.post("refund", **refund(call.posting_id))
    forced = post("forced", **adjust("-1", force=True))
    await api.wallets.Post(forced, metadata=api.admin)
    replayed = await api.post("call", **consume("1"))
    thawed = await change(api, status="active")
    await api.post("call-2", **consume("1"))

    assert refusals == [Refused("WALLET_FROZEN")] * 2
    assert (frozen.status, thawed.status) == ("frozen", "active")
    assert replayed.replayed
    assert (await api.wallet_now()).balance == "10.00"


async def test_a_closed_wallet_is_closed_for_good(api: Api) -> None:
    """It needs balance 0; then every posting and change is WALLET_CLOSED, and replays answer."""
    await api.post("topup", **grant("1"))
    early = await refused(change(api, status="closed"))
    await api.post("call", **consume("1"))
    closed = await change(api, status="closed")

    refusals = [
        await refused(api.post("grant", **grant("1"))),
        await refused(api.post("call-2", **consume("1"))),
        await refused(api.post("credit", **adjust("1"))),
        await refused(change(api, status="active")),
        await refused(change(api, metadata={"a": "b"})),
    ]

    assert early == Refused("INVALID_FIELD", "status")
    assert closed == wallet("0.00", 2, status="closed")
    assert refusals == [Refused("WALLET_CLOSED")] * 5
    assert (await api.post("call", **consume("1"))).replayed


async def test_what_update_changes(api: Api) -> None:
    """Absent is unchanged; metadata merges, an empty value removes its key."""
    first = await change(api, metadata={"a": "1", "b": "2"}, overdraft_limit="5")
    second = await change(api, metadata={"b": "", "c": "3"})
    third = await change(api, overdraft_limit="0", status="frozen")
    nothing = await change(api)

    fields: dict[str, Any] = {"metadata": {"a": "1", "b": "2"}, "overdraft_limit": "5.00"}
    assert first == wallet("0.00", 0, **fields)
    fields["metadata"] = {"a": "1", "c": "3"}
    assert second == wallet("0.00", 0, **fields)
    fields |= {"overdraft_limit": "0.00", "status": "frozen"}
    assert third == nothing == await api.wallet_now() == wallet("0.00", 0, **fields)


@in_turn(
    "fields, refusal",
    [
        ({"overdraft_limit": "-1"}, Refused("INVALID_FIELD", "overdraft_limit")),
        ({"overdraft_limit": "1e3"}, Refused("INVALID_FIELD", "overdraft_limit")),
        ({"overdraft_limit": ""}, Refused("INVALID_FIELD", "overdraft_limit")),
        ({"overdraft_limit": "0.0000000001"}, Refused("INVALID_FIELD", "overdraft_limit")),
        ({"status": "open"}, Refused("INVALID_FIELD", "status")),
        ({"status": ""}, Refused("INVALID_FIELD", "status")),
        ({"metadata": {"": "x"}}, Refused("INVALID_FIELD", "metadata")),
        ({"metadata": {"x": "\0"}}, Refused("INVALID_FIELD", "metadata")),
        ({"metadata": {str(n): "x" for n in range(51)}}, Refused("INVALID_FIELD", "metadata")),
        # One more than fit beside the one that is there.
        ({"metadata": {str(n): "x" for n in range(50)}}, Refused("INVALID_FIELD", "metadata")),
        ({"wallet_id": "wal_none"}, Refused("NOT_FOUND", "wallet_id")),
        ({"wallet_id": "acme"}, Refused("INVALID_FIELD", "wallet_id")),
        ({"wallet_id": None}, Refused("MISSING_FIELD", "wallet_id")),
    ],
)
async def test_what_no_wallet_becomes(api: Api, fields: dict[str, Any], refusal: Refused) -> None:
    """A change outside its rules is refused under its field, and the wallet stays as it was."""
    before = await change(api, metadata={"first": "x"})
    request = pb.UpdateWalletRequest(**{"wallet_id": WALLET, **fields})

    call = api.wallets.UpdateWallet(request, metadata=api.admin)
    assert await refused(call) == refusal
    assert before == await api.wallet_now()


async def test_idempotency_keys_are_listed(api: Api) -> None:
    """Keys of one wallet with a prefix come in pages, each with its posting."""
    await api.local.new_wallet("wal_other", "cus_other")
    await api.wallets.Post(post("a:1", "wal_other", **grant("1")), metadata=api.service)
    posted = {key: await api.post(key, **grant("1")) for key in ("a:2", "b", "a:10", "a~", "a:1")}

    async def listed(prefix: str | None, size: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        request = pb.ListIdempotencyKeysRequest(wallet_id=WALLET, prefix=prefix, page_size=size)
        while True:
            page = await api.wallets.ListIdempotencyKeys(request, metadata=api.customer)
            assert len(page.idempotency_keys) <= size
            found += [(one.idempotency_key, one.posting_id) for one in page.idempotency_keys]
            if not page.HasField("next_page_token"):
                return found
            request.page_token = page.next_page_token

    expected = [(key, posted[key].posting_id) for key in ("a:1", "a:10", "a:2", "a~", "b")]
    assert await listed(None, 2) == expected
    assert await listed("a:", 1) == expected[:3]
    assert await listed("a:1", 1_000) == expected[:2]
    assert await listed("c", 20) == []
    faults: list[tuple[dict[str, Any], Refused]] = [
        ({"wallet_id": "wal_other"}, Refused("NOT_FOUND", "wallet_id")),
        ({"page_size": 1_001}, Refused("INVALID_FIELD", "page_size")),
        ({"prefix": "é"}, Refused("INVALID_FIELD", "prefix")),
    ]
    for fault, expected_refusal in faults:
        request = pb.ListIdempotencyKeysRequest(**{"wallet_id": WALLET, **fault})
        call = api.wallets.ListIdempotencyKeys(request, metadata=api.customer)
        assert await refused(call) == expected_refusal
