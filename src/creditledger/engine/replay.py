"""Same request or another? What a posting keeps of its request, and how a retry is compared.

A request is compared by value, attribute by attribute. What the rows, the posting and its dimension
already tell is not stored again: `terms` is only the rest.
"""

from collections.abc import Mapping
from typing import NoReturn

from creditledger.domain import money
from creditledger.domain.commands import (
    CHANGE_NAMES,
    OPERATION_NAMES,
    OPERATIONS,
    Adjust,
    CancelEvent,
    Capture,
    Change,
    Command,
    Consume,
    DropLimit,
    Extend,
    GiveGrant,
    GrantChange,
    LimitChange,
    OnHold,
    PlaceHold,
    Refund,
    Release,
    ReportEvent,
    Transfer,
    Usage,
    VoidGrant,
    WalletChange,
)
from creditledger.domain.errors import IdempotencyKeyReused
from creditledger.domain.model import Dimension, Kind, Posting, Type

_USAGE, _CONSUMPTION = int(Kind.USAGE), int(Type.CONSUMPTION)
_WITHOUT_AMOUNT = (Release, Extend, VoidGrant, CancelEvent)
#: What the two sides of a transfer are added up by.
SENT = Dimension(Kind.TRANSFER_OUT.value, Type.ADJUSTMENT.value)
RECEIVED = Dimension(Kind.TRANSFER_IN.value, Type.ADJUSTMENT.value)
#: What returns the draws of a meter event, which has no usage, is added up by.
CANCELED = Dimension(Kind.REFUND.value, Type.ADJUSTMENT.value)
#: A canceled event's is known once the event is.
_WITHOUT_SOURCE = (
    *(Consume, Refund, PlaceHold, Capture, Release, Extend, VoidGrant, ReportEvent, CancelEvent),
)
_PLAIN_USAGE = Usage("", "", "", "", 1, (), (), (), 1)


def amount(command: Command, scale: int) -> int | None:
    """The operation's amount in smallest units. Raises InvalidField."""
    operation = command.operation
    if isinstance(operation, _WITHOUT_AMOUNT) or operation.amount is None:
        return None
    return money.parse(operation.amount, scale, field="amount")


def dimension(command: Command, original: Dimension | None) -> Dimension:
    """What the command's rows are added up by.

    A refund's follow the posting it returns, a capture's the hold (`original`) where it does not
    say itself what was used.
    """
    operation = command.operation
    if isinstance(operation, (Consume, PlaceHold)):
        return _used(operation.meter_id, operation.subscription_id, operation.usage)
    if isinstance(operation, ReportEvent):
        return _used(operation.meter_id, operation.subscription_id, None)
    if isinstance(operation, OnHold):
        assert original is not None
        if not isinstance(operation, Capture) or operation.usage is None:
            return original
        return _used(original.meter_id, original.subscription_id, operation.usage)
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
    if isinstance(operation, Transfer):
        return SENT
    if isinstance(operation, CancelEvent):
        return CANCELED
    if isinstance(operation, VoidGrant):
        return Dimension(Kind.EXPIRY.value, Type.EXPIRATION.value)
    kind = Kind.ADMIN_DEBIT if operation.amount.startswith("-") else Kind.ADMIN_CREDIT
    return Dimension(kind.value, Type.ADJUSTMENT.value)


def _used(meter_id: str | None, subscription_id: str | None, usage: Usage | None) -> Dimension:
    said = usage or _PLAIN_USAGE
    return Dimension(
        _USAGE,
        _CONSUMPTION,
        meter_id,
        subscription_id,
        usage is not None,
        said.api_key_id,
        said.product_id,
        said.product_name,
        said.category,
        said.billing_method,
        said.base_prices,
        said.discount_prices,
        said.price_precision,
    )


def source(command: Command) -> Mapping[str, str]:
    """The source as the posting shows it: the keys of its kind; who did it where nobody said."""
    operation = command.operation
    if isinstance(operation, _WITHOUT_SOURCE):
        return {}
    if isinstance(operation, Transfer):
        return {"wallet_id": operation.to_wallet_id}
    if isinstance(operation, GiveGrant) and operation.kind is not Kind.ADMIN_CREDIT:
        return operation.source
    return {"actor": operation.source.get("actor") or command.actor}


def terms(command: Command) -> dict[str, object]:
    """The attributes of the command that neither rows nor columns of the posting tell."""
    operation = command.operation
    if isinstance(operation, (Consume, Transfer)):
        return {}
    if isinstance(operation, Capture):
        # Its posting may say what the hold says, so what was asked is kept beside it.
        asked = {"description": command.description, "metadata": dict(command.metadata)}
        return _present(_flat(operation) | asked)
    if isinstance(operation, (PlaceHold, OnHold, VoidGrant, CancelEvent)):
        return _present(_flat(operation))
    if isinstance(operation, ReportEvent):
        # It may have no row that would tell.
        return _present(
            {
                "meter_id": operation.meter_id,
                "subscription_id": operation.subscription_id,
                "effective_at": command.effective_at,
            }
        )
    fields: dict[str, object] = {"effective_at": command.effective_at}
    if isinstance(operation, GiveGrant):
        fields |= {
            "kind": operation.kind.word,
            "category": operation.category.word,
            "priority": operation.priority,
            "name": operation.name,
            "begins_at": operation.begins_at,
            "expires_at": operation.expires_at,
            "source": dict(operation.source),
            "allow_repeated_receipt": operation.allow_repeated_receipt or None,
        }
        if operation.expires_after is not None:
            zone = operation.expires_after.zone.key
            fields["expires_after"] = operation.expires_after.text
            fields["time_zone"] = zone if zone != "UTC" else None
        if operation.scope is not None:
            scope = operation.scope._asdict().items()
            fields |= {f"scope.{name}": [*values] for name, values in scope}
    elif isinstance(operation, Adjust):
        fields |= {
            "credit_grant_id": operation.credit_grant_id,
            "force": operation.force or None,
            "source": dict(operation.source),
        }
    else:
        fields["posting_id"] = operation.posting_id
        fields["force"] = operation.force or None
    return _present(fields)


