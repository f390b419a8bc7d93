"""HTTP/2 as a load client needs it: few connections, many calls, little work for each.

gRPC's own Python client takes about as much CPU for a call as the server does, so on few cores it
would measure itself. Here headers are encoded once (no Huffman, no table of headers), answers are
told from one another by their bytes, and callbacks stand where futures would. What HTTP/2 demands
is kept: flow control in both directions, settings, pings, resets, goaway. Called by load.py.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
WINDOW_UPDATE, CONTINUATION = 0x8, 0x9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5

WINDOW_MAX = 2**31 - 1
#: Both sides begin with this much, for a stream and for the connection.
WINDOW = 65_535
FRAME_MAX = 16_384
#: What a server may send us in one frame: the answer to a batch in a few of them.
OUR_FRAME_MAX = 1 << 20
#: Distinct blocks of headers that are remembered: a server sends the same few again and again.
BLOCKS_MAX = 1_000


class Lost(Exception):
    """The connection is gone, or the other side does not speak HTTP/2."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def headers(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A block of headers: each a literal that enters no table, so blocks can be put together."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, length = len(data) - 127, b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + data


def grpc_headers(path: str, authority: str, secret: str | None) -> bytes:
    """Those of a gRPC call."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
    pairs += [("te", "trailers"), ("content-type", "application/grpc")]
    if secret is not None:
        pairs.append(("authorization", f"Bearer {secret}"))
    return headers(pairs)


def grpc_message(message: bytes) -> bytes:
    """A message as gRPC puts it into a stream."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def grpc_messages(data: bytearray) -> list[bytes]:
    """The whole messages at the front of `data`, which keeps what is behind them."""
    found = []
    place = 0
    while len(data) - place >= 5:
        end = place + 5 + int.from_bytes(data[place + 1 : place + 5], "big")
        if end > len(data):
            break
        if data[place]:
            raise Lost("the server compresses, though nobody said it may")
        found.append(bytes(data[place + 5 : end]))
        place = end
    del data[:place]
    return found


@dataclass(slots=True, eq=False)
class Stream:
    """One call under way, and its answer once it has ended."""

    number: int
    window: int  #: What may still be sent.
    on_end: Callable[["Stream"], None]
    on_data: Callable[["Stream"], None] | None
    tag: Any = None  #: The caller's own.
    fields: dict[str, str] = field(default_factory=dict)  #: Headers and trailers of the answer.
    body: bytearray = field(default_factory=bytearray)  #: Of the answer.
    failure: str | None = None  #: Why it ended without an answer.
    unsent: bytearray = field(default_factory=bytearray)
    ending: bool = False  #: Whether `unsent` is the last of it.

    @property
    def is_ok(self) -> bool:
        """Whether the call was answered, with status OK or 200."""
        if self.failure is not None or self.fields.get(":status") != "200":
            return False
        return self.fields.get("grpc-status", "0") == "0"

    def complaint(self) -> str:
        """What to tell people of a call that failed."""
        if self.failure is not None:
            return self.failure
        told = {name: self.fields.get(name) for name in (":status", "grpc-status", "grpc-message")}
        return f"{told} {bytes(self.body[:400])!r}"


