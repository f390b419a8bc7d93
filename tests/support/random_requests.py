"""What the model test asks for: requests drawn by hypothesis, mostly such as can be granted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from creditledger.domain.clock import DAY, SECOND
from tests.support.naive import SPENDING
from tests.support.setup import BACKDATING_MS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.naive import NaiveLedger
    from tests.support.setup import Clock

#: Wallet id -> (its customer's letter, its currency, digits after the point).
WALLETS = {
    "wal_usd": ("a", "USD", 9),
    "wal_credit": ("a", "CREDIT", 6),
    "wal_other": ("b", "USD", 9),
}
#: A number that no posting and no grant has.
NOBODY = 1 << 40
#: Around every bound that time has in the rules.
BEGINS = (-BACKDATING_MS_MAX - 1, -BACKDATING_MS_MAX, -DAY, 0, 1, SECOND, 60_000, 60_001)
ENDS = (-1, 0, 1, SECOND, 60_000, DAY)


@dataclass(frozen=True)
class Request:
    """One posting as both sides are asked for it; grants and postings by the model's names."""

    wallet_id: str
    key: str
    name: str
    body: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    zeros: int = 0  #: Written behind the amount, for the ledger only: they change nothing.


@dataclass(frozen=True)
class Change:
    """A change of a wallet's status or limit."""

    wallet_id: str
    status: str | None
    limit: int | None
    cancel_unpaid: bool = False


@dataclass(frozen=True)
class SetLimit:
    """A spend limit of a wallet; `hours` of a rolling one."""

    wallet_id: str
    amount: int
    key: str | None
    period: str
    hours: int


@dataclass(frozen=True)
class DropLimit:
    """The end of the limit that was the how manieth of its wallet."""

    wallet_id: str
    ref: int


@dataclass(frozen=True)
class GrantUpdate:
    """A change of a grant's terms; the grant by the model's name."""

    wallet_id: str
    ref: int
    terms: dict[str, Any]


#: Which operations are asked for, and how often.
OPERATIONS = ["grant"] * 3 + ["consumption"] * 5 + ["adjustment"] * 3 + ["refund"] * 3
OPERATIONS += (
    ["meter_event"] * 3 + ["hold"] * 3 + ["capture"] * 4 + ["release", "extend"] + ["transfer"] * 3
)
OPERATIONS += ["void"] * 2 + ["cancel"] * 2
ON_HOLDS = ("hold", "capture", "release", "extend")
FLAT = (*ON_HOLDS, "void", "cancel")
#: Around the bounds of a hold's time.
TIMES = (-1, 0, 1, SECOND, 60_000, DAY, 7 * DAY, 7 * DAY + 1)

amounts = st.integers(1, 12) | st.integers(1, 60)
labels = st.sampled_from([None, "", "a", "b"])


#: What grants pay for: often what many consumptions name, sometimes everything, or no such meter.
scopes = st.fixed_dictionaries(
    {},
    optional={
        "meter_ids": st.sampled_from([["mtr_tokens"]] * 7 + [[], ["mtr_tokens", "mtr_none"]]),
        "product_ids": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
        "categories": st.sampled_from([[], [], ["a"], ["b", "a", "b"]]),
    },
)


@st.composite
def usages(draw: st.DrawFn, least: int = 1) -> dict[str, Any]:
    """Usage whose fields are left out, given as their defaults, or given."""
    fields = {
        "api_key_id": labels,
        "product_id": labels,
        "product_name": labels,
        "category": labels,
        "billing_method": st.sampled_from([None, 1, 2]),
        "base_prices": st.sampled_from([None, [], [1], [1, 2]]),
        "discount_prices": st.sampled_from([None, [], [1]]),
        "price_precision": st.sampled_from([None, 1, 10_000]),
    }
    return {"quantities": draw(st.lists(st.integers(0, 3), min_size=least, max_size=6))} | {
        name: value for name, values in fields.items() if (value := draw(values)) is not None
    }


