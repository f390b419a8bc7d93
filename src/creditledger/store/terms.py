"""The names under which `postings.terms` keeps the attributes of a command.

Stored names never change. Most are the attribute's, behind the name of an operation of `Post`.
"""

from collections.abc import Mapping

from creditledger.domain.operations import Adjust, GiveGrant, Refund, ReportEvent

_PREFIXES = {one.code: f"{one.word}." for one in (GiveGrant, Adjust, Refund)}
_NAMES: Mapping[int, Mapping[str, str]] = {
    GiveGrant.code: {"begins_at": "grant.effective_at"},
    ReportEvent.code: {
        "meter_id": "event_name",
        "subscription_id": "payload.subscription_id",
        "effective_at": "timestamp",
    },
}
_ATTRIBUTES = {code: {b: a for a, b in names.items()} for code, names in _NAMES.items()}


def by_stored_name(operation: int, terms: Mapping[str, object]) -> Mapping[str, object]:
    """The terms of an operation by stored name; `terms` are by attribute."""
    prefix, names = _PREFIXES.get(operation, ""), _NAMES.get(operation, {})
    if not terms or not (prefix or names):
        return terms
    # Of the command, and not of its operation.
    names = {"effective_at": "effective_at", **names}
    return {names.get(name, prefix + name): value for name, value in terms.items()}


def by_attribute(operation: int, terms: Mapping[str, object]) -> Mapping[str, object]:
    """The terms of an operation by attribute; `terms` are by stored name."""
    prefix, names = _PREFIXES.get(operation, ""), _ATTRIBUTES.get(operation, {})
    if not terms or not (prefix or names):
        return terms
    return {names.get(name, name.removeprefix(prefix)): value for name, value in terms.items()}
