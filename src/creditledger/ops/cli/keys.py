"""`creditledger keys`: API keys, through the ledger like everything that writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from creditledger.ops.cli.console import (
    AsJson,
    Customer,
    livemode_of,
    plain,
    print_json,
    print_table,
    say,
    with_settings,
)
from creditledger.ops.config import Config

if TYPE_CHECKING:
    from credit.v1.api_key_service_pb2 import ApiKey, ListApiKeysRequest
    from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

commands = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
#: Keys of one page.
PAGE_SIZE = 100


def _duration(text: str | None) -> int | None:
    """Milliseconds of 90m, 24h or 30d."""
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter("must be minutes, hours or days such as 90m, 24h or 30d")
    return int(match[1]) * _UNIT_MS[match[2]]


def _scope(text: str) -> str:
    if text not in {"admin", "service", "customer"}:
        raise typer.BadParameter("must be admin, service or customer")
    return text


Mode = Annotated[str | None, typer.Option("--mode", metavar="live|test", help="The key's mode.")]


@commands.command("create")
@with_settings("database_url")
def create(
    config: Config,
    scope: Annotated[
        str,
        typer.Option("--scope", metavar="admin|service|customer", help="What the key may do."),
    ],
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="ID", help="Whose key it is (customer).")
    ] = None,
    mode: Mode = "live",
    name: Annotated[
        str | None, typer.Option("--name", help="What people call it. Default: <scope> key.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", help="90m, 24h, 30d. Default: never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. The last line of the output is its secret, which is shown this once.

    Works while the server runs, and while it does not.
    """
    from credit.v1 import api_key_service_pb2 as pb
    from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

    from creditledger.domain import clock
    from creditledger.ops.client import call

    request = pb.CreateApiKeyRequest(
        name=f"{scope} key" if name is None else name,
        scope=_scope(scope),
        customer_id=customer,
        livemode=livemode_of(mode),
    )
    lasting = _duration(expires_in)
    if lasting is not None:
        request.expires_at = clock.text(clock.now() + lasting)
    made = call(config, lambda channel: ApiKeyServiceStub(channel).CreateApiKey(request))
    if as_json:
        print_json(plain(made))
    else:
        key = made.api_key
        whose = f" of {key.customer_id}" if key.customer_id else ""
        until = f", until {key.expires_at}" if key.expires_at else ""
        say(f"{key.id}: {key.scope} key{whose}, {_mode_word(key.livemode)} mode{until}")
        say(made.secret)


@commands.command("list")
@with_settings("database_url")
def list_(
    config: Config, customer: Customer = None, mode: Mode = None, as_json: AsJson = False
) -> None:
    """List API keys, revoked and expired ones too, without their secrets."""
    from credit.v1 import api_key_service_pb2 as pb
    from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

    from creditledger.ops.client import call

    request = pb.ListApiKeysRequest(
        customer_id=customer, livemode=livemode_of(mode), page_size=PAGE_SIZE
    )
    found = call(config, lambda channel: _all(ApiKeyServiceStub(channel), request))
    if as_json:
        print_json({"api_keys": [plain(key) for key in found]})
        return
    rows = [
        (
            key.id,
            key.name,
            key.scope,
            key.customer_id,
            _mode_word(key.livemode),
            key.mask,
            key.created_at,
            f"revoked {key.revoked_at}" if key.revoked_at else key.expires_at,
        )
        for key in found
    ]
    print_table(("id", "name", "scope", "customer", "mode", "mask", "created", "ends"), rows)


@commands.command("revoke")
@with_settings("database_url")
def revoke(
    config: Config,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, apk_….")],
    as_json: AsJson = False,
) -> None:
    """Revoke an API key. It holds at once on the server that runs."""
    from credit.v1 import api_key_service_pb2 as pb
    from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

    from creditledger.ops.client import call

    request = pb.RevokeApiKeyRequest(id=key_id)
    revoked = call(config, lambda channel: ApiKeyServiceStub(channel).RevokeApiKey(request))
    if as_json:
        print_json(plain(revoked))
    else:
        say(f"{revoked.id}: revoked at {revoked.revoked_at}")


def _mode_word(livemode: bool) -> str:
    return "live" if livemode else "test"


async def _all(keys: ApiKeyServiceStub, request: ListApiKeysRequest) -> list[ApiKey]:
    """What the request's filters leave, of every page."""
    found: list[ApiKey] = []
    while True:
        page = await keys.ListApiKeys(request)
        found += page.api_keys
        if not page.HasField("next_page_token"):
            return found
        request.page_token = page.next_page_token
