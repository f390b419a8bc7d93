"""Turns the attribute that a refusal names into a field of the request.

A rule names an attribute of the value that it checks: `amount`, `usage.api_key_id`. Each surface
has a table from attributes to the JSON names of its requests. A table has only the names that
differ.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from creditledger.domain.errors import IdempotencyKeyReused, Refusal

#: JSON names by attribute. A nested attribute, `usage.quantities`, may have an entry of its own;
#: without such an entry, the entry of `usage` names it.
FieldNames = Mapping[str, str]


def rename(refusal: Refusal, names: FieldNames, *, in_text: FieldNames | None = None) -> None:
    """Let the refusal name a field of the request instead of an attribute.

    `in_text`: the table for its message, if that is another one. A table that has the idempotency
    key lets the message of a reused key begin with the key's name.
    """
    if isinstance(refusal, IdempotencyKeyReused):
        # Parts of a field have no field of their own in every request, so they keep their names.
        fields = [_part(one, names) for one in refusal.metadata["fields"].split(",")]
        refusal.name(fields, key=names.get("idempotency_key"))
    elif refusal.param is not None:
        attribute, refusal.param = refusal.param, _name(refusal.param, names)
        if refusal.message.startswith(f"{attribute} "):
            said = refusal.param if in_text is None else _name(attribute, in_text)
            refusal.message = said + refusal.message.removeprefix(attribute)


@contextmanager
def renamed(names: FieldNames, *, in_text: FieldNames | None = None) -> Iterator[None]:
    """A block whose refusals name fields of the request, see `rename`."""
    try:
        yield
    except Refusal as refusal:
        rename(refusal, names, in_text=in_text)
        raise


def _name(attribute: str, names: FieldNames) -> str:
    return names[attribute] if attribute in names else _part(attribute, names)


def _part(attribute: str, names: FieldNames) -> str:
    first, dot, rest = attribute.partition(".")
    return names.get(first, first) + dot + rest