class Connection(asyncio.Protocol):
    """A connection: `request` and, for streams, `open` and `send`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._window = WINDOW  #: What we may still send.
        self._stream_window = WINDOW
        self._frame_max = FRAME_MAX
        self._blocked: set[Stream] = set()
        self._received = 0  #: Bytes of data since the window was last widened.
        self._rest = b""
        self._block = b""  #: Of headers, as far as it has come.
        self._is_last = False  #: Whether its stream ends with it.
        self._out: list[bytes] = []
        self._lost: str | None = None
        self._known: dict[bytes, dict[str, str]] = {}
        self._decoder = Decoder()
        self._decoder.header_table_size = 0

    # --- calls ---

    def request(
        self, block: bytes, body: bytes, on_end: Callable[[Stream], None], tag: object = None
    ) -> None:
        """A call of one message; `on_end` gets its stream when it has ended, however it did."""
        stream = self.open(block, on_end)
        stream.tag = tag
        self.send(stream, body, end=True)

    def open(
        self,
        block: bytes,
        on_end: Callable[[Stream], None],
        on_data: Callable[[Stream], None] | None = None,
    ) -> Stream:
        """A call whose data is sent by and by. `on_data` is told when some has been received."""
        number, self._next = self._next, self._next + 2
        stream = Stream(number, self._stream_window, on_end, on_data)
        if self._lost is not None:
            self._loop.call_soon(self._fail, stream, self._lost)
            return stream
        self._streams[number] = stream
        self._write(frame(HEADERS, END_HEADERS, number, block))
        return stream

    def send(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Data of a call, sent as far as the other side has room, the rest when it has."""
        stream.ending = end
        size = len(data)
        if stream.unsent or size > min(stream.window, self._window, self._frame_max):
            stream.unsent += data
            self._push(stream)
            return
        stream.window -= size
        self._window -= size
        self._write(frame(DATA, END_STREAM if end else 0, stream.number, data))

    def _push(self, stream: Stream) -> None:
        while stream.unsent:
            size = min(len(stream.unsent), stream.window, self._window, self._frame_max)
            if size <= 0:
                self._blocked.add(stream)
                return
            stream.window -= size
            self._window -= size
            part = bytes(stream.unsent[:size])
            del stream.unsent[:size]
            last = END_STREAM if stream.ending and not stream.unsent else 0
            self._write(frame(DATA, last, stream.number, part))
        self._blocked.discard(stream)

    def _push_all(self) -> None:
        for stream in list(self._blocked):
            self._push(stream)

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(b"".join(out))

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are, and that answers may be as large as they are."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        settings = (
            (HEADER_TABLE_SIZE, 0),
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, WINDOW_MAX),
            (MAX_FRAME_SIZE, OUR_FRAME_MAX),
        )
        payload = b"".join(k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in settings)
        self._write(PREFACE + frame(SETTINGS, 0, 0, payload))
        self._widen(WINDOW_MAX - WINDOW)

    def connection_lost(self, error: Exception | None) -> None:
        """Every call under way fails."""
        self._end(f"the connection was lost: {error}")

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole."""
        if self._rest:
            data = self._rest + data
        place, end = 0, len(data)
        while end - place >= 9:
            behind = place + 9 + int.from_bytes(data[place : place + 3], "big")
            if behind > end:
                break
            number = int.from_bytes(data[place + 5 : place + 9], "big") & WINDOW_MAX
            self._take(data[place + 3], data[place + 4], number, data[place + 9 : behind])
            place = behind
        self._rest = data[place:]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == DATA:
            self._take_data(flags, number, payload)
        elif kind in (HEADERS, CONTINUATION):
            self._take_headers(kind, flags, number, payload)
        elif kind == WINDOW_UPDATE:
            self._take_window(number, int.from_bytes(payload, "big"))
        elif kind == PING:
            if not flags & ACK:
                self._write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS:
            if not flags & ACK:
                self._take_settings(payload)
        elif kind == RST_STREAM:
            stream = self._streams.pop(number, None)
            if stream is not None:
                self._fail(stream, f"the server reset the stream: {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            self._end(f"the server says goodbye: {payload[4:].hex()} {payload[8:]!r}")

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > WINDOW_MAX // 2:
            self._widen(self._received)
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.body += _unpadded(flags, payload)
        if stream.on_data is not None:
            stream.on_data(stream)
        if flags & END_STREAM:
            self._finish(stream)

    def _take_headers(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == HEADERS:
            payload = _unpadded(flags, payload)
            self._block = payload[5:] if flags & PRIORITY else payload
            self._is_last = bool(flags & END_STREAM)
        else:
            self._block += payload
        if not flags & END_HEADERS:
            return
        fields = self._decoded(self._block)
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.fields = {**stream.fields, **fields} if stream.fields else fields
        if self._is_last:
            self._finish(stream)

    def _decoded(self, block: bytes) -> dict[str, str]:
        found = self._known.get(block)
        if found is None:
            found = {str(name): str(value) for name, value in self._decoder.decode(block)}
            if len(self._known) >= BLOCKS_MAX:
                self._known.clear()
            self._known[block] = found
        return found

    def _take_window(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
            self._push_all()
        elif stream := self._streams.get(number):
            stream.window += size
            if stream in self._blocked:
                self._push(stream)

    def _take_settings(self, payload: bytes) -> None:
        for place in range(0, len(payload), 6):
            name = int.from_bytes(payload[place : place + 2], "big")
            value = int.from_bytes(payload[place + 2 : place + 6], "big")
            if name == INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif name == MAX_FRAME_SIZE:
                self._frame_max = value
        self._write(frame(SETTINGS, ACK, 0))
        self._push_all()
        if not self.ready.done():
            self.ready.set_result(None)

    def _widen(self, size: int) -> None:
        self._write(frame(WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big")))

    def _finish(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self._blocked.discard(stream)
        stream.on_end(stream)

    def _fail(self, stream: Stream, why: str) -> None:
        stream.failure = why
        self._blocked.discard(stream)
        stream.on_end(stream)

    def _end(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = why
        if not self.ready.done():
            self.ready.set_exception(Lost(why))
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            self._fail(stream, why)
        self.close()

    def close(self) -> None:
        """End the connection; calls under way fail."""
        if self._transport is not None:
            self._transport.close()


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    return payload[1 : len(payload) - payload[0]]


async def connect(address: str, *, seconds: float = 10.0) -> Connection:
    """A connection to host:port. Raises Lost, OSError and TimeoutError."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, host.strip("[]"), int(port))
    async with asyncio.timeout(seconds):
        await connection.ready
    return connection
