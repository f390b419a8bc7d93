"""The benchmark measures what it says, and its checks can fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from bench import growth, http2, reading, report
from bench.checks import receipts, require_all_there, require_verified
from bench.databases import Postgres, Sqlite
from bench.figures import figures
from bench.options import Options
from bench.outcome import Outcome, Result, Sample, load
from bench.run import measure, prepared
from bench.scenarios import chosen, scenarios
from bench.traffic import RECEIPT_BYTES, Traffic, Wallets, wallet_id
from bench.worker import Failed
from credit.v1 import wallet_service_pb2 as pb
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.databases import Home

WALLETS = 20
OPTIONS = Options(runs=1, seconds=0.05, wallets=WALLETS)
#: One of each kind, what it is set against included.
KINDS = (
    "fsync,empty-1,unary-256-zipf,batch-500-zipf,stream-random,inprocess-random,drawing-3,"
    "grpcio-1-hot,rest-1-hot"
)


@pytest.fixture(params=[Sqlite, Postgres])
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """One of each kind."""
    # The path of PostgreSQL's socket has to be short, so it is not in the folder of the test.
    with TemporaryDirectory(prefix="bench-") as folder:
        one: Home = request.param(Path(folder))
        yield one
        one.close()


def test_every_kind_of_scenario_is_measured(home: Home, tmp_path: Path) -> None:
    """Each gives a rate, the ledger verifies afterwards, and so do those that baselines wrote."""
    found = measure(home, tmp_path, OPTIONS, chosen(scenarios(WALLETS), KINDS))

    assert {result.name for result in found.results} >= set(KINDS.split(","))
    assert all(result.median.rate > 0 for result in found.results)
    names = {result.name for result in found.results}
    assert all(result.ratio for result in found.results if result.against in names)
    assert found.numbers["memory_mb"]


def test_small_and_large_ledgers_are_compared(home: Home, tmp_path: Path) -> None:
    """Every read of both sides is answered; both are posted to, and both verify afterwards."""
    read = reading.measure(home, OPTIONS, rows=4 * WALLETS)
    grown = growth.measure(home, tmp_path, OPTIONS, rows=4 * WALLETS)

    assert not [fact for fact in read.facts if fact.startswith("refused")]
    assert len(read.results) == 2 * len(read.numbers)
    assert len(read.numbers) >= 40
    assert all(read.numbers.values())
    assert set(grown.numbers) == {
        "ratio unary-256",
        "ratio batch-500",
        "memory_mb",
        "verify_rows",
        "bytes_a_row",
    }


def test_what_does_not_work_is_not_measured(tmp_path: Path) -> None:
    """A call that is refused ends the run: an unknown wallet, a wrong key, no server."""
    home = Sqlite(tmp_path)
    unary, batch = chosen(scenarios(WALLETS), "unary-1-hot,batch-10-hot")[-2:]
    nowhere = {**batch.values, "wallets": {"first": 7_000_000}}

    with prepared(home, tmp_path, OPTIONS, [unary, batch]) as bench:
        assert bench.sample(unary, seed=1).rate > 0
        with pytest.raises(Failed, match="NOT_FOUND"):
            bench.sample(replace(batch, values=nowhere), seed=2)
        bench.secret = "sk-" + "0" * 43
        with pytest.raises(Failed, match="grpc-status"):
            bench.sample(unary, seed=3)
        bench.served.addresses = ["127.0.0.1:1"]
        with pytest.raises(Failed, match="ConnectionRefused"):
            bench.sample(unary, seed=4)


def test_a_ledger_that_is_not_what_was_acknowledged_is_found(tmp_path: Path) -> None:
    """A posting too few, one too many, an import cut short, a figure that is off."""
    home = Sqlite(tmp_path)
    found = chosen(scenarios(WALLETS), "batch-500-hot,import-hot")
    with prepared(home, tmp_path, OPTIONS, found) as bench:
        for seed, one in enumerate(found):
            bench.sample(one, seed)
    acknowledged, imported = receipts(bench.receipts), bench.imported

    def check(told: set[bytes], rows: int) -> None:
        home.run("ledger", lambda connection: require_all_there(connection, told, imported=rows))

    check(acknowledged, imported)
    with pytest.raises(Failed, match="1 are not there; 0 are there"):
        check(acknowledged | {b"k" * RECEIPT_BYTES}, imported)
    with pytest.raises(Failed, match="0 are not there; 1 are there"):
        check(acknowledged - {min(acknowledged)}, imported)
    with pytest.raises(Failed, match="imported"):
        check(acknowledged, imported + 1)
    require_verified(home.url("ledger"))
    wrong = text("UPDATE wallet_states SET running_balance = running_balance + 1")
    home.run("ledger", lambda connection: connection.execute(wrong))
    with pytest.raises(Failed, match="running_balance"):
        require_verified(home.url("ledger"))


def test_requests_are_what_they_stand_for() -> None:
    """What is filled into encoded requests is read again; no key comes twice."""
    traffic = Traffic(Wallets(count=3), seed=1)

    message, receipt = traffic.single()
    batch, receipts_of_batch = traffic.batch(50)

    request = pb.PostRequest.FromString(message)
    assert request.wallet_id == wallet_id(int.from_bytes(receipt[:4], "big"))
    assert request.idempotency_key == receipt[4:].hex()
    assert request.consumption.usage.quantities == [1000, 500]
    postings = pb.BatchPostRequest.FromString(batch).postings
    keys = [receipts_of_batch[i + 4 : i + 20].hex() for i in range(0, 1_000, RECEIPT_BYTES)]
    assert [posting.idempotency_key for posting in postings] == keys
    assert len({*keys, receipt[4:].hex()}) == 51
    assert {posting.wallet_id for posting in postings} == {wallet_id(n) for n in range(3)}


def test_zipf_prefers_the_first() -> None:
    """The first wallet gets about twice what the second gets, and ten times what the tenth."""
    numbers = Wallets(count=100, zipf=True).numbers(Random(1))

    assert 1.6 < numbers.count(0) / numbers.count(1) < 2.5
    assert 6 < numbers.count(0) / numbers.count(9) < 16


class _Wire(asyncio.Transport):
    """Where a connection writes to: the frames it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        pass

    def data(self) -> bytes:
        """What has been sent as data so far."""
        rest, found = bytes(self.written).removeprefix(http2.PREFACE), b""
        while rest:
            end = 9 + int.from_bytes(rest[:3], "big")
            found += rest[9:end] if rest[3] == http2.DATA else b""
            rest = rest[end:]
        return found


