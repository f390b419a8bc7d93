"""The ledger does what the naive model does, whatever is asked of it in whatever order.

Hypothesis drives a real ledger over a real database, and `naive.py` beside it. Every answer,
every refusal and every figure is compared, and at the end the invariants are checked on both.
"""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import event, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import bindparam, select

from creditledger.api.auth import LOCAL
from creditledger.api.field_names import rename
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import clock as time
from creditledger.domain import ids, spend_limits, statements
from creditledger.domain.billing_periods import Bucket
from creditledger.domain.clock import DAY, END, FIRST, SECOND
from creditledger.domain.commands import (
    Command,
    DropLimit,
    GrantChange,
    LimitChange,
    SetLimit,
    Usage,
    WalletChange,
)
from creditledger.domain.errors import Refusal
from creditledger.domain.model import (
    Category,
    GrantScope,
    Kind,
    Period,
    Row,
    Status,
    Type,
    Wallet,
    WalletView,
    overdraft_used,
    standing,
    view,
)
from creditledger.domain.operations import (
    Adjust,
    CancelEvent,
    Capture,
    Consume,
    Extend,
    GiveGrant,
    PlaceHold,
    Refund,
    Release,
    ReportEvent,
    Transfer,
    VoidGrant,
)
from creditledger.engine.batch import Posted
from creditledger.engine.ledger import Ledger
from creditledger.outlets.statements.compute import StatementPeriod, Statements
from creditledger.outlets.sweeper import Sweeper
from creditledger.store import Changes, Loaded, Store, Wanted, schema
from creditledger.store.read import bill_sums, transaction_reads, wallet_history
from creditledger.store.registry import records
from creditledger.store.write.columns import ROW, load
from creditledger.surfaces.payment_kit import events
from tests.support import (
    naive,
    naive_bills,
    naive_invariants,
    naive_statements,
    random_requests,
)
from tests.support.databases import Databases
from tests.support.random_requests import WALLETS, Asking, Change, GrantUpdate, Request
from tests.support.setup import (
    BACKDATING_MS_MAX,
    START,
    Clock,
    add_customer,
    add_meter,
    add_subscription,
    add_wallet,
    findings,
)
from tests.support.sums_over_time import answers, fold_some, wallet_ends, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from sqlalchemy import Connection

    from creditledger.domain import commands as operations
    from creditledger.domain.commands import Operation
    from creditledger.domain.spend_limits import LimitView
    from creditledger.store.statements.closed import Closed
    from tests.support.databases import Files


Asked = Request | Change | GrantUpdate | random_requests.SetLimit | random_requests.DropLimit


def text(units: int, scale: int, zeros: int = 0) -> str:
    """The amount as a client might write it, with some of the zeros that its scale allows."""
    plain = f"{Decimal(units).scaleb(-scale):f}"
    whole, _, fraction = plain.partition(".")
    fraction = fraction.rstrip("0")
    fraction = fraction.ljust(min(scale, len(fraction) + zeros), "0")
    return f"{whole}.{fraction}" if fraction else whole


