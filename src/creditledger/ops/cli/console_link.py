"""`creditledger console`: links to the console in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from creditledger.ops.cli.console import AsJson, print_json, say, with_settings
from creditledger.ops.config import Config, WrongSetting, host_and_port, http_url, spelled

commands = typer.Typer(no_args_is_help=True, help="Open the console.")

#: Addresses that take calls from everywhere -> where this machine finds them.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 # a name to be replaced


@commands.command("link")
@with_settings("database_url", "http_address")
def link(
    config: Config,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope", metavar="admin|service", help="What the session may do. Default: admin."
        ),
    ] = None,
    customer: Annotated[
        str | None,
        typer.Option("--customer", metavar="ID", help="A session of this customer instead."),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="In test mode. Default: live.")] = False,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Where browsers find the proxy. Default: the HTTP address."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a link that opens the console without a key: once, and within a minute.

    The session lasts 12 hours. The ledger must be running when the link is opened.
    """
    from credit.v1 import api_key_service_pb2 as pb

    from creditledger.ops.client import call
    from creditledger.ops.session_links import session_link

    if scope not in {None, "admin", "service"}:
        raise typer.BadParameter("must be admin or service", param_hint="--scope")
    if scope is not None and customer is not None:
        raise typer.BadParameter("says already what the session may do", param_hint="--customer")
    request = pb.CreateSessionCodeRequest(
        scope="customer" if customer is not None else scope or "admin",
        customer_id=customer,
        livemode=not test,
    )
    base = url.rstrip("/") if url else _base(config)
    made, until = call(config, lambda channel: session_link(channel, base, request))
    if as_json:
        print_json({"link": made, "expires_at": until})
    else:
        say(made)


def _base(config: Config) -> str:
    host, port = host_and_port(config.http_address)
    if port == 0:
        raise WrongSetting(f"{spelled('http_address')} must name the proxy's port, or use --url.")
    return http_url((_EVERYWHERE.get(host, host), port))
