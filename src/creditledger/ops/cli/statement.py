"""`creditledger statement`: what a wallet's credit did, on the terminal or as a file; and closing.

Through the ledger like everything that writes: expirations that are due are written down first.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from creditledger.ops.cli.console import Excel, plain, print_table, say, with_settings
from creditledger.ops.config import Config

if TYPE_CHECKING:
    from credit.v1 import statement_service_pb2 as pb
    from grpc.aio import Channel

#: What is printed for people, beside the formats of files.
TABLE = "table"


@with_settings("database_url")
def statement(
    config: Config,
    wallet: Annotated[str, typer.Argument(metavar="WALLET", help="Id of the wallet.")],
    month: Annotated[str | None, typer.Option("--month", help="Such as 2026-09.")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="First moment, such as 2026-05-01T00:00:00Z.")
    ] = None,
    end: Annotated[str | None, typer.Option("--end", help="First moment without it.")] = None,
    time_zone: Annotated[
        str, typer.Option("--time-zone", help="IANA zone of the month and of the times.")
    ] = "UTC",
    close: Annotated[
        bool, typer.Option("--close", help="Close the period for good, if it is not closed.")
    ] = False,
    file_format: Annotated[str, typer.Option("--format", metavar="table|csv|html|json")] = TABLE,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: standard output.")
    ] = None,
    excel: Excel = None,
) -> None:
    """Show what a wallet's credit did in a month or another period, and what that left.

    The same as `GET /v1/wallets/{wallet_id}/statement`, or, with --close, as
    `POST /v1/wallets/{wallet_id}/statements`.
    """
    from credit.v1 import statement_service_pb2 as pb

    from creditledger.ops.client import call
    from creditledger.outlets.exports import checksums

    period = {"wallet_id": wallet, "month": month, "start": start, "end": end}
    asked = pb.StatementServiceCloseRequest(**period, time_zone=time_zone)
    if file_format == TABLE and out is None:
        _show(call(config, lambda channel: _statement(channel, asked, close=close)))
        return
    # There is no file of a table: the server says which formats there are.
    data = call(config, lambda channel: _file(channel, asked, file_format, excel, close=close))
    if out is None:
        sys.stdout.buffer.write(data)
        return
    out.write_bytes(data)
    if file_format == "csv":  # a statement as JSON has its own chain of digests
        checksums.write(out, hashlib.sha256(data).hexdigest())
    say(f"{out}: {len(data)} bytes")


async def _statement(
    channel: Channel, asked: pb.StatementServiceCloseRequest, *, close: bool
) -> pb.Statement:
    from credit.v1 import statement_service_pb2 as pb
    from credit.v1.statement_service_pb2_grpc import StatementServiceStub

    stub = StatementServiceStub(channel)
    if close:
        return await stub.Close(asked)
    return await stub.Get(pb.StatementServiceGetRequest.FromString(asked.SerializeToString()))


async def _file(
    channel: Channel,
    asked: pb.StatementServiceCloseRequest,
    file_format: str,
    excel: str | None,
    *,
    close: bool,
) -> bytes:
    from credit.v1 import statement_service_pb2 as pb
    from credit.v1.statement_service_pb2_grpc import StatementServiceStub

    stub = StatementServiceStub(channel)
    if close:
        id_ = (await stub.Close(asked)).id
        of_closed = pb.StatementServiceRenderClosedRequest(id=id_, format=file_format, excel=excel)
        return b"".join([piece.data async for piece in stub.RenderClosed(of_closed)])
    wanted = pb.StatementServiceRenderRequest.FromString(asked.SerializeToString())
    wanted.MergeFrom(pb.StatementServiceRenderRequest(format=file_format, excel=excel))
    return b"".join([piece.data async for piece in stub.Render(wanted)])


def _show(found: pb.Statement) -> None:
    from creditledger.outlets.statements.files import heading, standing, tables

    said = plain(found)
    for line in (*heading(said), standing(said)):
        say(line)
    for table in tables(said):
        total = [] if table.total is None else [tuple(table.total)]
        say(table.title)
        print_table(tuple(table.names), [*map(tuple, table.rows), *total])