# --- the machine ----------------------------------------------------------------------------------


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger and the model, asked the same."""

    def make_database(self) -> str:
        """The URL of a new database."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.url = self.make_database()
        # However far the clock is set back, the wallets were made before.
        self.clock = Clock(START + 400 * DAY)
        self.runner = asyncio.Runner()
        self.model = naive.NaiveLedger(START, meters=["mtr_tokens"])
        self.numbers: dict[str, int] = {}  #: Of the wallets.
        self.postings: dict[int, int] = {}  #: The model's -> the ledger's.
        self.rows: dict[str, list[Row]] = {wallet_id: [] for wallet_id in WALLETS}
        #: What each wallet had, by moment, and how often it had moved when that was last right.
        self.past: dict[str, dict[int, naive.WalletView]] = {wallet_id: {} for wallet_id in WALLETS}
        self.known: dict[str, int] = {}
        self.closes: dict[str, list[naive_statements.Close]] = {name: [] for name in WALLETS}
        self.closed: dict[str, list[Closed]] = {wallet_id: [] for wallet_id in WALLETS}
        self.asked: list[Request] = []
        self.accepted: list[Request] = []
        for wallet_id, (letter, currency, _) in WALLETS.items():
            subscriptions = [f"sub_{letter}"]
            self.model.create_wallet(wallet_id, currency=currency, subscriptions=subscriptions)
        self.run(self._open())
        self.run(self._seed())

    def run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(doing)

    async def _open(self) -> None:
        self.store = Store(self.url, clock=self.clock, readers=1)
        await self.store.open()
        self.ledger = Ledger(
            self.store,
            queue_max=1_000,
            backdating_ms_max=BACKDATING_MS_MAX,
            on_disk_failure=lambda: pytest.fail("the disk failed"),
        )
        await self.ledger.start()

    async def _close(self) -> None:
        await self.ledger.close()
        await self.store.close()

    async def _seed(self) -> None:
        def seed(connection: Any) -> dict[str, int]:
            add_meter(connection, "mtr_tokens")
            for letter in ("a", "b"):
                add_customer(connection, f"cus_{letter}")
                add_subscription(connection, f"sub_{letter}", customer_id=f"cus_{letter}")
            for wallet_id, (letter, currency, _) in WALLETS.items():
                add_wallet(connection, wallet_id, customer_id=f"cus_{letter}", currency=currency)
            wallets = schema.wallets.c
            return dict(connection.execute(select(wallets.id, wallets.number)).all())

        self.numbers = await self.store.write(seed)

    # What may happen.

    @rule(data=st.data())
    def post(self, data: st.DataObject) -> None:
        asking = self._asking(data)
        self._ask([asking.request(self._key(), list(self.postings), asking.wallet_id())])

    @rule(data=st.data(), count=st.integers(2, 8))
    def post_together(self, data: st.DataObject, count: int) -> None:
        """Several commands in one batch, mostly on one wallet, in which keys may meet."""
        asking, postings = self._asking(data), list(self.postings)
        wallet_id = asking.wallet_id()
        items: list[Asked] = []
        for place in range(count):
            others = ["elsewhere", "again", "change", "limit", "grant"]
            what = data.draw(st.sampled_from(["new"] * 6 + others))
            earlier = [item for item in items if isinstance(item, Request)]
            if what == "change":
                items.append(asking.change())
            elif what == "limit":
                items.append(asking.limit())
            elif what == "grant":
                items.append(asking.grant_update())
            elif what == "again" and earlier:
                items.append(asking.again(data.draw(st.sampled_from(earlier))))
            else:
                where = asking.wallet_id() if what == "elsewhere" else wallet_id
                items.append(asking.request(self._key(place), postings, where))
        self._ask(items)

    @rule(data=st.data(), amounts=st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=4))
    def refund_in_parts(self, data: st.DataObject, amounts: list[int | None]) -> None:
        """Refunds of one posting in one batch, and what they return is spent again in between."""
        spent = [item for item in self.accepted if item.name == "consumption"]
        if not spent:
            return
        original = data.draw(st.sampled_from(spent))
        known = self.model.wallets[original.wallet_id].postings.values()
        ref = next(posting.ref for posting in known if posting.key == original.key)
        items: list[Asked] = []
        for place, amount in enumerate(amounts):
            body = {"posting_id": ref, "amount": amount}
            items.append(Request(original.wallet_id, self._key(2 * place), "refund", body))
            if data.draw(st.booleans()):
                again = {"amount": data.draw(st.integers(1, 20))}
                key = self._key(2 * place + 1)
                items.append(Request(original.wallet_id, key, "consumption", again))
        self._ask(items)

    @rule(data=st.data())
    def owe(self, data: st.DataObject) -> None:
        """A wallet is overdrawn, by its limit or by force, and a grant is to begin later."""
        wallet_id = self._asking(data).wallet_id()
        view = self.model.wallet(wallet_id, now=self.clock.now)
        grants = [grant.ref for grant in self.model.grants(wallet_id)]
        more = data.draw(st.integers(1, 20))
        body: dict[str, Any] = {"amount": -more, "force": True}
        if data.draw(st.booleans()) and grants:
            body["credit_grant_id"] = data.draw(st.sampled_from(grants))
            body["amount"] -= data.draw(st.sampled_from([0, 20]))
        elif data.draw(st.booleans()):
            body["amount"] -= max(0, view.available)
        items: list[Asked] = [Request(wallet_id, self._key(0), "adjustment", body)]
        if data.draw(st.booleans()):
            spent = {"amount": max(0, view.available) + more}
            items = [Change(wallet_id, None, 40)]
            items.append(Request(wallet_id, self._key(0), "consumption", spent))
        begins = self.clock.now + data.draw(st.sampled_from([1, SECOND, 60_000]))
        later = {
            "amount": data.draw(st.integers(1, 30)),
            "category": data.draw(st.sampled_from(["paid", "promotional"])),
            "effective_at": begins,
            "expires_at": data.draw(st.sampled_from([None, begins + 1, begins + 60_000])),
        }
        if data.draw(st.booleans()):
            items.append(Request(wallet_id, self._key(1), "grant", later))
        self._ask(items)

    @rule(data=st.data())
    def post_again(self, data: st.DataObject) -> None:
        """A retry, of what was accepted or refused: the same request or another one."""
        if self.asked:
            earlier = data.draw(st.sampled_from(self.accepted * 9 + self.asked))
            self._ask([self._asking(data).again(earlier)])

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        self._ask([self._asking(data).change()])

    @rule(data=st.data())
    def limit(self, data: st.DataObject) -> None:
        self._ask([self._asking(data).limit()])

    @rule(data=st.data())
    def update_grant(self, data: st.DataObject) -> None:
        self._ask([self._asking(data).grant_update()])

    @rule(milliseconds=st.sampled_from([1, SECOND - 1, SECOND, 60_000, DAY, -1, -DAY, 36 * DAY]))
    def time_passes(self, milliseconds: int) -> None:
        """Or somebody sets the clock back."""
        self.clock.advance(milliseconds)

    @rule()
    def sweep(self) -> None:
        """What is over is written down, and nothing else that anybody sees has changed."""
        sweeper = Sweeper(self.store, self.ledger, clock=self.clock, interval_seconds=DAY)
        self.run(sweeper.sweep())
        self.model.sweep(now=self.clock.now)

    @rule(seed=st.integers(0, 1_000))
    def fold(self, seed: int) -> None:
        """Some wallets are folded, or all folds dropped, and no sum over time has changed."""

        def ask(connection: Any) -> list[Any]:
            return [
                answers(connection, wallet, last, windows(connection, wallet, Random(seed)))
                for wallet, last in wallet_ends(connection).items()
            ]

        before = self.run(self.store.read(ask))
        self.run(self.store.derive(lambda connection: fold_some(connection, Random(seed))))
        assert self.run(self.store.read(ask)) == before

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        """A wallet was at any earlier moment what it was."""
        wallet_id = data.draw(st.sampled_from(list(WALLETS)))
        if not self.past[wallet_id]:
            return
        moment = data.draw(st.sampled_from(sorted(self.past[wallet_id])))

        def read(connection: Any) -> tuple[object, ...]:
            wallet = records.wallet(connection, wallet_id)
            assert wallet is not None
            was = wallet_history.at_time(connection, wallet, moment)
            return (*standing(was, moment), overdraft_used(was, moment))

        expected = self.past[wallet_id][moment]
        assert self.run(self.store.read(read)) == expected[:6]

    @rule(data=st.data())
    def state(self, data: st.DataObject) -> None:
        """Periods of a wallet have the model's figures, and each closes with what the next has."""
        self.sweep()
        wallet_id = data.draw(st.sampled_from(list(WALLETS)))
        edges = sorted({self._moment(data, wallet_id) for _ in range(3)})
        said = [self._statement(wallet_id, *period) for period in pairwise(edges)]
        closes = self.closes[wallet_id]
        wallet = self.model.wallets[wallet_id]
        assert said == [
            naive_statements.statement(wallet, closes, *period) for period in pairwise(edges)
        ]
        for before, after in pairwise(said):
            assert before["closing_balance"] == after["opening_balance"]

    @rule(data=st.data())
    def close_period(self, data: st.DataObject) -> None:
        """A period is closed with the figures it has; asked for again, it is as it was closed."""
        self.sweep()
        wallet_id = data.draw(st.sampled_from(list(WALLETS)))
        closes = self.closes[wallet_id]
        start = closes[-1].end if closes else self._moment(data, wallet_id)
        ends = [self._moment(data, wallet_id), self.clock.now]
        end = data.draw(st.sampled_from(ends))
        if not start < end <= self.clock.now:
            return
        expected = self._statement(wallet_id, start, end)
        closed = self.run(self._statements().close(self._period(wallet_id, start, end), LOCAL))
        assert figures_of(json.loads(closed.content), WALLETS[wallet_id][2]) == expected
        assert statements.digest(closed.content) == closed.sha256
        rows = len(self.model.wallets[wallet_id].rows)
        closes.append(naive_statements.Close(start, end, rows))
        self.closed[wallet_id].append(closed)

    @rule(data=st.data())
    def closed_ones_stay(self, data: st.DataObject) -> None:
        """Whatever came since: what was closed, and what the period is said to have been."""
        self.sweep()  # a statement begins with that, and grants that begin pay overdraft back
        wallet_id = data.draw(st.sampled_from(list(WALLETS)))
        if self.closed[wallet_id]:
            one = data.draw(st.sampled_from(self.closed[wallet_id]))
            period = one.starts_at, one.ends_at
            self.model.write_down(wallet_id, now=self.clock.now)
            again = self._statements().close(self._period(wallet_id, *period), LOCAL)
            assert self.run(again) == one
            said = figures_of(json.loads(one.content), WALLETS[wallet_id][2])
            assert self._statement(wallet_id, *period) == said

    def _moment(self, data: st.DataObject, wallet_id: str) -> int:
        """One at which something of the wallet happened or was written, or beside it."""
        rows = self.model.wallets[wallet_id].rows
        moments = {self.clock.now, START, *(close.end for close in self.closes[wallet_id])}
        moments |= {row.created_at for row in rows} | {row.effective_at for row in rows}
        return data.draw(st.sampled_from(sorted(moments))) + data.draw(st.sampled_from([-1, 0, 1]))

    def _statements(self) -> Statements:
        return Statements(self.store, self.ledger, self.clock)

    def _period(self, wallet_id: str, start: int, end: int) -> StatementPeriod:
        return StatementPeriod(wallet_id, Bucket(start, end), ZoneInfo("UTC"), is_month=False)

    def _statement(self, wallet_id: str, start: int, end: int) -> dict[str, Any]:
        self.model.write_down(wallet_id, now=self.clock.now)
        wanted = self._period(wallet_id, start, end)
        return figures_of(self.run(self._statements().open(wanted, LOCAL)), WALLETS[wallet_id][2])

    @rule()
    def reopen(self) -> None:
        """What is known comes from the file alone."""
        self.run(self._close())
        self.run(self._open())

    # What must be the same.

    @invariant()
    def wallets_are_the_same(self) -> None:
        """Figures, grants, rows and counters as they lie in the database."""
        wallets = self.run(self._loaded())
        lying = self.run(self.store.read(lambda c: self._lying(c, wallets.values())))
        for wallet_id in WALLETS:
            wallet = wallets[wallet_id]
            grants, terms, limits_, rows, voucher = (part[wallet.number] for part in lying)
            expected = self.model.wallet(wallet_id, now=self.clock.now)
            assert expected == figures(view(wallet, self.clock.now))
            self._remember(wallet_id, expected)
            assert [
                (
                    *(g.ref, g.amount, g.overdraft_paid, g.repaid, g.remaining),
                    *(g.effective_at, g.category),
                )
                for g in self.model.grants(wallet_id)
            ] == grants
            assert self._model_terms(wallet_id) == terms
            assert self._model_holds(wallet_id) == self._holds(wallet)
            own = self.model.wallets[wallet_id]
            unpaid = [(self.postings[e.ref], own.unpaid(e)) for e in own.events()]
            assert unpaid == [(one.number, one.unpaid) for one in wallet.unpaid.values()]
            assert wallet.unpaid_amount == sum(amount for _, amount in unpaid)
            assert self._model_limits(wallet_id) == limits_
            self._compare_rows(wallet, rows)
            promotional = [row for row in own.rows if own.category(row) == "promotional"]
            assert voucher == sum(row.amount for row in promotional)
            summary = naive_bills.summary(self.model, [wallet_id])
            assert summary == (
                wallet.usage_quantity,
                wallet.unmetered_amount,
                wallet.usage_amount,
                wallet.usage_count,
            )
            for kind, amount in (("topup", wallet.topup_amount), ("refund", wallet.refund_amount)):
                rows = self.model.wallets[wallet_id].rows
                assert amount == sum(row.amount for row in rows if row.kind == kind)
            gave = [row.amount for row in self.model.wallets[wallet_id].rows if row.amount > 0]
            assert wallet.credited_amount == sum(gave)

    def teardown(self) -> None:
        self.run(self._close())
        self.runner.close()
        naive_invariants.check(self.model)
        assert findings(self.url) == []

    def _remember(self, wallet_id: str, seen: naive.WalletView) -> None:
        """What the wallet has now; what it was thought to have later is no longer so."""
        past, model = self.past[wallet_id], self.model.wallets[wallet_id]
        moved = len(model.postings) + len(model.revisions) + len(model.repayments)
        if self.known.get(wallet_id) != moved:
            self.known[wallet_id] = moved
            times = [posting.created_at for posting in model.postings.values()]
            times += [one.written_at for one in model.repayments]
            last = max([0, *times, *(made for _, made, _ in model.revisions)])
            for moment in [moment for moment in past if moment >= last]:
                del past[moment]
        past[model.now(self.clock.now)] = seen

    # How both are asked.

    def _key(self, place: int = 0) -> str:
        """A new one for each place of a batch."""
        return f"k{len(self.asked)}.{place}"

    def _asking(self, data: st.DataObject) -> Asking:
        return Asking(data, self.model, self.clock)

    def _ask(self, items: Sequence[Asked]) -> None:
        """All at once, so that they are one batch; the model takes them one by one."""
        commands = [self._command(item) for item in items]
        answers = self.run(self._submit(commands))
        for item, command, answer in zip(items, commands, answers, strict=True):
            if isinstance(command, Command) and isinstance(answer, Refusal):
                rename(answer, FIELD_NAMES.get(type(command.operation), {}))
            note(f"{item}\n  -> {answer!r}")
            if isinstance(answer, Exception) and not isinstance(answer, Refusal):
                raise answer
            expected = self._model_answer(item)
            if isinstance(item, Request):
                self.asked.append(item)
                event(f"{item.name}: {outcome(expected)}")
            if isinstance(expected, naive.Refused) and "posting_id" in expected.metadata:
                ref = expected.metadata["posting_id"]
                assert isinstance(ref, int)
                expected.metadata["posting_id"] = self.postings[ref]
            compare(expected, answer, WALLETS[item.wallet_id][2])
            if isinstance(expected, naive.Accepted) and expected.posting_ref:
                number = self.postings.setdefault(expected.posting_ref, answer.posting.number)
                assert number == answer.posting.number
                assert isinstance(item, Request)
                self.accepted.append(item)

    async def _submit(
        self, commands: Sequence[Command | operations.Change | LimitChange]
    ) -> list[Any]:
        futures: list[asyncio.Future[Any]] = []
        for one in commands:
            send: Callable[[Any], asyncio.Future[Any]] = self.ledger.change
            if isinstance(one, Command):
                send = self.ledger.post
            elif isinstance(one, SetLimit | DropLimit):
                send = self.ledger.limit
            futures.append(send(one))
        return await asyncio.gather(*futures, return_exceptions=True)

    def _model_answer(self, item: Asked) -> naive.Accepted | naive.Answer:
        now = self.clock.now
        if isinstance(item, GrantUpdate):
            return self.model.update_grant(item.wallet_id, item.ref, now=now, **item.terms)
        if isinstance(item, Change):
            return self.model.update(
                item.wallet_id,
                status=item.status,
                limit=item.limit,
                cancel_unpaid=item.cancel_unpaid,
                now=now,
            )
        if isinstance(item, random_requests.SetLimit):
            return self.model.set_limit(
                item.wallet_id,
                now=now,
                amount=item.amount,
                key=item.key,
                period=item.period,
                hours=item.hours,
            )
        if isinstance(item, random_requests.DropLimit):
            return self.model.drop_limit(item.wallet_id, ref=item.ref, now=now)
        return self.model.post(
            item.wallet_id,
            now=now,
            idempotency_key=item.key,
            operation={item.name: item.body},
            **item.options,
        )

    def _command(self, item: Asked) -> Command | operations.Change | LimitChange:
        scale = WALLETS[item.wallet_id][2]
        if isinstance(item, GrantUpdate):
            terms = {name: value for name, value in item.terms.items() if value is not None}
            grant_id = ids.compose("cg", self.numbers[item.wallet_id], item.ref)
            return GrantChange(item.wallet_id, grant_id, True, None, **terms)
        if isinstance(item, Change):
            return WalletChange(
                item.wallet_id,
                livemode=True,
                overdraft_limit=None if item.limit is None else text(item.limit, scale),
                status=None if item.status is None else Status[item.status.upper()],
                cancel_unpaid=item.cancel_unpaid,
            )
        if isinstance(item, random_requests.DropLimit):
            limit_id = ids.compose("spl", self.numbers[item.wallet_id], item.ref)
            return DropLimit(item.wallet_id, livemode=True, spend_limit_id=limit_id)
        if isinstance(item, random_requests.SetLimit):
            period = Period[item.period.upper()]
            calendar = period in (Period.DAY, Period.WEEK, Period.MONTH)
            return SetLimit(
                item.wallet_id,
                livemode=True,
                amount=text(item.amount, scale),
                api_key_id=item.key,
                period=period,
                time_zone="UTC" if calendar else None,
                hours=item.hours if period is Period.ROLLING else None,
            )
        options = dict(item.options)
        options["metadata"] = options.get("metadata") or {}
        return Command(
            wallet_id=item.wallet_id,
            idempotency_key=item.key,
            operation=self._operation(item, scale),
            livemode=True,
            posted_by=None,
            actor="gateway",
            **options,
        )

    def _operation(self, item: Request, scale: int) -> Operation:
        """As the edge makes it of a message: defaults filled in."""
        body, number = item.body, self.numbers[item.wallet_id]
        units = body.get("amount")
        amount = None if units is None else text(units, scale, item.zeros)
        if item.name == "refund":
            ref = body["posting_id"]
            owner = next((w for w in WALLETS if ref in self.model.wallets[w].postings), None)
            place = number if owner is None else self.numbers[owner]
            posting_id = ids.compose("pst", place, self.postings.get(ref, ref))
            return Refund(posting_id, amount, bool(body.get("force")))
        if item.name in ("capture", "release", "extend"):
            return self._on_hold(item, amount)
        if item.name == "cancel":
            event = body["event_id"]
            return CancelEvent(ids.compose("me", number, self.postings.get(event, event)))
        if item.name == "void":
            return VoidGrant(ids.compose("cg", number, body["id"]))
        assert amount is not None
        if item.name == "transfer":
            return Transfer(body["to_wallet_id"], amount)
        if item.name == "hold":
            return PlaceHold(
                amount,
                body.get("deadline"),
                body.get("ttl_ms"),
                body.get("meter_id"),
                body.get("meter_event_id"),
                body.get("subscription_id"),
                None if body.get("usage") is None else self._usage(body["usage"]),
            )
        if item.name == "grant":
            kind = body.get("kind") or "topup"
            category = body.get("category") or naive.default_category(kind)
            return GiveGrant(
                amount,
                Kind[kind.upper()],
                Category[category.upper()],
                50 if body.get("priority") is None else body["priority"],
                body.get("name"),
                body.get("effective_at"),
                body.get("expires_at"),
                body.get("source") or {},
                grant_scope(body.get("scope")),
                allow_repeated_receipt=bool(body.get("allow_repeated_receipt")),
            )
        if item.name == "meter_event":
            return ReportEvent(amount, body["meter_id"], body.get("subscription_id"))
        if item.name == "adjustment":
            ref = body.get("credit_grant_id")
            named = None if ref is None else ids.compose("cg", number, ref)
            return Adjust(amount, body.get("source") or {}, named, bool(body.get("force")))
        return Consume(
            amount,
            body.get("meter_id"),
            body.get("meter_event_id"),
            body.get("subscription_id"),
            None if body.get("usage") is None else self._usage(body["usage"]),
        )

    def _on_hold(self, item: Request, amount: str | None) -> Operation:
        body, ref = item.body, item.body["hold_id"]
        number = self.postings.get(ref, ref)
        hold_id = ids.compose("hld", self.numbers[item.wallet_id], number)
        if item.name == "release":
            return Release(hold_id)
        if item.name == "extend":
            return Extend(hold_id, body.get("deadline"), body.get("ttl_ms"))
        return Capture(
            hold_id,
            amount,
            bool(body.get("final")),
            bool(body.get("allow_more")),
            body.get("meter_event_id"),
            None if body.get("usage") is None else self._usage(body["usage"]),
        )

    def _usage(self, usage: dict[str, Any]) -> Usage:
        return Usage(
            usage.get("api_key_id") or "",
            usage.get("product_id") or "",
            usage.get("product_name") or "",
            usage.get("category") or "",
            usage.get("billing_method") or 1,
            tuple(usage["quantities"]),
            tuple(usage.get("base_prices") or ()),
            tuple(usage.get("discount_prices") or ()),
            usage.get("price_precision") or 1,
        )

    # How the database is read.

    async def _loaded(self) -> dict[str, Wallet]:
        """The wallets as a batch would load them."""
        found: dict[str, Wallet] = {}

        def look(loaded: Loaded) -> Changes:
            found.update(loaded.wallets)
            return Changes()

        nothing: frozenset[Any] = frozenset()
        wallets = frozenset(WALLETS)
        await self.store.commit(
            Wanted(wallets, nothing, nothing, nothing, nothing, nothing, nothing, lambda _: ()),
            look,
        )
        return found

    def _lying(self, connection: Connection, wallets: Collection[Wallet]) -> list[dict[int, Any]]:
        """What else there is, by wallet: grants, their terms, limits, and rows not seen yet."""
        grants: dict[int, Any] = {wallet.number: [] for wallet in wallets}
        terms: dict[int, Any] = {wallet.number: [] for wallet in wallets}
        for number, *revision, metadata in connection.execute(REVISIONS):
            terms[number].append((*revision, load(metadata, {})))
        for number, *grant in connection.execute(GRANTS):
            grants[number].append((*grant[:6], Category(grant[6]).word))
            terms[number].append((grant[0], *grant[7:]))
        shown = {wallet.number: self._limits(connection, wallet) for wallet in wallets}
        written = {wallet.number: self._rows(connection, wallet) for wallet in wallets}
        # What promotional grants paid, less what was refunded of that.
        vouchers = {
            wallet.number: sum(
                sums.voucher_amount
                for sums in bill_sums.in_window(
                    connection, wallet.number, wallet.sequence, FIRST, END
                ).values()
            )
            for wallet in wallets
        }
        return [grants, terms, shown, written, vouchers]

    def _model_limits(self, wallet_id: str) -> list[naive.LimitView]:
        wallet = self.model.wallets[wallet_id]
        return [wallet.limit_view(limit, self.clock.now) for limit in wallet.limits]

    def _limits(self, connection: Connection, wallet: Wallet) -> list[naive.LimitView]:
        """As they lie in the database, and are shown."""
        wallet.limits, labels = transaction_reads.limits(connection, wallet)
        now = wallet.time(self.clock.now)
        held = spend_limits.held(wallet, lambda hold: labels[hold.dimension], now)
        return [limit_figures(spend_limits.view(wallet, one, held, now)) for one in wallet.limits]

    def _model_terms(self, wallet_id: str) -> list[tuple[Any, ...]]:
        """What became of grants, oldest first; and what they are."""
        wallet = self.model.wallets[wallet_id]
        return [
            *sorted((g.ref, number, at, *terms_of(g)) for number, at, g in wallet.revisions),
            *((g.ref, *terms_of(g)[:-1]) for g in wallet.grants),
        ]

    def _model_holds(self, wallet_id: str) -> dict[int, tuple[Any, ...]]:
        """Open ones, by the ledger's number: all that there is of them."""
        return {
            self.postings[hold.ref]: (hold.captured, hold.deadline, hold.parts, hold.beyond)
            for hold in self.model.holds(wallet_id)
            if hold.live(self.model.wallets[wallet_id].now(self.clock.now))
        }

    def _holds(self, wallet: Wallet) -> dict[int, tuple[Any, ...]]:
        now = wallet.time(self.clock.now)
        return {
            hold.number: (hold.captured, hold.deadline, hold.parts, hold.beyond)
            for hold in wallet.holds.values()
            if hold.is_open(now)
        }

    def _rows(self, connection: Connection, wallet: Wallet) -> list[Row]:
        known = len(self.rows[wallet.id])
        if wallet.sequence == known:
            return []
        after = {"wallet": wallet.number, "after": known}
        return [Row(*row) for row in connection.execute(ROWS, after)]

    def _compare_rows(self, wallet: Wallet, written: Sequence[Row]) -> None:
        """The rows written since the last look, and whose postings they are."""
        known = self.rows[wallet.id]
        expected = self.model.rows(wallet.id)[len(known) :]
        assert [plain(row) for row in expected] == [seen(row) for row in written]
        for model_row, row in zip(expected, written, strict=True):
            assert self.postings.setdefault(model_row.posting, row.posting) == row.posting
        known.extend(written)
        assert wallet.sequence == len(known)


