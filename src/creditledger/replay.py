"""Same request or another? What a posting keeps of its request, and how a retry is compared.

A request is compared by value, field by field, under the names of its JSON. What the rows, the
posting and its dimension already tell is not stored again: `terms` is only the rest. Called by
ledger.py; imports model and money only.
"""

from collections.abc import Mapping

from creditledger import money
from creditledger.errors import IdempotencyKeyReused
from creditledger.model import (
    OPERATION_NAMES,
    OPERATIONS,
    Adjust,
    Command,
    Consume,
    Dimension,
    GiveGrant,
    Kind,
    Posting,
    Refund,
    Type,
    Usage,
)

_USAGE, _CONSUMPTION = int(Kind.USAGE), int(Type.CONSUMPTION)
_AMOUNTS = {operation: f"{name}.amount" for operation, (_, name) in OPERATIONS.items()}
_PLAIN_USAGE = Usage("", "", "", "", 1, (), (), (), 1)


def amount(command: Command, scale: int) -> int | None:
    """The operation's amount in smallest units. Raises InvalidField, naming the field."""
    operation = command.operation
    if operation.amount is None:
        return None
    return money.parse(operation.amount, scale, field=_AMOUNTS[type(operation)])


def dimension(command: Command, original: Dimension | None) -> Dimension:
    """What the command's rows are added up by; a refund's follow the posting it returns."""
    operation = command.operation
    if isinstance(operation, Consume):
        usage = operation.usage or _PLAIN_USAGE
        return Dimension(
            _USAGE,
            _CONSUMPTION,
            operation.meter_id,
            operation.subscription_id,
            operation.usage is not None,
            usage.api_key_id,
            usage.product_id,
            usage.product_name,
            usage.category,
            usage.billing_method,
            usage.base_prices,
            usage.discount_prices,
            usage.price_precision,
        )
    if isinstance(operation, Refund):
        assert original is not None
        return original._replace(
            kind=Kind.REFUND.value,
            type=Type.ADJUSTMENT.value,
            meter_id=None,
            subscription_id=None,
        )
    if isinstance(operation, GiveGrant):
        return Dimension(operation.kind.value, Type.GRANT.value)
    kind = Kind.ADMIN_DEBIT if operation.amount.startswith("-") else Kind.ADMIN_CREDIT
    return Dimension(kind.value, Type.ADJUSTMENT.value)


def source(command: Command) -> Mapping[str, str]:
    """The source as the posting shows it: the keys of its kind; who did it where nobody said."""
    operation = command.operation
    if isinstance(operation, (Consume, Refund)):
        return {}
    if isinstance(operation, GiveGrant) and operation.kind is not Kind.ADMIN_CREDIT:
        return operation.source
    return {"actor": operation.source.get("actor") or command.actor}


def terms(command: Command) -> dict[str, object]:
    """The fields of the request that neither rows nor columns of the posting tell."""
    operation = command.operation
    if isinstance(operation, Consume):
        return {}
    fields: dict[str, object] = {"effective_at": command.effective_at}
    if isinstance(operation, GiveGrant):
        fields |= {
            "grant.kind": operation.kind.word,
            "grant.category": operation.category.word,
            "grant.priority": operation.priority,
            "grant.name": operation.name,
            "grant.effective_at": operation.effective_at,
            "grant.expires_at": operation.expires_at,
            "grant.source": dict(operation.source),
        }
    elif isinstance(operation, Adjust):
        fields |= {
            "adjustment.credit_grant_id": operation.credit_grant_id,
            "adjustment.force": operation.force or None,
            "adjustment.source": dict(operation.source),
        }
    else:
        fields["refund.posting_id"] = operation.posting_id
    return _present(fields)


def check(command: Command, amount: int | None, posting: Posting, dimension: Dimension) -> None:
    """Raises IdempotencyKeyReused, naming what differs, unless `posting` is of this request."""
    asked, stored = _asked(command, amount), _stored(posting, dimension)
    if asked["operation"] != stored["operation"]:
        differing = ["operation"]
    else:
        differing = sorted(
            name for name in asked.keys() | stored.keys() if asked.get(name) != stored.get(name)
        )
    if differing:
        raise IdempotencyKeyReused(
            f"the idempotency key has a posting of another request: {', '.join(differing)} differ",
            param="idempotency_key",
            fields=",".join(differing),
        )


def _asked(command: Command, amount: int | None) -> dict[str, object]:
    operation = command.operation
    name = OPERATIONS[type(operation)][1]
    fields: dict[str, object] = {
        "operation": name,
        f"{name}.amount": amount,
        "description": command.description,
        "note": command.note,
        "metadata": dict(command.metadata),
    }
    if isinstance(operation, Consume):
        quantities = operation.usage.quantities if operation.usage else ()
        fields |= {
            "effective_at": command.effective_at,
            "consumption.meter_event_id": operation.meter_event_id,
            "consumption.usage.quantities": list(quantities),
        }
        fields |= _dimension_fields(dimension(command, None))
    return _present(fields | terms(command))


def _stored(posting: Posting, dimension: Dimension) -> dict[str, object]:
    name = OPERATION_NAMES[posting.operation]
    fields: dict[str, object] = {
        "operation": name,
        f"{name}.amount": posting.amount,
        "description": posting.description,
        "note": posting.note,
        "metadata": dict(posting.metadata),
    }
    if name == "consumption":
        fields |= {
            "effective_at": posting.rows[0].effective_at,
            "consumption.meter_event_id": posting.meter_event_id,
            "consumption.usage.quantities": list(posting.quantities),
        }
        fields |= _dimension_fields(dimension)
    return _present({**fields, **posting.terms})


def _dimension_fields(dimension: Dimension) -> dict[str, object]:
    usage = {
        f"consumption.usage.{name}": getattr(dimension, name)
        for name in (
            "api_key_id",
            "product_id",
            "product_name",
            "category",
            "billing_method",
            "base_prices",
            "discount_prices",
            "price_precision",
        )
    }
    return {
        "consumption.meter_id": dimension.meter_id,
        "consumption.subscription_id": dimension.subscription_id,
        "consumption.usage": dimension.has_usage,
        **usage,
    }


def _present(fields: Mapping[str, object]) -> dict[str, object]:
    """Absent and empty are the same: what is neither given nor stored is left out."""
    return {name: value for name, value in fields.items() if value not in (None, {}, [])}
