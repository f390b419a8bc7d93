"""An HTTP/2 client that keeps no rule: frames put together by hand, sent over a bare socket.

What a server answers is read as far as a test needs it. Nothing here checks anything; that the
server bears it is what `test_transport.py` is about.
"""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from hpack import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: Both sides begin with this much, for a stream and for the connection.
WINDOW = 65_535
FRAME_MAX = 16_384
#: How long a server may take to answer before it counts as silent.
PATIENCE_SECONDS = 30.0


class Kind(IntEnum):
    """What a frame is."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """What either side says of itself."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


#: Flags.
ACK = END_STREAM = 1
END_HEADERS, PADDED = 4, 8
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame; its length is the payload's."""
    return head(len(payload), kind, flags, stream) + payload


def head(length: int, kind: int, flags: int = 0, stream: int = 0) -> bytes:
    """The first nine bytes of a frame, true or not."""
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream)


def settings(**values: int) -> bytes:
    """A SETTINGS frame."""
    pairs = (struct.pack(">HI", Setting[name], value) for name, value in values.items())
    return frame(Kind.SETTINGS, payload=b"".join(pairs))


def literal(name: str | bytes, value: str | bytes) -> bytes:
    """A header, without Huffman and without the table of headers."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return integer(len(data), bits=7) + data


def integer(value: int, *, bits: int, first: int = 0) -> bytes:
    """A number as HPACK spells it, after the bits that `first` has set."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    rest, out = value - most, bytearray([first | most])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def request(path: str, *extra: tuple[str, str], **instead: str) -> bytes:
    """The block of headers of a gRPC call; `instead` replaces what it says of itself."""
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    said = {
        name: instead.pop(name.strip(":").replace("-", "_"), value) for name, value in usual.items()
    }
    assert not instead
    return b"".join(literal(name, value) for name, value in (*said.items(), *extra))


def message(data: bytes = b"", *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC; its length is the data's unless said otherwise."""
    return struct.pack(">BI", compressed, len(data) if length is None else length) + data


def call(path: str, body: bytes, *extra: tuple[str, str], stream: int = 1, **instead: str) -> bytes:
    """A whole call: headers, one frame of data, the end. The body fits into a frame."""
    headers = frame(Kind.HEADERS, END_HEADERS, stream, request(path, *extra, **instead))
    return headers + frame(Kind.DATA, END_STREAM, stream, body)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    def ends(self, stream: int) -> bool:
        """Whether nothing more comes on the stream."""
        last = self.kind in {Kind.DATA, Kind.HEADERS} and self.flags & END_STREAM
        return self.stream == stream and bool(last or self.kind == Kind.RST_STREAM)


class Gone(Exception):
    """The server has ended the connection."""


class Peer:
    """A connection to a server."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        #: All that the server has sent.
        self.seen: list[Frame] = []
        self._buffer = b""
        self._headers = Decoder(max_header_list_size=1 << 20)
        #: What may be sent yet: by stream, and under 0 by the connection.
        self._windows = {0: WINDOW}
        self._first_window = WINDOW

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send. Raises Gone if the server does not listen any more."""
        try:
            self.socket.sendall(b"".join(parts))
        except OSError as error:
            raise Gone from error

    def greet(self, *parts: bytes, **values: int) -> None:
        """Begin as HTTP/2 begins, with these settings, and go on with the parts.

        The server's settings are acknowledged before they are known: it has to wait for that.
        """
        self.send(PREFACE, settings(**values), frame(Kind.SETTINGS, ACK), *parts)

    def read(self) -> Frame:
        """The next frame. Raises Gone at the end, TimeoutError if there is neither."""
        while len(self._buffer) < 9 or len(self._buffer) < 9 + self._length():
            try:
                some = self.socket.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError as error:
                raise Gone from error
            if not some:
                raise Gone
            self._buffer += some
        end = 9 + self._length()
        kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
        found = Frame(kind, flags, stream, self._buffer[9:end])
        self._buffer = self._buffer[end:]
        self._grant(found)
        self.seen.append(found)
        return found

    def _length(self) -> int:
        return int.from_bytes(self._buffer[:3], "big")

    def _grant(self, found: Frame) -> None:
        if found.kind == Kind.WINDOW_UPDATE:
            more = int.from_bytes(found.payload, "big")
            window = self._windows.setdefault(found.stream, self._first_window)
            self._windows[found.stream] = window + more
        elif found.kind == Kind.SETTINGS and not found.flags & ACK:
            for name, value in struct.iter_unpack(">HI", found.payload):
                if name == Setting.INITIAL_WINDOW_SIZE:
                    for stream in self._windows.keys() - {0}:
                        self._windows[stream] += value - self._first_window
                    self._first_window = value

    def until_gone(self) -> None:
        """Read until the server ends the connection."""
        with suppress(Gone):
            while True:
                self.read()

    def until_pong(self) -> None:
        """Ping, and read until that is answered, or the server ends the connection."""
        with suppress(Gone):
            self.send(frame(Kind.PING, payload=b"are you?"))
            while self.read().payload != b"are you?":
                pass

    def until_end_of(self, stream: int) -> dict[str, str]:
        """The headers and trailers of a stream that the server ends, or whose connection it ends.

        Each name once, with its last value; of a server that splits no block of headers.
        """
        with suppress(Gone):
            while not any(one.ends(stream) for one in self.seen):
                self.read()
        blocks = [one.payload for one in self.seen if one.kind == Kind.HEADERS]
        found = [header for block in blocks for header in self._headers.decode(block)]
        return {str(name): str(value) for name, value in found}

    def upload(self, stream: int, body: bytes) -> int:
        """Send the body within the server's windows; how much of it went before it had enough."""
        self._windows.setdefault(stream, self._first_window)
        sent = 0
        while sent < len(body):
            room = min(self._windows[0], self._windows[stream], FRAME_MAX, len(body) - sent)
            if room > 0:
                self.send(frame(Kind.DATA, 0, stream, body[sent : sent + room]))
                self._windows[0] -= room
                self._windows[stream] -= room
                sent += room
                continue
            try:
                found = self.read()
            except Gone:
                break
            if found.ends(stream):
                break
        return sent


@contextmanager
def connected(address: str, count: int) -> Iterator[list[Peer]]:
    """So many connections at once."""
    peers = [Peer(address) for _ in range(count)]
    try:
        yield peers
    finally:
        for peer in peers:
            peer.socket.close()