#: The model names fields as the requests do.
FIELD_NAMES = {
    **posting_messages.FIELD_NAMES,
    ReportEvent: events.FIELD_NAMES,
    Transfer: {"wallet_id": "from_wallet_id"},
}
_TERMS = ("name", "priority", "expires_at", "voided_at")
_OF_GRANTS = ("amount", "overdraft_paid", "repaid", "remaining", "effective_at", "category")
_grants, _revisions, _rows = schema.grants.c, schema.grant_revisions.c, schema.transactions.c
#: Of all wallets, oldest first: seven columns of what is left, and the terms.
GRANTS = select(
    _grants.wallet_number, _grants.number, *(_grants[name] for name in (*_OF_GRANTS, *_TERMS))
).order_by(_grants.number)
REVISIONS = select(
    _revisions.wallet_number,
    _revisions.grant_number,
    _revisions.number,
    _revisions.created_at,
    *(_revisions[name] for name in (*_TERMS, "metadata")),
).order_by(_revisions.grant_number, _revisions.number)
ROWS = (
    select(*ROW.of(_rows))
    .where(_rows.wallet_number == bindparam("wallet"), _rows.sequence > bindparam("after"))
    .order_by(_rows.sequence)
)

#: Of errors' metadata.
AMOUNTS = ("required", "available", "refundable", "held", "limit", "spent", "remaining")


