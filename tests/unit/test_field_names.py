"""Attributes that refusals name, turned into fields of a request."""

from __future__ import annotations

import pytest

from creditledger.api.field_names import renamed
from creditledger.domain.errors import IdempotencyKeyReused, InvalidField, NotFound, Refusal

NAMES = {
    "amount": "payload.value",
    "usage": "payload",
    "usage.quantities": "quantities",
    "idempotency_key": "identifier",
}


def told(refusal: Refusal, in_text: dict[str, str] | None = None) -> tuple[str | None, str]:
    """The field and the message of the refusal as it leaves a surface with these names."""
    with pytest.raises(type(refusal)) as raised, renamed(NAMES, in_text=in_text):
        raise refusal
    return raised.value.param, raised.value.message


@pytest.mark.parametrize(
    ("attribute", "field"),
    [
        ("amount", "payload.value"),
        ("usage.quantities", "quantities"),  # an entry of its own
        ("usage.api_key_id", "payload.api_key_id"),  # by the entry of what it belongs to
        ("description", "description"),  # no entry: the same name
    ],
)
def test_field_and_message_name_the_request(attribute: str, field: str) -> None:
    """The message begins with the field where it began with the attribute."""
    assert told(InvalidField(f"{attribute} is wrong", param=attribute)) == (
        field,
        f"{field} is wrong",
    )


def test_a_message_that_does_not_begin_with_the_attribute_stays() -> None:
    """Nor is a word renamed that only begins as the attribute does, nor a refusal without one."""
    assert told(NotFound("no meter", param="amount")) == ("payload.value", "no meter")
    message = "amounts differ"
    assert told(InvalidField(message, param="amount")) == ("payload.value", message)
    assert told(NotFound("amount is gone")) == (None, "amount is gone")


def test_a_message_may_have_a_table_of_its_own() -> None:
    """The field follows one table, the text another one."""
    refusal = InvalidField("amount is wrong", param="amount")

    assert told(refusal, {"amount": "grant.amount"}) == ("payload.value", "grant.amount is wrong")


def test_a_reused_key_names_the_fields_that_differ() -> None:
    """In the order of the request's names; the key has the request's name as well."""
    refusal = IdempotencyKeyReused("a posting of another request", ["usage.category", "amount"])

    param, message = told(refusal)

    assert param == "identifier"
    assert refusal.metadata == {"fields": "payload.category,payload.value"}
    assert "payload.category, payload.value differ" in message
