"""The view BRIEF of an answer: what became of a posting, without its rows and its wallet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from credit.v1 import wallet_service_pb2 as pb

from creditledger.engine import batch
from tests.support.refusals import Refused, refused
from tests.support.server import WALLET, consume, fate, grant, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.server import Api

OTHER = "wal_other"
#: 50 keys, 8,100 bytes: a row of a full answer that carries it has 9 kB.
HEAVY = {f"{n:02}": "x" * 160 for n in range(50)}


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, 10.00 in wal_acme, and an empty wal_other."""
    await api.local.new_wallet(OTHER, "cus_other")
    await api.post("given", **grant("10"))
    return api


def brief(
    posting_id: str,
    sequence: int,
    balance: str,
    available: str | None = None,
    *,
    replayed: bool = False,
    hold_id: str | None = None,
) -> pb.BriefPosting:
    """The answer in brief; `available` is the balance unless said otherwise."""
    return pb.BriefPosting(
        posting_id=posting_id,
        replayed=replayed,
        sequence=sequence,
        balance=balance,
        available=balance if available is None else available,
        hold_id=hold_id,
    )


async def test_a_posting_in_brief(api: Api) -> None:
    """`brief` stands instead of the rows and the wallet; a replay may ask for either view."""
    answer = await api.post("call", **consume("1"), view="BRIEF")

    full = await api.post("call", **consume("1"), view="FULL")
    id_ = full.posting_id
    assert id_.startswith("pst_")
    assert answer == pb.Posting(posting_id=id_, brief=brief(id_, 2, "9.00"))
    assert full.replayed
    assert not full.HasField("brief")
    assert [one.amount for one in full.transactions] == ["-1.00"]
    assert full.wallet == await api.wallet_now()
    assert full == await api.post("call", **consume("1"))

    await api.post("more", **consume("2"))
    again = await api.post("call", **consume("1"), view="BRIEF")
    now = brief(id_, 3, "7.00", replayed=True)
    assert again == pb.Posting(posting_id=id_, replayed=True, brief=now)


async def test_a_dry_run_in_brief(api: Api) -> None:
    """It says what the wallet would have, has no id, and writes nothing."""
    answer = await api.post("call", **consume("1"), view="BRIEF", validate_only=True)

    assert answer == pb.Posting(validate_only=True, brief=brief("", 2, "9.00"))
    assert await api.found("call") is None
    assert (await api.wallet_now()).sequence == 1


@pytest.mark.parametrize("view", ["brief", "SHORT", ""])
async def test_an_unknown_view(api: Api, view: str) -> None:
    """It is an INVALID_FIELD of `view` in each call that has one, and writes nothing."""
    held = await api.wallets.Hold(
        pb.HoldRequest(wallet_id=WALLET, idempotency_key="held", amount="1"), metadata=api.service
    )
    hold_id, wallets, service = held.hold.id, api.wallets, api.service
    unknown = Refused("INVALID_FIELD", "view")
    call = post("call", **consume("1"), view=view)

    refusals = [
        await refused(one)
        for one in (
            wallets.Post(call, metadata=service),
            wallets.BatchPost(pb.BatchPostRequest(postings=[call], view=view), metadata=service),
            wallets.Hold(
                pb.HoldRequest(wallet_id=WALLET, idempotency_key="h", amount="1", view=view),
                metadata=service,
            ),
            wallets.CaptureHold(
                pb.CaptureHoldRequest(hold_id=hold_id, idempotency_key="c", view=view),
                metadata=service,
            ),
            wallets.ReleaseHold(
                pb.ReleaseHoldRequest(hold_id=hold_id, idempotency_key="r", view=view),
                metadata=service,
            ),
            wallets.Transfer(
                pb.TransferRequest(
                    from_wallet_id=WALLET,
                    to_wallet_id=OTHER,
                    idempotency_key="t",
                    amount="1",
                    view=view,
                ),
                metadata=service,
            ),
        )
    ]

    assert refusals == [unknown] * len(refusals)
    assert await api.batch([call]) == [unknown]
    assert (await api.wallet_now()) == held.wallet


async def test_a_batch_in_brief(api: Api) -> None:
    """The batch's view is that of the postings that name none; refusals stay as they are."""
    request = pb.BatchPostRequest(
        view="BRIEF",
        postings=[
            post("call", **consume("1")),
            post("call", **consume("1")),
            post("full", **consume("2"), view="FULL"),
            post("much", **consume("100")),
            post("call", **consume("3")),
        ],
    )

    answer = await api.wallets.BatchPost(request, metadata=api.service)

    first, again, full, much, reused = answer.results
    id_ = first.brief.posting_id
    assert id_.startswith("pst_")
    assert first == pb.PostingResult(brief=brief(id_, 2, "9.00"))
    assert again == pb.PostingResult(brief=brief(id_, 2, "9.00", replayed=True))
    assert full.WhichOneof("result") == "posting"
    assert full.posting.wallet == await api.wallet_now()
    poor = {"required": "100.00", "available": "7.00", "currency": "USD"}
    assert fate(much) == Refused("INSUFFICIENT_CREDIT", None, poor)
    differs = {"fields": "consumption.amount"}
    assert fate(reused) == Refused("IDEMPOTENCY_KEY_REUSED", "idempotency_key", differs)


async def test_a_posting_in_brief_of_a_full_batch(api: Api) -> None:
    """A posting's own view holds where the batch names none."""
    request = pb.BatchPostRequest(
        postings=[post("a", **consume("1"), view="BRIEF"), post("b", **consume("1"))]
    )

    answer = await api.wallets.BatchPost(request, metadata=api.service)

    assert [one.WhichOneof("result") for one in answer.results] == ["brief", "posting"]