# --- what is compared -----------------------------------------------------------------------------


def grant_scope(said: dict[str, list[str]] | None) -> GrantScope | None:
    """As the edge makes it of a message."""
    found = {name: tuple(sorted(set(only))) for name, only in (said or {}).items()}
    return GrantScope(**found) if any(found.values()) else None


def outcome(answer: naive.Accepted | naive.Answer) -> str:
    if isinstance(answer, naive.Refused):
        return answer.reason
    return "replayed" if isinstance(answer, naive.Accepted) and answer.replayed else "accepted"


def terms_of(grant: naive.Grant) -> tuple[object, ...]:
    return grant.name, grant.priority, grant.expires_at, grant.voided_at, grant.metadata


def plain(row: naive.Row) -> tuple[object, ...]:
    return (
        row.sequence,
        row.kind,
        row.type,
        row.amount,
        row.running_balance,
        row.created_at,
        row.effective_at,
        row.grant,
    )


def seen(row: Row) -> tuple[object, ...]:
    return (
        row.sequence,
        Kind(row.kind).word,
        Type(row.type).word,
        row.amount,
        row.running_balance,
        row.created_at,
        row.created_at if row.effective_at is None else row.effective_at,
        row.grant,
    )


def figures(wallet: WalletView) -> naive.WalletView:
    return naive.WalletView(
        wallet.balance,
        wallet.held,
        wallet.pending,
        wallet.available,
        wallet.scoped,
        wallet.overdraft_used,
        wallet.overdraft_limit,
        wallet.sequence,
        wallet.status.word,
    )


