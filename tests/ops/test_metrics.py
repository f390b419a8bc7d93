"""Metrics: what a server counts is what happened, and one server alone speaks for the ledger."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.store.whole_ledger import whole_ledger
from tests.support.metrics import record_verification, scrape
from tests.support.refusals import refused
from tests.support.server import WALLET, consume, grant, serve, started
from tests.support.statements_recorded import recorded
from tests.support.tls import certificate

if TYPE_CHECKING:
    from creditledger.store import Store
    from tests.support.setup import Clock

ROOT = Path(__file__).parents[2]
SERVED = {"metrics_address": "127.0.0.1:0"}
#: What a label may say. Of none of them is there more than a few hundred values.
LABELS = {"method", "code", "le", "operation", "outcome", "reason", "pool", "version"} | {
    *("currency", "livemode", "category"),
}


async def test_a_server_counts_what_happened(database_url: str, clock: Clock) -> None:
    """Postings, refusals and calls are counted once each, by what became of them."""
    async with serve(database_url, clock, **SERVED) as api:
        await api.post("g", **grant("10"))
        usage = consume("4")
        await api.post("c", **usage)
        await api.post("c", **usage)
        await api.post("d", **usage, validate_only=True)
        await refused(api.post("e", **consume("400")))
        requests = [
            pb.PostRequest(wallet_id=WALLET, idempotency_key=f"b{n}", **usage) for n in range(3)
        ]
        await api.batch(requests)
        found = await scrape(api.server)

    assert found.values("postings_total") == {
        ("grant", "posted"): 1,
        ("consumption", "posted"): 2,
        ("consumption", "replayed"): 1,
        ("consumption", "validated"): 1,
        ("consumption", "refused"): 3,
    }
    reasons = {("consumption", "INSUFFICIENT_CREDIT"): 3}
    assert found.values("refused_postings_total") == reasons
    assert found.values("refused_calls_total") == {("INSUFFICIENT_CREDIT",): 1}
    post = "/credit.v1.WalletService/Post"
    assert found.value("rpc_seconds_count", method=post, code="OK") == 4
    assert found.value("rpc_seconds_count", method=post, code="FAILED_PRECONDITION") == 1
    assert found.value("batch_commands_sum") == 8
    assert found.value("commit_seconds_count") == found.value("batch_commands_count")
    assert found.value("queue_commands") == 0
    assert found.value("database_away") == 0


async def test_figures_of_the_whole_ledger(database_url: str, clock: Clock) -> None:
    """Amounts are by currency and mode; what ends soon, is held or overdrawn is told apart."""
    async with serve(database_url, clock, **SERVED) as api:
        await api.post("g", **grant("10.5"))
        soon = time.text(clock.now + time.DAY)
        await api.post("p", **grant("3", category="promotional", expires_at=soon))
        await api.wallets.Hold(
            pb.HoldRequest(wallet_id=WALLET, idempotency_key="h", amount="2"),
            metadata=api.service,
        )
        await api.local.new_wallet("wal_other", "cus_other", overdraft_limit="5")
        await api.post("c", "wal_other", **consume("1.25"))
        await api.local.wallets.CreateWallet(
            pb.CreateWalletRequest(
                id="wal_test", customer_id="cus_other", currency="USD", livemode=False
            )
        )
        before = await scrape(api.server)
        await record_verification(api.server, "balance", "sequence")
        clock.advance(2 * time.DAY)
        after = await scrape(api.server)

    live, test = {"currency": "USD", "livemode": "true"}, {"currency": "USD", "livemode": "false"}
    paid, given = {**live, "category": "paid"}, {**live, "category": "promotional"}
    assert before.value("liability_amount", **paid) == 10.5
    assert before.value("liability_amount", **given) == 3
    assert before.value("expiring_amount", **given) == 3
    assert before.value("expiring_amount", **paid) == 0
    assert before.value("held_amount", **live) == 2
    assert before.value("holds_open", **live) == 1
    assert before.value("overdraft_amount", **live) == 1.25
    assert before.value("wallets", **live) == 2
    assert before.value("wallets", **test) == 1
    assert before.value("held_amount", **test) == 0
    assert before.value("rows_total") == 3
    assert before.value("unfolded_rows") == 3
    assert before.value("sweep_lag_seconds") == 0
    assert before.value("watch_lag_seconds") == 0
    assert before.value("webhook_lag_seconds") == 0
    assert not before.values("verify_timestamp_seconds")  # nobody has verified yet
    assert after.value("verify_timestamp_seconds") == before.value("figures_timestamp_seconds")
    assert after.value("verify_failed_checks") == 2
    # Nobody has swept: what is over is owed no more, and lags.
    assert after.value("liability_amount", **given) == 0
    assert after.value("holds_open", **live) == 0
    assert after.value("sweep_lag_seconds") > 0


async def test_every_metric_is_in_the_operating_page(database_url: str, clock: Clock) -> None:
    """docs/operating.md has a row for each metric with its labels, and no other row."""
    async with serve(database_url, clock, **SERVED) as api:
        await api.post("g", **grant("1"))
        await refused(api.post("c", **consume("2")))
        await record_verification(api.server)
        found = await scrape(api.server)

    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(creditledger_\w+)` \| ([^|]+) \|", page, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    exported: dict[str, set[str]] = {}
    for full, labels in found.labels().items():
        if full.startswith("creditledger_"):
            name = re.sub("_(bucket|count|sum)$", "", full)
            exported.setdefault(name, set()).update(labels - {"le"})
    assert documented == exported


async def test_labels_are_few_and_money_says_its_mode(database_url: str, clock: Clock) -> None:
    """No label tells wallets, customers or keys apart; each amount has its currency and mode."""
    async with serve(database_url, clock, **SERVED) as api:
        await api.post("g", **grant("1"))
        found = await scrape(api.server)

    own = [one for one in found.samples if one.name.startswith("creditledger_")]
    assert {label for one in own for label in one.labels} <= LABELS
    amounts = [one for one in own if "amount" in one.name]
    assert len({one.name for one in amounts}) == 4
    assert all({"currency", "livemode"} <= one.labels.keys() for one in amounts)


@pytest.mark.only("postgresql")
async def test_one_of_several_servers_speaks_for_the_ledger(
    database_url: str, clock: Clock
) -> None:
    """A sum over servers counts the ledger once; the next server takes over from one that ends."""
    async with started(database_url, clock, **SERVED) as second:
        async with started(database_url, clock, **SERVED) as first:
            both = [await scrape(one) for one in (second, first, second)]
        # The first that asks goes on, and the others export nothing of the ledger.
        assert [len(one.values("figures_timestamp_seconds")) for one in both] in (
            [1, 0, 1],
            [0, 1, 0],
        )
        alone = await scrape(second)

    assert len(alone.values("figures_timestamp_seconds")) == 1


async def test_figures_cost_a_fixed_number_of_statements(store: Store, clock: Clock) -> None:
    """However many wallets there are, and no statement reads all rows."""
    with recorded() as said:
        await store.read(lambda connection: whole_ledger(connection, clock.now))

    asked = [one.text for one in said.reading if "SELECT" in one.text.upper()]
    assert len(asked) == 9
    rows = [one for one in asked if "FROM credit_transactions" in " ".join(one.split())]
    assert len(rows) == 1
    assert "min(credit_transactions.created_at)" in rows[0]


@pytest.mark.only("sqlite")
async def test_with_a_certificate_metrics_are_encrypted(
    database_url: str, clock: Clock, tmp_path: Path
) -> None:
    """The certificate of the gRPC port is that of the metrics; nothing is served in the clear."""
    chain, key = certificate(tmp_path)
    settings = {**SERVED, "tls_certificate": chain, "tls_key": key}
    trusted = ssl.create_default_context(cafile=str(chain))
    async with started(database_url, clock, **settings) as server:
        assert server.metrics is not None
        address = server.metrics.address
        async with httpx.AsyncClient(trust_env=False, verify=trusted) as client:
            named = {"sni_hostname": "ledger.example.test"}
            answer = await client.get(f"https://{address}/metrics", extensions=named)
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://{address}/metrics")

    assert "creditledger_queue_commands" in answer.text


async def test_without_an_address_nothing_is_served(database_url: str, clock: Clock) -> None:
    """No port is open, and nobody reads figures."""
    async with started(database_url, clock) as server:
        assert server.metrics is not None
        assert server.metrics.address is None