def check(
    command: Command, amount: int | None, posting: Posting, dimension: Dimension | None
) -> None:
    """Raises IdempotencyKeyReused, naming what differs, unless `posting` is of this request."""
    if posting.operation in CHANGE_NAMES:
        _refuse(["operation"])
    asked, stored = _asked(command, amount), _stored(posting, dimension)
    if asked["operation"] != stored["operation"]:
        _refuse(["operation"])
    _compare(asked, stored)


def change_terms(change: Change | LimitChange, scale: int) -> dict[str, object]:
    """The attributes of a change. Raises InvalidField for an amount's digits."""
    if isinstance(change, WalletChange):
        limit = change.overdraft_limit
        units = None if limit is None else money.parse(limit, scale, field="overdraft_limit")
        return _present(
            {
                "overdraft_limit": units,
                "status": change.status and change.status.word,
                "metadata": dict(change.metadata),
                "cancel_unpaid": change.cancel_unpaid or None,
            }
        )
    if isinstance(change, GrantChange):
        return _present(
            {
                "id": change.id,
                "name": change.name,
                "priority": change.priority,
                "expires_at": change.expires_at,
                "never_expires": change.never_expires or None,
                "metadata": dict(change.metadata),
                "expired": change.expired or None,
            }
        )
    if isinstance(change, DropLimit):
        return {"spend_limit_id": change.spend_limit_id}
    return _present(
        {
            "amount": money.parse(change.amount, scale, field="amount"),
            "api_key_id": change.api_key_id,
            "period": change.period.word,
            "time_zone": change.time_zone,
            "hours": change.hours,
        }
    )


def check_change(operation: int, terms: Mapping[str, object], posting: Posting) -> None:
    """As `check`, of a change with these terms."""
    if posting.operation != operation:
        _refuse(["operation"])
    _compare(terms, posting.terms)


def _compare(asked: Mapping[str, object], stored: Mapping[str, object]) -> None:
    differing = [
        name for name in asked.keys() | stored.keys() if asked.get(name) != stored.get(name)
    ]
    if differing:
        _refuse(differing)


def _refuse(differing: list[str]) -> NoReturn:
    raise IdempotencyKeyReused("a posting of another request", differing)


def _asked(command: Command, amount: int | None) -> dict[str, object]:
    operation = command.operation
    name = OPERATIONS[type(operation)][1]
    fields: dict[str, object] = {
        "operation": name,
        "amount": amount,
        "description": command.description,
        "note": command.note,
        "metadata": dict(command.metadata),
    }
    if isinstance(operation, Consume):
        quantities = operation.usage.quantities if operation.usage else ()
        fields |= {
            "effective_at": command.effective_at,
            "meter_event_id": operation.meter_event_id,
            "usage.quantities": list(quantities),
        }
        fields |= _dimension_fields(dimension(command, None))
    elif isinstance(operation, Transfer):
        fields["to_wallet_id"] = operation.to_wallet_id
    return _present(fields | terms(command))


def _stored(posting: Posting, dimension: Dimension | None) -> dict[str, object]:
    name = OPERATION_NAMES[posting.operation]
    fields: dict[str, object] = {
        "operation": name,
        "amount": posting.amount,
        "note": posting.note,
    }
    if name != "capture":
        fields |= {"description": posting.description, "metadata": dict(posting.metadata)}
    if name == "consumption":
        assert dimension is not None
        fields |= {
            "effective_at": posting.rows[0].effective_at,
            "meter_event_id": posting.meter_event_id,
            "usage.quantities": list(posting.quantities),
        }
        fields |= _dimension_fields(dimension)
    elif name == "transfer":
        fields["to_wallet_id"] = posting.source["wallet_id"]
    return _present({**fields, **posting.terms})


def _dimension_fields(dimension: Dimension) -> dict[str, object]:
    usage = {
        f"usage.{name}": getattr(dimension, name)
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
        "meter_id": dimension.meter_id,
        "subscription_id": dimension.subscription_id,
        "usage": dimension.has_usage,
        **usage,
    }


def _flat(operation: PlaceHold | OnHold | VoidGrant | CancelEvent) -> dict[str, object]:
    """Every field of a flat request but its amount."""
    fields: dict[str, object] = {}
    for name in operation.__slots__:
        value = getattr(operation, name)
        if isinstance(value, Usage):
            fields[name] = True
            for key, part in value._asdict().items():
                if part != getattr(_PLAIN_USAGE, key):
                    fields[f"{name}.{key}"] = [*part] if isinstance(part, tuple) else part
        elif name != "amount":
            fields[name] = value or None
    return fields


def _present(fields: Mapping[str, object]) -> dict[str, object]:
    """Absent and empty are the same: what is neither given nor stored is left out."""
    return {name: value for name, value in fields.items() if value not in (None, {}, [])}
