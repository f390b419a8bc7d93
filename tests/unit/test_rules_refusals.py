"""Who is refused, in which order of precedence, and what the refusal says.

No database and no loop: `decide` is pure, so a refusal is a value for a value.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import chain, combinations
from typing import TYPE_CHECKING

import pytest

from creditledger.domain import ids, money
from creditledger.domain.clock import DAY, SECOND
from creditledger.domain.errors import Refusal
from creditledger.domain.model import Status
from tests.support.setup import BACKDATING_MS_MAX, adjust, command, consume, give, refund
from tests.support.values import (
    GIVEN_ID,
    NOW,
    SPENT,
    SPENT_ID,
    WALLET,
    decide,
    grant,
    references,
    usage,
    wallet_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from creditledger.domain.commands import Command, Operation
    from creditledger.domain.model import Wallet

#: What can be wrong at once: it changes a wallet, the fields of a command, or its operation.
Fault = tuple[str, str | None, dict[str, object]]


def spend_faults() -> list[Fault]:
    full: dict[str, object] = {"usage_quantity": money.TOTAL_MAX}
    return [
        ("SEQUENCE_MISMATCH", "expected_sequence", {"expected_sequence": 37}),
        ("WALLET_FROZEN", None, {"wallet": {"status": Status.FROZEN}}),
        ("NOT_FOUND", "meter_id", {"operation": {"meter_id": "mtr_none"}}),
        ("NOT_FOUND", "subscription_id", {"operation": {"subscription_id": "sub_no"}}),
        ("INVALID_FIELD", "effective_at", {"effective_at": NOW - 36 * DAY}),
        ("INSUFFICIENT_CREDIT", None, {"operation": {"amount": "101"}}),
        ("OUT_OF_RANGE", None, {"wallet": full, "operation": {"usage": usage(1)}}),
    ]


def grant_faults() -> list[Fault]:
    full = {"credited_amount": money.TOTAL_MAX}
    return [
        ("SEQUENCE_MISMATCH", "expected_sequence", {"expected_sequence": 41}),
        ("WALLET_CLOSED", None, {"wallet": {"status": Status.CLOSED}}),
        ("INVALID_FIELD", "begins_at", {"operation": {"begins_at": NOW - 36 * DAY}}),
        ("INVALID_FIELD", "expires_at", {"operation": {"expires_at": NOW}}),
        ("OUT_OF_RANGE", None, {"wallet": full}),
    ]


def debit_faults() -> list[Fault]:
    unknown: dict[str, object] = {"operation": {"credit_grant_id": ids.compose("cg", WALLET, 6)}}
    return [
        ("SEQUENCE_MISMATCH", "expected_sequence", {"expected_sequence": 0}),
        ("WALLET_FROZEN", None, {"wallet": {"status": Status.FROZEN}}),
        ("NOT_FOUND", "credit_grant_id", unknown),
        ("INVALID_FIELD", "effective_at", {"effective_at": NOW + 61 * SECOND}),
        ("INSUFFICIENT_CREDIT", None, {"operation": {"amount": "-101"}}),
    ]


def credit_faults() -> list[Fault]:
    unknown: dict[str, object] = {"operation": {"credit_grant_id": ids.compose("cg", WALLET, 6)}}
    return [
        ("SEQUENCE_MISMATCH", "expected_sequence", {"expected_sequence": 41}),
        ("WALLET_CLOSED", None, {"wallet": {"status": Status.CLOSED}}),
        ("NOT_FOUND", "credit_grant_id", unknown),
        ("INVALID_FIELD", "effective_at", {"effective_at": NOW - 36 * DAY}),
        ("INVALID_FIELD", "force", {"operation": {"force": True}}),
        ("OUT_OF_RANGE", None, {"wallet": {"credited_amount": money.TOTAL_MAX}}),
    ]


def refund_faults() -> list[Fault]:
    other_wallet: dict[str, object] = {
        "operation": {"posting_id": ids.compose("pst", WALLET + 1, SPENT)}
    }
    return [
        ("SEQUENCE_MISMATCH", "expected_sequence", {"expected_sequence": 37}),
        ("WALLET_CLOSED", None, {"wallet": {"status": Status.CLOSED}}),
        ("NOT_FOUND", "posting_id", other_wallet),
        ("INVALID_FIELD", "effective_at", {"effective_at": NOW - 36 * DAY}),
        ("NOT_REFUNDABLE", "posting_id", {"operation": {"posting_id": GIVEN_ID}}),
        ("REFUND_TOO_LARGE", "amount", {"operation": {"amount": "31"}}),
        ("OUT_OF_RANGE", None, {"wallet": {"credited_amount": money.TOTAL_MAX}}),
    ]


def with_faults(operation: Operation, faults: list[Fault]) -> list[tuple[Operation, list[Fault]]]:
    """The command with each fault alone, with each two of them, and with all at once."""
    alone_and_paired = chain(combinations(faults, 1), combinations(faults, 2))
    return [(operation, [*some]) for some in alone_and_paired] + [(operation, faults)]


def faulty(operation: Operation, faults: Sequence[Fault]) -> tuple[Wallet, Command]:
    wallet = wallet_of(grant(4, 60), grant(5, 40))
    fields: dict[str, object] = {}
    for _, _, changes in reversed(faults):  # of two that exclude each other the first stands
        for name, value in changes.items():
            if name == "wallet":
                assert isinstance(value, dict)
                for attribute, new in value.items():
                    setattr(wallet, attribute, new)
            elif name == "operation":
                assert isinstance(value, dict)
                operation = replace(operation, **value)  # type: ignore[type-var]  # each is one
            else:
                fields[name] = value
    return wallet, command(operation)._replace(**fields)  # type: ignore[arg-type]  # by fault


CASES = [
    *with_faults(consume("100"), spend_faults()),
    *with_faults(give("1"), grant_faults()),
    *with_faults(adjust("-100"), debit_faults()),
    *with_faults(adjust("100"), credit_faults()),
    *with_faults(refund(SPENT_ID, "30"), refund_faults()),
]


@pytest.mark.parametrize(
    ("operation", "faults"),
    CASES,
    ids=[f"{type(o).__name__}-{'+'.join(f[0] for f in faults)}" for o, faults in CASES],
)
def test_the_first_fault_in_order_is_named(operation: Operation, faults: list[Fault]) -> None:
    """Whatever is wrong at once, the refusal is the first in the order of checks, and alone."""
    wallet, wrong = faulty(operation, faults)
    before = asdict(wallet)

    with pytest.raises(Refusal) as refused:
        decide(wallet, wrong, references((10, 4), (20, 5)))

    assert faults[0][:2] == (refused.value.reason, refused.value.param)
    assert before == asdict(wallet)


@pytest.mark.parametrize("operation", list({id(o): o for o, _ in CASES}.values()), ids=repr)
def test_without_a_fault_the_same_commands_are_accepted(operation: Operation) -> None:
    """Nothing but the fault is why the commands of the table are refused."""
    wallet, right = faulty(operation, [])
    before = asdict(wallet)

    assert decide(wallet, right, references((10, 4), (20, 5)))
    assert before == asdict(wallet)


REFUSALS: list[tuple[Wallet, Command, str, str | None, dict[str, str]]] = [
    (
        wallet_of(),
        command(consume("1"), expected_sequence=37),
        "SEQUENCE_MISMATCH",
        "expected_sequence",
        {"expected": "37", "actual": "40"},
    ),
    (
        wallet_of(),
        command(consume("1"), expected_sequence=41),
        "SEQUENCE_MISMATCH",
        "expected_sequence",
        {"expected": "41", "actual": "40"},
    ),
    (
        wallet_of(grant(1, 3), grant(2, 90, starts=1), grant(3, 90, ends=0), overdraft_limit=6),
        command(consume("10")),
        "INSUFFICIENT_CREDIT",
        None,
        {"required": "10", "available": "3", "currency": "PTS"},
    ),
    (
        wallet_of(grant(1, 3), overdraft_used=5, overdraft_limit=5),
        command(consume("4")),
        "INSUFFICIENT_CREDIT",
        None,
        {"required": "4", "available": "-2", "currency": "PTS"},
    ),
    (
        wallet_of(grant(1, 3), grant(2, 9)),
        command(adjust("-4", credit_grant_id=ids.compose("cg", WALLET, 1))),
        "INSUFFICIENT_CREDIT",
        None,
        {"required": "4", "available": "3", "currency": "PTS"},
    ),
    (
        wallet_of(grant(1, 3, ends=0), grant(2, 9)),
        command(adjust("-1", credit_grant_id=ids.compose("cg", WALLET, 1))),
        "INSUFFICIENT_CREDIT",
        None,
        {"required": "1", "available": "0", "currency": "PTS"},
    ),
    (
        wallet_of(grant(1, 9), overdraft_used=6, overdraft_limit=5),
        command(adjust("-9", credit_grant_id=ids.compose("cg", WALLET, 1))),
        "INSUFFICIENT_CREDIT",
        None,
        {"required": "9", "available": "3", "currency": "PTS"},
    ),
    (
        wallet_of(),
        command(refund(SPENT_ID, "31")),
        "REFUND_TOO_LARGE",
        "amount",
        {"refundable": "30"},
    ),
    (wallet_of(), command(refund("pst_none")), "NOT_FOUND", "posting_id", {}),
    (
        wallet_of(),
        command(adjust("-1", credit_grant_id="cg_none")),
        "NOT_FOUND",
        "credit_grant_id",
        {},
    ),
    (
        wallet_of(grant(1, 9)),
        command(adjust("1", credit_grant_id=ids.compose("cg", WALLET, 1))),
        "INVALID_FIELD",
        "credit_grant_id",
        {},
    ),
    (
        wallet_of(),
        command(give("1", effective_at=NOW + DAY, expires_at=NOW + DAY)),
        "INVALID_FIELD",
        "expires_at",
        {},
    ),
    (
        wallet_of(),
        command(give("1"), effective_at=NOW - BACKDATING_MS_MAX - 1),
        "INVALID_FIELD",
        "effective_at",
        {},
    ),
]


@pytest.mark.parametrize(
    ("wallet", "wrong", "reason", "param", "metadata"),
    REFUSALS,
    ids=[f"{place}-{reason}" for place, (_, _, reason, _, _) in enumerate(REFUSALS)],
)
def test_a_refusal_says_what_a_program_needs(
    wallet: Wallet, wrong: Command, reason: str, param: str | None, metadata: dict[str, str]
) -> None:
    """Each refusal carries its reason, the field at fault and the figures it turned on."""
    with pytest.raises(Refusal) as refused:
        decide(wallet, wrong, references((10, 4), (20, 5)))

    assert (reason, param, metadata) == (
        refused.value.reason,
        refused.value.param,
        refused.value.metadata,
    )


@pytest.mark.parametrize(
    ("operation", "effective_at", "backdating_free"),
    [
        (consume("1"), NOW - BACKDATING_MS_MAX, False),
        (consume("1"), NOW + 60 * SECOND, False),
        (consume("1"), NOW - 400 * DAY, True),
        (give("1"), NOW - BACKDATING_MS_MAX, False),
        (give("1"), NOW - 400 * DAY, True),
        (give("1"), NOW + 400 * DAY, False),
        (give("1", effective_at=NOW - 400 * DAY), None, True),
        (adjust("1"), NOW - 400 * DAY, True),
    ],
)
def test_effective_at_reaches_to_its_bounds(
    operation: Operation, effective_at: int | None, backdating_free: bool
) -> None:
    """35 days back and 60 s ahead are within; free backdating has no floor; grants start later."""
    right = command(operation, effective_at=effective_at, backdating_free=backdating_free)

    assert len(decide(wallet_of(grant(1, 5)), right)) == 1


@pytest.mark.parametrize("expected", [38, 39, 40])
def test_expirations_do_not_move_the_expected_sequence(expected: int) -> None:
    """expected_sequence holds as long as nothing but expirations follows it."""
    assert decide(wallet_of(grant(1, 5)), command(consume("1"), expected_sequence=expected))


@pytest.mark.parametrize(
    "operation",
    [give("1"), adjust("1"), adjust("-1", force=True), refund(SPENT_ID)],
    ids=repr,
)
def test_a_frozen_wallet_takes_credit(operation: Operation) -> None:
    """Frozen refuses spending only: grants, credits, forced debits and refunds go through."""
    wallet = wallet_of(grant(4, 5, amount=15), grant(5, 5, amount=25))
    wallet.status = Status.FROZEN

    assert decide(wallet, command(operation), references((10, 4), (20, 5)))
