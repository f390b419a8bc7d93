"""`creditledger clock`: the ledger's clock, and an operator's word that it is right."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Annotated

import typer

from creditledger.ops.cli.console import REFUSED, AsJson, plain, print_json, say, with_settings
from creditledger.ops.config import Config

if TYPE_CHECKING:
    from credit.v1.clock_service_pb2 import Clock

commands = typer.Typer(no_args_is_help=True, help="Show and accept the ledger's clock.")


@commands.command("show")
@with_settings("database_url")
def show(config: Config, as_json: AsJson = False) -> None:
    """Show whether the ledger's clock is trusted, what it shows and what the ledger's time is.

    Exit code 1 if it is not trusted.
    """
    from credit.v1 import clock_service_pb2 as pb
    from credit.v1.clock_service_pb2_grpc import ClockServiceStub

    from creditledger.ops.client import call

    found = call(config, lambda channel: ClockServiceStub(channel).GetClock(pb.GetClockRequest()))
    _say_clock(found, as_json=as_json)
    if found.state != "trusted":
        raise typer.Exit(REFUSED)


@commands.command("accept")
@with_settings("database_url")
def accept(
    config: Config,
    by: Annotated[
        str | None, typer.Option("--by", help="Who says so. Default: the user of this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say that the ledger's clock is right as it is now, for all servers and restarts.

    It is kept in the database with the time and with who said so. Look at the clock before: what
    ends by the accepted time ends for ever.
    """
    from credit.v1 import clock_service_pb2 as pb
    from credit.v1.clock_service_pb2_grpc import ClockServiceStub

    from creditledger.ops.client import call

    request = pb.AcceptClockRequest(accepted_by=by or _user())
    accepted = call(config, lambda channel: ClockServiceStub(channel).AcceptClock(request))
    _say_clock(accepted, as_json=as_json)


def _say_clock(found: Clock, *, as_json: bool) -> None:
    if as_json:
        print_json(plain(found))
        return
    accepted = f", accepted at {found.accepted_at} by {found.accepted_by}"
    more = accepted if found.HasField("accepted_at") else ""
    say(f"{found.state}: the clock shows {found.clock}, the ledger's time is {found.time}{more}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return f"user {os.getuid()}"