async def test_the_client_sends_no_more_than_there_is_room_for() -> None:
    """Flow control: of the connection and of the stream; settings widen streams under way."""
    connection, wire = http2.Connection(), _Wire()
    connection.connection_made(wire)
    ended: list[http2.Stream] = []
    body = bytes(range(256)) * 1_000

    connection.request(b"", body, ended.append)
    await asyncio.sleep(0)
    assert wire.data() == body[: http2.WINDOW]
    more = (100_000).to_bytes(4, "big")
    connection.data_received(http2.frame(http2.WINDOW_UPDATE, 0, 0, more))
    await asyncio.sleep(0)
    assert wire.data() == body[: http2.WINDOW]
    setting = http2.INITIAL_WINDOW_SIZE.to_bytes(2, "big") + (120_000).to_bytes(4, "big")
    connection.data_received(http2.frame(http2.SETTINGS, 0, 0, setting))
    await asyncio.sleep(0)
    assert wire.data() == body[:120_000]
    connection.data_received(http2.frame(http2.WINDOW_UPDATE, 0, 1, more))
    connection.data_received(http2.frame(http2.WINDOW_UPDATE, 0, 0, more))
    await asyncio.sleep(0)
    assert wire.data() == body[:220_000]
    assert ended == []


async def test_answers_are_read_however_they_are_cut() -> None:
    """Frames in any pieces, padded, with headers in parts; resets and goodbyes are failures."""
    answer = (
        http2.frame(http2.HEADERS, 0, 1, b"\x88")
        + http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, http2.headers([("a", "b" * 300)]))
        + http2.frame(http2.DATA, http2.PADDED, 1, b"\x02" + http2.grpc_message(b"hello") + b"..")
        + http2.frame(http2.HEADERS, 0x5, 1, http2.headers([("grpc-status", "0")]))
        + http2.frame(
            http2.HEADERS, 0x5, 3, http2.headers([(":status", "200"), ("grpc-status", "5")])
        )
        + http2.frame(http2.RST_STREAM, 0, 5, (8).to_bytes(4, "big"))
        + http2.frame(http2.GOAWAY, 0, 0, bytes(8) + b"enough")
    )
    for size in (1, 7, len(answer)):
        connection = http2.Connection()
        connection.connection_made(_Wire())
        ended: list[http2.Stream] = []
        for _ in range(4):
            connection.request(b"", b"", ended.append)
        for i in range(0, len(answer), size):
            connection.data_received(answer[i : i + size])

        assert [stream.number for stream in ended] == [1, 3, 5, 7]
        assert [stream.is_ok for stream in ended] == [True, False, False, False]
        assert http2.grpc_messages(ended[0].body) == [b"hello"]
        assert ended[0].fields["a"] == "b" * 300
        assert "enough" in ended[3].complaint()
        with pytest.raises(http2.Lost):
            await connection.ready


def _result(name: str, rate: float, p50_ms: float = 1.0) -> Result:
    return Result(name, name, "postings", Sample(rate, p50_ms), rate, rate, 3)


def test_figures_say_what_was_reached(tmp_path: Path) -> None:
    """Each from its own scenarios; they head the page that is made of all outcomes."""
    one = Outcome("postgres", "load", numbers={"memory_mb": 260.0})
    one.results = [
        _result("unary-256-hot", 9_000),
        _result("unary-256-random", 9_500),
        _result("ordinary-random", 2_000),
        _result("empty-1", 0, 0.2),
        _result("fsync", 0, 0.3),
        _result("unary-1-hot", 0, 0.75),
        _result("rest-1-hot", 0, 1.3),
    ]
    reads = Outcome("sqlite", "reads", numbers={"ratio total": 1.6, "bytes_a_row": 350.0})
    for outcome in (one, reads):
        outcome.save(tmp_path)

    found = report.write(tmp_path)

    assert found == figures([load(tmp_path / f"{each.name}.json") for each in (one, reads)])
    assert [(figure.measured, figure.reached) for figure in found] == [
        ("0.95", False),
        ("4.75", False),
        ("0.75 ms", False),
        ("0.55 ms", True),
        ("260 MB", False),
        ("1.60", False),
        ("350", True),
    ]
    assert "added by Envoy" in (tmp_path / "latest.md").read_text()


def test_the_chosen_bring_what_they_are_set_against() -> None:
    """A part of a name, or a pattern, chooses; baselines come with it."""
    names = [one.name for one in chosen(scenarios(10_000), "rest-1,zipf")]

    assert names == [
        "ordinary-random",
        "limit-random",
        "unary-1-hot",
        "unary-256-zipf",
        "batch-500-zipf",
        "rest-1-hot",
    ]