def limit_figures(seen: LimitView) -> naive.LimitView:
    return naive.LimitView(seen.limit.number, seen.limit.amount, seen.spent, seen.held)


def compare(expected: naive.Accepted | naive.Answer, answer: Any, scale: int) -> None:
    """Raises AssertionError unless the ledger's answer says what the model's says."""
    if isinstance(expected, naive.Refused):
        assert isinstance(answer, Refusal), answer
        metadata = dict(expected.metadata)
        param = metadata.pop("param", None)
        assert (expected.reason, param or answer.param) == (answer.reason, answer.param)
        assert {name: written(value) for name, value in metadata.items()} == {
            name: read(name, value, scale)
            for name, value in answer.metadata.items()
            if name not in ("currency", "resets_at", "retry_after")
        }
    elif isinstance(expected, naive.WalletView):
        assert expected == figures(answer)
    elif isinstance(expected, naive.LimitView):
        assert expected == limit_figures(answer)
    else:
        assert isinstance(answer, Posted), answer
        assert expected.replayed == answer.replayed
        assert (expected.posting_ref == 0) == (answer.posting.number == 0)
        assert [plain(row) for row in expected.rows] == [seen(row) for row in answer.posting.rows]
        assert expected.wallet == figures(answer.wallet)
        assert (expected.received is None) == (answer.received is None)
        if expected.received is not None:
            compare(expected.received, answer.received, scale)