async def test_a_stream_in_brief(api: Api) -> None:
    """Each posting of a stream has its own view."""

    async def requests() -> AsyncIterator[pb.StreamPostRequest]:
        for key, view in (("a", "BRIEF"), ("b", None), ("a", "BRIEF"), ("c", "SHORT")):
            yield pb.StreamPostRequest(posting=post(key, **consume("1"), view=view))

    stream = api.wallets.StreamPost(requests(), metadata=api.service)
    results = [one.result async for one in stream]

    short, full, again, unknown = results
    id_ = short.brief.posting_id
    assert short == pb.PostingResult(brief=brief(id_, 2, "9.00"))
    assert full.posting.wallet.balance == "8.00"
    assert again == pb.PostingResult(brief=brief(id_, 3, "8.00", replayed=True))
    assert fate(unknown) == Refused("INVALID_FIELD", "view")


async def test_a_hold_in_brief(api: Api) -> None:
    """Making, capturing and releasing answer the hold's id, with what is left to spend."""
    make = pb.HoldRequest(wallet_id=WALLET, idempotency_key="h", amount="4", view="BRIEF")
    made = await api.wallets.Hold(make, metadata=api.service)
    hold_id, id_ = made.brief.hold_id, made.brief.posting_id
    assert hold_id.startswith("hld_")
    assert made == pb.HoldResponse(brief=brief(id_, 1, "10.00", "6.00", hold_id=hold_id))

    ask = pb.CaptureHoldRequest(hold_id=hold_id, idempotency_key="c", amount="1", view="BRIEF")
    captured = await api.wallets.CaptureHold(ask, metadata=api.service)
    id_ = captured.brief.posting_id
    assert captured == pb.CaptureHoldResponse(brief=brief(id_, 2, "9.00", "6.00", hold_id=hold_id))

    end = pb.ReleaseHoldRequest(hold_id=hold_id, idempotency_key="r", view="BRIEF")
    released = await api.wallets.ReleaseHold(end, metadata=api.service)
    id_ = released.brief.posting_id
    assert released == pb.HoldResponse(brief=brief(id_, 2, "9.00", hold_id=hold_id))

    again = await api.wallets.ReleaseHold(end, metadata=api.service)
    now = brief(id_, 2, "9.00", replayed=True, hold_id=hold_id)
    assert again == pb.HoldResponse(replayed=True, brief=now)
    end.view = "FULL"
    full = await api.wallets.ReleaseHold(end, metadata=api.service)
    assert (full.replayed, full.hold.status) == (True, "released")
    assert not full.HasField("brief")


async def test_a_transfer_in_brief(api: Api) -> None:
    """Both sides are answered in brief; the same key asks for them in full later."""
    ask = pb.TransferRequest(
        from_wallet_id=WALLET, to_wallet_id=OTHER, idempotency_key="t", amount="3", view="BRIEF"
    )
    dry = pb.TransferRequest(validate_only=True)
    dry.MergeFrom(ask)

    would = await api.wallets.Transfer(dry, metadata=api.service)
    answer = await api.wallets.Transfer(ask, metadata=api.service)

    assert would == pb.TransferResponse(
        brief=brief("", 2, "7.00"), received_brief=brief("", 1, "3.00")
    )
    sent, received = answer.brief.posting_id, answer.received_brief.posting_id
    assert answer == pb.TransferResponse(
        brief=brief(sent, 2, "7.00"), received_brief=brief(received, 1, "3.00")
    )
    ask.ClearField("view")
    full = await api.wallets.Transfer(ask, metadata=api.service)
    assert (full.sent.posting_id, full.received.posting_id) == (sent, received)
    assert full.sent.replayed


async def test_only_what_is_asked_for_counts_in_a_batch(api: Api) -> None:
    """Postings that pass 4 MiB together in full are all booked in brief.

    One that passes it alone is not: its key could not be sent again for a full answer.
    """
    await api.batch([post(f"grant {n}", **grant("1")) for n in range(500)])
    postings = [post(f"call {n}", metadata=HEAVY, **consume("50")) for n in range(10)]
    request = pb.BatchPostRequest(postings=postings, view="BRIEF")

    answer = await api.wallets.BatchPost(request, metadata=api.service)

    assert [one.WhichOneof("result") for one in answer.results] == ["brief"] * 10
    sizes = [one.ByteSize() for one in answer.results]
    assert max(sizes) < batch.BRIEF_BYTES

    request = pb.BatchPostRequest(postings=postings)
    full = await api.wallets.BatchPost(request, metadata=api.service)
    found = [one.WhichOneof("result") for one in full.results]
    assert set(found) == {"posting", "error"}
    alone = await api.post("call 9", metadata=HEAVY, **consume("50"))
    assert len(alone.transactions) > 1


async def test_a_posting_too_large_in_full_is_so_in_brief(api: Api) -> None:
    """It is RESULT_TOO_LARGE alone and in a batch, and books nothing."""
    await api.batch([post(f"grant {n}", **grant("1")) for n in range(500)])
    large = post("call", metadata=HEAVY, **consume("510"), view="BRIEF")

    alone = await refused(api.wallets.Post(large, metadata=api.service))

    assert alone == Refused("RESULT_TOO_LARGE")
    assert await api.batch([large]) == [Refused("RESULT_TOO_LARGE")]
    assert await api.found("call") is None


async def test_a_reader_of_full_answers_sees_no_new_field(api: Api) -> None:
    """The bytes of an answer in FULL have none of the fields of BRIEF."""
    for view in (None, "FULL"):
        key = f"call {view}"
        answer = await api.post(key, **consume("1"), view=view)
        assert {one.name for one, _ in answer.ListFields()} == {
            "posting_id",
            "transactions",
            "wallet",
        }