class Asking:
    """Draws requests that mean something to the wallet as it stands, and some that do not."""

    def __init__(self, data: st.DataObject, model: NaiveLedger, clock: Clock) -> None:
        self._draw = data.draw
        self._model = model
        self._clock = clock

    def wallet_id(self) -> str:
        """One of them more often than the others, so that something comes together there."""
        return self._draw(st.sampled_from([*WALLETS, "wal_usd", "wal_usd"]))

    def request(self, key: str, postings: Sequence[int], wallet_id: str) -> Request:
        """A posting; it may refund those named."""
        name = self._draw(st.sampled_from(OPERATIONS))
        if name == "refund" and not self._spent(wallet_id, postings) and not self._seldom():
            name = "consumption"
        if name in ON_HOLDS and not self._model.holds(wallet_id) and not self._seldom():
            name = "hold"
        body: dict[str, Any] = getattr(self, f"_{name}")(wallet_id, postings)
        options = {} if name in FLAT else self._options(wallet_id)
        if name == "transfer":
            options.pop("effective_at", None)
        return Request(wallet_id, key, name, body, options, self._zeros())

    def again(self, earlier: Request) -> Request:
        """The same request in other words, or with one thing changed."""
        changed = self._draw(
            st.sampled_from([None, None, "amount", "options", "left out", "metadata", "drawn anew"])
        )
        body, options = dict(earlier.body), dict(earlier.options)
        if earlier.name in FLAT:
            if changed in {"options", "metadata"}:
                changed = None
        else:
            options |= self._apart_from_the_request(earlier.wallet_id)
        if changed == "amount" and body.get("amount"):
            body["amount"] += 1 if body["amount"] > 0 else -1
        elif changed == "options" and earlier.name != "transfer":
            options |= {"effective_at": self._moment(BEGINS)}
        elif changed == "left out" and len(body) > 1:
            # The edge lets no capture of 0 pass that is not final.
            kept = ("amount", "final") if body.get("amount") == 0 else ("amount",)
            if left := [name for name in body if name not in kept]:
                del body[self._draw(st.sampled_from(left))]
        elif changed == "drawn anew" and earlier.name not in (
            "refund",
            "release",
            "void",
            "cancel",
        ):
            body |= getattr(self, f"_{earlier.name}")(earlier.wallet_id, ())
            if body.get("amount") == 0:
                body["final"] = True
        elif changed == "metadata":
            options |= {"metadata": {"team": "blue"}}
        for name in ("posting_id", "hold_id", "to_wallet_id", "meter_id", "id", "event_id"):
            if name in earlier.body and (name != "meter_id" or earlier.name == "meter_event"):
                body.setdefault(name, earlier.body[name])
        return replace(earlier, body=body, options=options, zeros=self._zeros())

    def change(self) -> Change:
        """A new status, a new limit, or both."""
        status = self._draw(
            st.sampled_from([None] * 6 + ["active"] * 6 + ["frozen", "frozen", "closed"])
        )
        limit = self._draw(st.sampled_from([None, 5, 20, 40, 0, -1]))
        wallet_id = self._draw(st.sampled_from(list(WALLETS)))
        return Change(wallet_id, status, limit, self._draw(st.booleans()))

    def limit(self) -> SetLimit | DropLimit:
        """A limit made, changed or taken away; mostly one that still lets something be spent."""
        wallet_id = self.wallet_id()
        refs = [one.ref for one in self._model.wallets[wallet_id].limits]
        if self._draw(st.integers(0, 3)) == 3:
            return DropLimit(wallet_id, self._draw(st.sampled_from([*refs * 5, NOBODY])))
        return SetLimit(
            wallet_id,
            self._draw(st.sampled_from([30, 60, 10, 200, 0])),
            self._draw(st.sampled_from([None, None, "a", "b"])),
            self._draw(st.sampled_from(["day", "rolling", "lifetime", "week", "month"])),
            self._draw(st.sampled_from([1, 24, 744])),
        )

    def grant_update(self) -> GrantUpdate:
        """New terms of a grant, or the same ones."""
        wallet_id = self.wallet_id()
        terms = self._some(
            name=st.sampled_from(["Welcome", "Spring"]),
            priority=st.sampled_from([0, 50, 100]),
            metadata=st.sampled_from([{"team": "red"}, {"team": "blue"}, {"team": ""}]),
        )
        how = self._draw(st.sampled_from([None, None, "expires_at", "never_expires"]))
        if how == "expires_at":
            terms[how] = self._clock.now + self._draw(st.sampled_from(ENDS))
        elif how is not None:
            terms[how] = True
        return GrantUpdate(wallet_id, self._grant_of(wallet_id), terms)

    def _grant_of(self, wallet_id: str) -> int:
        """Mostly one that there is; also what a command of the same batch may be about to make."""
        last = len(self._model.rows(wallet_id))
        made = [grant.ref for grant in self._model.grants(wallet_id)]
        return self._draw(st.sampled_from([*made * 5, last + 1, last + 2, NOBODY]))

    def _void(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        return {"id": self._grant_of(wallet_id)}

    def _cancel(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        own = self._model.wallets[wallet_id].postings.values()
        events = [posting.ref for posting in own if posting.name == "meter_event"]
        return {"event_id": self._draw(st.sampled_from([*events * 9, NOBODY]))}

    def _seldom(self) -> bool:
        """One time in eight; the value that hypothesis thinks simple is the usual one."""
        return self._draw(st.integers(0, 7)) == 7

    def _zeros(self) -> int:
        return self._draw(st.integers(0, 3))

    def _moment(self, offsets: Sequence[int]) -> int | None:
        offset = self._draw(st.sampled_from([None, None, *offsets]))
        return None if offset is None else self._clock.now + offset

    def _options(self, wallet_id: str) -> dict[str, Any]:
        options = self._apart_from_the_request(wallet_id)
        if self._seldom() or self._seldom():
            options["effective_at"] = self._moment(BEGINS)
            options["description"] = self._draw(st.sampled_from([None, "July"]))
            options["note"] = self._draw(st.sampled_from([None, "thanks"]))
            options["metadata"] = self._draw(st.sampled_from([None, {}, {"team": "red"}]))
        return options

    def _apart_from_the_request(self, wallet_id: str) -> dict[str, Any]:
        """What a retry may say otherwise and still be the same request."""
        options: dict[str, Any] = {"backdating_free": self._draw(st.booleans())}
        if self._seldom():
            last = len(self._model.rows(wallet_id))
            options["expected_sequence"] = max(0, last + self._draw(st.integers(-3, 2)))
        if self._seldom():
            options["validate_only"] = True
        return options

    def _some(self, **fields: st.SearchStrategy[Any]) -> dict[str, Any]:
        """Each field left out, None, or drawn."""
        drawn = {}
        for name, values in fields.items():
            if self._draw(st.booleans()):
                drawn[name] = self._draw(st.none() | values)
        return drawn

    def _grant(self, _wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        return {"amount": self._draw(amounts | st.integers(20, 200))} | self._some(
            kind=st.sampled_from(["topup", "subscription_renew", "admin_credit"]),
            category=st.sampled_from(["paid", "promotional"]),
            priority=st.sampled_from([0, 50, 100]),
            name=st.just("Welcome"),
            effective_at=st.sampled_from(BEGINS).map(lambda ms: self._clock.now + ms),
            expires_at=st.sampled_from(ENDS).map(lambda ms: self._clock.now + ms),
            source=st.sampled_from(
                [{}, {"receipt_id": "ch_1"}, {"provider": "stripe", "receipt_id": "ch_1"}]
            ),
            allow_repeated_receipt=st.booleans(),
            scope=scopes,
        )

    def _consumption(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        ours = f"sub_{WALLETS[wallet_id][0]}"
        return {"amount": self._draw(amounts)} | self._some(
            meter_id=st.sampled_from(["mtr_tokens"] * 9 + ["mtr_none"]),
            meter_event_id=st.sampled_from(["evt_1", "evt_2"]),
            subscription_id=st.sampled_from([ours] * 9 + ["sub_a", "sub_b"]),
            usage=usages(),
        )

    def _meter_event(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        ours = f"sub_{WALLETS[wallet_id][0]}"
        meter_id = self._draw(st.sampled_from(["mtr_tokens"] * 9 + ["mtr_none"]))
        return {"amount": self._draw(amounts), "meter_id": meter_id} | self._some(
            subscription_id=st.sampled_from([ours] * 9 + ["sub_a", "sub_b"]),
        )

    def _until(self) -> dict[str, Any]:
        """Neither, or one of the two ways to say until when."""
        how = self._draw(st.sampled_from([None, None, "ttl_ms", "deadline"]))
        if how is None:
            return {}
        offset = self._draw(st.sampled_from(TIMES))
        if how == "ttl_ms":
            return {how: max(1, min(offset, 7 * DAY))}
        return {how: self._clock.now + offset}

    def _hold(self, wallet_id: str, postings: Sequence[int]) -> dict[str, Any]:
        body = self._consumption(wallet_id, postings)
        return body | self._some(usage=usages(least=0)) | self._until()

    def _held(self, wallet_id: str) -> int:
        refs = [hold.ref for hold in self._model.holds(wallet_id)]
        live = [h.ref for h in self._model.holds(wallet_id) if h.live(self._clock.now)]
        return self._draw(st.sampled_from([*live * 9, *refs, NOBODY]))

    def _capture(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        body = {"hold_id": self._held(wallet_id)} | self._some(
            amount=amounts | st.just(0),
            final=st.booleans(),
            allow_more=st.booleans(),
            meter_event_id=st.sampled_from(["evt_1", "evt_2"]),
            usage=usages(),
        )
        return body if body.get("amount") != 0 else body | {"final": True}

    def _release(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        return {"hold_id": self._held(wallet_id)}

    def _extend(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        return {"hold_id": self._held(wallet_id)} | (self._until() or {"ttl_ms": DAY})

    def _transfer(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        # Mostly where it can go; the others are of another currency, the same one, or none.
        others = [w for w in WALLETS if w != wallet_id and WALLETS[w][1] == WALLETS[wallet_id][1]]
        to = st.sampled_from([*others * 9, *WALLETS, "wal_none"])
        return {"to_wallet_id": self._draw(to), "amount": self._draw(amounts)}

    def _adjustment(self, wallet_id: str, _postings: Sequence[int]) -> dict[str, Any]:
        amount = self._draw(amounts) * self._draw(st.sampled_from([1, -1, -1, -1]))
        return {"amount": amount} | self._some(
            credit_grant_id=st.just(self._grant_of(wallet_id)),
            force=st.booleans(),
            source=st.sampled_from([{}, {"actor": "ops@example.com"}]),
        )

    def _spent(self, wallet_id: str, postings: Sequence[int]) -> list[int]:
        own = self._model.wallets[wallet_id].postings
        return [ref for ref in postings if ref in own and own[ref].name in SPENDING]

    def _refund(self, wallet_id: str, postings: Sequence[int]) -> dict[str, Any]:
        spent = self._spent(wallet_id, postings)
        # Mostly what can be; what another wallet posted does not exist here.
        posting_id = self._draw(st.sampled_from([*spent * 9, *postings, NOBODY]))
        return {"posting_id": posting_id} | self._some(amount=amounts, force=st.booleans())
