"""StatementService: what a wallet's credit did in a period, and periods that are closed."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from credit.v1 import statement_service_pb2 as pb
from credit.v1 import statement_service_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from sqlalchemy import Connection

from creditledger.api import fields, pages
from creditledger.api.auth import Caller, Callers
from creditledger.api.messages import posting as posting_messages
from creditledger.api.rpc import Service, rpc, rpc_stream, send_headers
from creditledger.domain import clock as time
from creditledger.domain import ids, money
from creditledger.domain.errors import NotFound, echo
from creditledger.domain.registry import Scope
from creditledger.domain.statements import Document
from creditledger.engine.ledger import Ledger
from creditledger.outlets.exports import stream as export_stream
from creditledger.outlets.exports.files import Dialect
from creditledger.outlets.exports.stream import PIECE_BYTES
from creditledger.outlets.statements.compute import StatementPeriod, Statements, period
from creditledger.outlets.statements.files import CONTENT_TYPES, FORMATS, Format, file, file_name
from creditledger.store import Store
from creditledger.store.registry import records
from creditledger.store.statements import closed as closed_statements
from creditledger.store.statements.closed import Closed

#: A header of the answer: the digest of all bytes of the file.
SHA256_HEADER = "x-export-sha256"


def _close(request: pb.StatementServiceCloseRequest) -> tuple[StatementPeriod, str | None]:
    return period(request), fields.optional_key(request)


@dataclass(frozen=True, slots=True)
class _StatementList:
    wallet_id: str
    page: pages.PageRequest


def _list(request: pb.StatementServiceListRequest) -> _StatementList:
    wallet_id = fields.reference("wal", request.wallet_id, field="wallet_id")
    return _StatementList(wallet_id, pages.asked(request))


def _id(request: pb.StatementServiceRetrieveRequest) -> str:
    return fields.made("stm", request.id, field="id")


@dataclass(frozen=True, slots=True)
class _Look:
    format: Format
    dialect: Dialect
    digest_line: bool


@dataclass(frozen=True, slots=True)
class _Render:
    period: StatementPeriod
    look: _Look


def _render(request: pb.StatementServiceRenderRequest) -> _Render:
    return _Render(period(request), _look(request))


@dataclass(frozen=True, slots=True)
class _RenderClosed:
    id: str
    look: _Look


def _render_closed(request: pb.StatementServiceRenderClosedRequest) -> _RenderClosed:
    return _RenderClosed(fields.made("stm", request.id, field="id"), _look(request))


def _look(
    request: pb.StatementServiceRenderRequest | pb.StatementServiceRenderClosedRequest,
) -> _Look:
    format_ = fields.word(fields.optional(request, "format", "csv"), FORMATS, field="format")
    return _Look(
        format_,
        export_stream.dialect(fields.optional(request, "excel", None), format_),
        digest_line=fields.optional(request, "digest_line", False),
    )


class StatementService(Service, statement_service_pb2_grpc.StatementServiceServicer):
    """Served to accountants, and to what closes months."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        callers: Callers,
        clock: Callable[[], int],
        issuer: str | None,
    ) -> None:
        """`issuer`: who a statement for printing is from."""
        super().__init__(store=store, callers=callers, clock=clock)
        self._issuer = issuer
        self._statements = Statements(store, ledger, clock)

    @rpc(period, scope=Scope.CUSTOMER)
    async def Get(self, wanted: StatementPeriod, caller: Caller) -> pb.Statement:  # noqa: N802
        """The statement of a period, closed or as of now.

        Raises NotFound, Overloaded, ResultTooLarge.
        """
        found = await self._statements.get(wanted, caller)
        return _closed(found) if isinstance(found, Closed) else _message(found)

    @rpc(_close, scope=Scope.SERVICE)
    async def Close(  # noqa: N802
        self, asked: tuple[StatementPeriod, str | None], caller: Caller
    ) -> pb.Statement:
        """Close a period. As Get, and PeriodNotNext, Conflict, IdempotencyKeyReused."""
        wanted, key = asked
        return _closed(await self._statements.close(wanted, caller, key))

    @rpc(_list, scope=Scope.CUSTOMER)
    async def List(  # noqa: N802
        self, wanted: _StatementList, caller: Caller
    ) -> pb.StatementServiceListResponse:
        """A page of a wallet's closed statements, newest first. Raises NotFound, InvalidField."""
        page = wanted.page
        before = page.before(wanted.wallet_id)

        def read(connection: Connection) -> tuple[str, int, list[Closed]]:
            wallet = posting_messages.own(
                records.wallet(connection, wanted.wallet_id), wanted.wallet_id, caller
            )
            found = closed_statements.page(connection, wallet.number, before, page.size)
            return wallet.id, wallet.scale, found

        wallet_id, scale, found = await self._store.read(read)
        shown, token = pages.cut(found, page.size, wanted.wallet_id, lambda one: [one.number])
        return pb.StatementServiceListResponse(
            statements=[_short(one, wallet_id, scale) for one in shown], next_page_token=token
        )

    @rpc(_id, scope=Scope.CUSTOMER)
    async def Retrieve(self, id_: str, caller: Caller) -> pb.Statement:  # noqa: N802
        """A closed statement. Raises NotFound."""
        return _closed(await self._closed(id_, caller))

    @rpc_stream(_render, scope=Scope.CUSTOMER, whole=True)
    async def Render(  # noqa: N802
        self, wanted: _Render, caller: Caller
    ) -> AsyncGenerator[HttpBody]:
        """The statement of a period, closed or as of now, as a file. Raises as Get does."""
        found = await self._statements.get(wanted.period, caller)
        if isinstance(found, Closed):
            said, sha256 = json.loads(found.content), found.sha256
        else:
            said, sha256 = found, None
        async with aclosing(self._pieces(said, wanted.look, sha256)) as pieces:
            async for piece in pieces:
                yield piece

    @rpc_stream(_render_closed, scope=Scope.CUSTOMER, whole=True)
    async def RenderClosed(  # noqa: N802
        self, wanted: _RenderClosed, caller: Caller
    ) -> AsyncGenerator[HttpBody]:
        """A closed statement as a file. Raises NotFound."""
        found = await self._closed(wanted.id, caller)
        said = json.loads(found.content)
        async with aclosing(self._pieces(said, wanted.look, found.sha256)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(
        self, said: Document, look: _Look, sha256: str | None
    ) -> AsyncGenerator[HttpBody]:
        type_ = CONTENT_TYPES[look.format]
        data = await asyncio.to_thread(
            file,
            said,
            look.format,
            sha256,
            self._issuer,
            dialect=look.dialect,
            digest_line=look.digest_line,
        )
        headers = [(SHA256_HEADER, hashlib.sha256(data).hexdigest())]
        if look.format == "csv":
            headers.append(export_stream.attachment(file_name(said)))
        await send_headers(*headers)
        for at in range(0, len(data), PIECE_BYTES):
            yield HttpBody(content_type=type_, data=data[at : at + PIECE_BYTES])

    async def _closed(self, id_: str, caller: Caller) -> Closed:
        place = ids.place("stm", id_)

        def read(connection: Connection) -> Closed | None:
            wallet_id = records.wallet_id(connection, place[0])
            wallet = None if wallet_id is None else records.wallet(connection, wallet_id)
            if wallet is None or not caller.may_see_wallet(wallet):
                return None
            return closed_statements.one(connection, *place)

        found = await self._store.read(read)
        if found is None:
            raise NotFound(f"no closed statement {echo(id_)}", param="id")
        return found


def _message(said: Document) -> pb.Statement:
    return json_format.ParseDict(said, pb.Statement())


def _closed(one: Closed) -> pb.Statement:
    return _message({**json.loads(one.content), "sha256": one.sha256})


def _short(one: Closed, wallet_id: str, scale: int) -> pb.ClosedStatement:
    zone = time.stored_zone(one.time_zone)
    return pb.ClosedStatement(
        id=ids.compose("stm", one.wallet, one.number),
        number=one.number,
        wallet_id=wallet_id,
        start=time.text_in(one.starts_at, zone),
        end=time.text_in(one.ends_at, zone),
        time_zone=one.time_zone,
        sequence=one.closed_sequence,
        opening_balance=money.text(one.opening_balance, scale),
        closing_balance=money.text(one.closing_balance, scale),
        closed_at=time.text_in(one.closed_at, zone),
        sha256=one.sha256,
    )