def figures_of(said: dict[str, Any], scale: int) -> dict[str, Any]:
    """A statement's figures in smallest units, without those that are 0."""

    def units(name: str, value: str) -> int:
        counts = ("count", "calls", "quantity")
        return int(value) if name in counts else int(Decimal(value).scaleb(scale))

    def line(one: dict[str, str]) -> dict[str, int]:
        texts = (
            *("kind", "api_key_id", "product_id", "product_name"),
            *("credit_grant_id", "name", "category"),
        )
        figures = {
            name: units(name, value)
            for name, value in one.items()
            if name not in texts and not name.endswith("_at")
        }
        return {name: value for name, value in figures.items() if value}

    def number(one: dict[str, str]) -> int:
        place = ids.resolve("cg", one["credit_grant_id"])
        assert place is not None
        return place[1]

    return {
        **{name: units(name, said[name]) for name in ("opening_balance", "closing_balance")},
        **{
            name: {one["kind"]: [int(one["count"]), units("", one["amount"])] for one in said[name]}
            for name in ("by_kind", "prior_period_adjustments")
        },
        "by_api_key": {one.get("api_key_id", ""): line(one) for one in said["by_api_key"]},
        "by_product": {
            (one.get("product_id", ""), one.get("product_name", "")): line(one)
            for one in said["by_product"]["products"]
        },
        "grants": {number(one): line(one) for one in said["grants"]},
        "overdraft": line(said["overdraft"]),
    }


def written(value: object) -> object:
    return ",".join(value) if isinstance(value, list) else value


def read(name: str, value: str, scale: int) -> object:
    if name in ("ended_at", "voided_at", "expired_at"):
        return time.parse(value, field=name)
    if name == "spend_limit_id":
        place = ids.resolve("spl", value)
        return place and place[1]
    if name == "posting_id":
        place = ids.resolve("pst", value)
        return place and place[1]
    if name in AMOUNTS:
        return int(Decimal(value).scaleb(scale))
    return int(value) if name in ("expected", "actual") else value


def test_the_ledger_is_the_naive_model(databases: Files | Databases) -> None:
    """Random traffic is answered, refused and booked as the rules say, to the last digit."""

    class Machine(LedgerMachine):
        def make_database(self) -> str:
            return databases.new()

        def teardown(self) -> None:
            super().teardown()
            databases.drop(self.url)

    examples = settings().max_examples
    # The rules are the same on a server, where each step takes three times as long.
    if isinstance(databases, Databases):
        examples //= 3
    # Shrinking a failure takes some minutes; a success takes one.
    run_state_machine_as_test(
        Machine,
        settings=settings(stateful_step_count=50, max_examples=examples),
    )
