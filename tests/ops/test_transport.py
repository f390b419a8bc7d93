"""What speaks HTTP/2 badly, or gRPC, or nothing, is borne.

One server is attacked by every test in turn. After each attack it answers a good client, and its
memory has not grown by what was thrown at it; at the end it stops in order, nothing has happened
that was not foreseen, and its ledger verifies. What has to pass this before it may take grpcio's
place is in docs/decisions/0013-transport.md.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import signal
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from credit.v1.registry_service_pb2_grpc import RegistryServiceStub
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub

from creditledger.ops.sockets import local_socket, target
from tests.support.commands import PATIENCE_SECONDS, Command, start
from tests.support.frames import (
    ACK,
    CANCEL,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    Gone,
    Kind,
    Peer,
    call,
    connected,
    frame,
    head,
    integer,
    literal,
    message,
    request,
    settings,
)
from tests.support.refusals import Metadata, bearer
from tests.support.server import CUSTOMER, WALLET, consume, grant, post
from tests.support.setup import file_of, findings, migrated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _pytest.mark import ParameterSet

GET_WALLET = "/credit.v1.WalletService/GetWallet"
POST = "/credit.v1.WalletService/Post"
STREAM_POST = "/credit.v1.WalletService/StreamPost"
MEBIBYTE = 1 << 20
#: What a message may have, here and in docs/api.md.
MESSAGE_BYTES_MAX = 4 * MEBIBYTE
#: Far below what an attack sends or asks for, far above what serving it takes.
GROWTH_BYTES_MAX = 64 * MEBIBYTE
#: How long a server that stops to take in more may be silent before it counts as having stopped.
SILENT_SECONDS = 2.0
#: What grpcio answers when too many calls wait for Python.
TURNED_AWAY = {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
TRIES_MAX = 100


def stub(kind: Any, channel: grpc.Channel) -> Any:
    """A stub of a channel that blocks; its types know the other kind only."""
    return kind(channel)


@dataclass(slots=True)
class Attacked:
    """A `creditledger serve` of its own, and a good client of it."""

    process: Command
    address: str
    url: str
    log: Path
    service: Metadata = ()
    _keys: count[int] = field(default_factory=count)

    def prepare(self) -> None:
        """Make what the good client posts to."""
        with grpc.insecure_channel(target(local_socket(file_of(self.url)))) as channel:
            stub(RegistryServiceStub, channel).CreateCustomer(
                registry_pb.CreateCustomerRequest(id=CUSTOMER, name="Acme", email="a@example.com")
            )
            wallets = stub(WalletServiceStub, channel)
            wallets.CreateWallet(
                pb.CreateWalletRequest(id=WALLET, customer_id=CUSTOMER, currency="USD")
            )
            wallets.Post(post("topup", **grant("1000000")))
            key = keys_pb.CreateApiKeyRequest(name="gateway", scope="service")
            self.service = bearer(stub(ApiKeyServiceStub, channel).CreateApiKey(key).secret)

    def serves(self) -> None:
        """Fails unless a good client, on a connection of its own, posts and reads.

        In the midst of a flood it may be turned away, and comes again with the same key.
        """
        alone = [("grpc.use_local_subchannel_pool", 1)]
        wanted = post(f"good {next(self._keys)}", **consume("0.01"))
        with grpc.insecure_channel(self.address, options=alone) as channel:
            wallets = stub(WalletServiceStub, channel)
            with_key = {"metadata": self.service, "timeout": PATIENCE_SECONDS}
            for _ in range(TRIES_MAX):
                try:
                    posted = wallets.Post(wanted, **with_key)
                    read = wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET), **with_key)
                    break
                except grpc.RpcError as error:
                    if error.code() not in TURNED_AWAY:
                        raise
            else:
                pytest.fail("a good client is not served")
            assert 0 < posted.wallet.sequence <= read.sequence

    def stop(self) -> None:
        """Tell it to stop; fails unless it does so in order and has never lost its bearings."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_SECONDS) == 0
        # What our code did not foresee is logged as that; grpcio itself complains of who goes.
        log = self.log.read_text(errors="replace")
        assert '"INTERNAL"' not in log
        assert "never retrieved" not in log
        assert findings(self.url) == []

    def files(self, *, most: int = 0, seconds: float = PATIENCE_SECONDS) -> int:
        """How many files and sockets it has open, once they are no more than `most`."""
        process = psutil.Process(self.process.pid)
        give_up = time.monotonic() + seconds
        while process.num_fds() > most > 0 and time.monotonic() < give_up:
            time.sleep(0.02)  # the other process closes them: nothing tells when
        return process.num_fds()

    @contextmanager
    def keeps_its_memory(self) -> Iterator[None]:
        """Fails if the block made it use more than GROWTH_BYTES_MAX at any moment."""
        self.serves()
        # The high-water mark is set back to what is used now.
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before = psutil.Process(self.process.pid).memory_info().rss
        yield
        self.serves()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index] # it is there
        assert peak - before < GROWTH_BYTES_MAX


@contextmanager
def serving(folder: Path) -> Iterator[Attacked]:
    """Serve a new database until the block ends."""
    url = migrated(folder / "credit.db")
    log = folder / "log"
    with log.open("wb") as sink:
        started = start(
            *("serve", "--database-url", url, "--grpc-address", "127.0.0.1:0"),
            *("--log-format", "json", "--drain-seconds", "2"),
            errors=sink,
        )
    try:
        attacked = Attacked(started, _address(started, log), url, log)
        attacked.prepare()
        yield attacked
    finally:
        started.kill()
        started.wait()


def _address(started: Command, log: Path) -> str:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and '"serving"' in line:
                address: str = json.loads(line)["grpc_address"]
                return address
        assert started.poll() is None, log.read_text()
        # The file is written by another process: there is nothing to wait upon but time.
        time.sleep(0.02)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """One server for all attacks: others have attacked it before."""
    with serving(tmp_path_factory.mktemp("attacked")) as one:
        yield one
        one.stop()


def named(cases: Iterator[tuple[object, ...]]) -> Sequence[ParameterSet]:
    """Cases that begin with their name."""
    return [pytest.param(*case, id=str(name).replace(" ", "-")) for name, *case in cases]


# --- what is no HTTP/2 ----------------------------------------------------------------------------

NONSENSE = {
    "noise": bytes(range(256)) * 64,
    "zeros": bytes(4_096),
    "http1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + bytes(512),
    "wrong-preface": PREFACE.replace(b"SM", b"XX") + settings(),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_no_http2_is_hung_up_on(attacked: Attacked, name: str) -> None:
    """Who does not begin as HTTP/2 begins is not listened to."""
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        with suppress(Gone):
            peer.send(NONSENSE[name])
        peer.until_gone()


@pytest.mark.parametrize("length", [0, 1, 23, 24, 30, 40, 60])
def test_who_breaks_off_is_let_go_of(attacked: Attacked, length: int) -> None:
    """A connection that ends in the middle of anything ends on both sides."""
    whole = PREFACE + settings() + call(POST, message(b"\x0a\x03wal"))
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        peer.send(whole[:length])
        peer.socket.shutdown(socket.SHUT_WR)
        peer.until_gone()


def _rule_breakers() -> Iterator[tuple[str, bytes]]:
    """Frames that the standard forbids, or at which it shrugs."""
    headers = request(GET_WALLET)
    opened = frame(Kind.HEADERS, END_HEADERS, 1, headers)
    whole = call(GET_WALLET, message())
    yield "data on no stream", frame(Kind.DATA, 0, 0, b"x")
    yield "data on an idle stream", frame(Kind.DATA, 0, 5, b"x")
    yield "data on an ended stream", whole + frame(Kind.DATA, END_STREAM, 1, b"x" * 64)
    yield "headers on no stream", frame(Kind.HEADERS, END_HEADERS, 0, headers)
    yield "headers on an even stream", frame(Kind.HEADERS, END_HEADERS, 2, headers)
    yield "headers on an ended stream", whole + opened
    yield "headers on a lower stream", call(GET_WALLET, message(), stream=9) + opened
    yield "headers again without an end", opened + opened
    yield "headers of nothing", frame(Kind.HEADERS, END_HEADERS, 1)
    yield "headers without a path", frame(Kind.HEADERS, 5, 1, literal(":method", "POST"))
    yield "a path twice", frame(Kind.HEADERS, 5, 1, headers + literal(":path", "/x"))
    yield "an unknown pseudo-header", frame(Kind.HEADERS, 5, 1, headers + literal(":odd", "x"))
    yield "a name in capitals", call(GET_WALLET, message(), ("X-Odd", "x"))
    yield "a name with a blank", call(GET_WALLET, message(), ("x odd", "x"))
    yield "a value with a line", call(GET_WALLET, message(), ("x-odd", "a\r\nb: c"))
    yield "a value of no text", call(GET_WALLET, message(), ("x-odd", "\x00\x01\x7f"))
    yield "a hop by hop header", call(GET_WALLET, message(), ("connection", "close"))
    yield "an index beyond the table", frame(Kind.HEADERS, 5, 1, integer(9_999, bits=7, first=128))
    yield "an endless number", frame(Kind.HEADERS, 5, 1, b"\xff" * 64)
    yield "a text longer than its frame", frame(Kind.HEADERS, 5, 1, b"\0\x7f\xff\xff\x7fx")
    yield "a table too large", frame(Kind.HEADERS, 5, 1, integer(1 << 30, bits=5, first=32))
    yield "bad Huffman", frame(Kind.HEADERS, 5, 1, b"\0\x84\xff\xff\xff\xff\0")
    yield "padding longer than its frame", frame(Kind.DATA, PADDED, 1, b"\xff")
    yield "only padding", opened + frame(Kind.DATA, PADDED | END_STREAM, 1, b"\x03\0\0\0")
    yield "a stream that waits for itself", frame(Kind.PRIORITY, 0, 1, b"\0\0\0\x01\x10")
    yield "half a priority", frame(Kind.PRIORITY, 0, 1, b"\0")
    yield "half a reset", opened + frame(Kind.RST_STREAM, 0, 1, b"\0")
    yield "a reset of nothing", frame(Kind.RST_STREAM, 0, 7, CANCEL)
    yield "a reset of the connection", frame(Kind.RST_STREAM, 0, 0, CANCEL)
    yield "half a setting", frame(Kind.SETTINGS, payload=b"\0\x04\0")
    yield "settings of a stream", frame(Kind.SETTINGS, 0, 1)
    yield "settings agreed to with more", frame(Kind.SETTINGS, ACK, 0, bytes(6))
    yield "settings agreed to again", frame(Kind.SETTINGS, ACK) * 20
    yield "a window too large", settings(INITIAL_WINDOW_SIZE=1 << 31)
    yield "frames too small", settings(MAX_FRAME_SIZE=1)
    yield "a push that is a number", settings(ENABLE_PUSH=7)
    yield "a window of 0 more", frame(Kind.WINDOW_UPDATE, payload=bytes(4))
    yield "a window past its end", frame(Kind.WINDOW_UPDATE, payload=b"\x7f\xff\xff\xff") * 3
    yield (
        "a stream's window past its end",
        (opened + frame(Kind.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 3),
    )
    yield "half a ping", frame(Kind.PING, payload=b"\0")
    yield "a ping of a stream", frame(Kind.PING, 0, 1, bytes(8))
    yield "a pong for nothing", frame(Kind.PING, ACK, 0, bytes(8))
    yield "a push", frame(Kind.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + headers)
    yield "a continuation of nothing", frame(Kind.CONTINUATION, END_HEADERS, 1, headers)
    yield (
        "another frame amid headers",
        (frame(Kind.HEADERS, 0, 1, headers) + frame(Kind.PING, payload=bytes(8))),
    )
    yield "a frame of a kind unknown", frame(0xFA, 0xFF, 1, b"x" * 99)
    yield "a goodbye", frame(Kind.GOAWAY, payload=bytes(8))
    yield "half a goodbye", frame(Kind.GOAWAY, payload=b"\0")
    yield "more data than the window", opened + frame(Kind.DATA, 0, 1, bytes(16_384)) * 300


@pytest.mark.parametrize("wrong", named(_rule_breakers()))
def test_frames_against_the_rules(attacked: Attacked, wrong: bytes) -> None:
    """What is forbidden ends its stream or the connection, and nothing else waits for it."""
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer, suppress(Gone):
        peer.greet(wrong)
        peer.until_pong()


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.HEADERS, Kind.SETTINGS, Kind.CONTINUATION, 0xFA])
def test_a_frame_larger_than_agreed(attacked: Attacked, kind: int) -> None:
    """A frame of 16 MiB is not waited for: that it is too large is known from its head."""
    stream = 0 if kind == Kind.SETTINGS else 1
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer, suppress(Gone):
        peer.greet(head((1 << 24) - 1, kind, 0, stream))
        peer.until_gone()


# --- too much of it -------------------------------------------------------------------------------


def _floods() -> Iterator[tuple[str, bytes, bytes, int]]:
    """What is sent once, what again and again, and how often."""
    headers = request(POST, ("authorization", "Bearer sk-" + "x" * 43))
    opened = frame(Kind.HEADERS, END_HEADERS, 1, headers)
    yield "settings", b"", settings(INITIAL_WINDOW_SIZE=65_535) * 1_000, 100
    yield "pings", b"", frame(Kind.PING, payload=bytes(8)) * 1_000, 100
    yield "priorities", b"", frame(Kind.PRIORITY, 0, 1, b"\0\0\0\0\x10") * 1_000, 100
    yield "windows", b"", frame(Kind.WINDOW_UPDATE, payload=b"\0\0\0\x01") * 1_000, 100
    yield "unknown frames", b"", frame(0xFA, 0, 0, bytes(8)) * 1_000, 100
    yield "empty data", opened, frame(Kind.DATA, 0, 1) * 1_000, 100
    yield "resets of one stream", opened, frame(Kind.RST_STREAM, 0, 1, CANCEL) * 1_000, 100
    begun = frame(Kind.HEADERS, 0, 1, headers)
    yield "continuations", begun, frame(Kind.CONTINUATION, 0, 1, literal("x", "y" * 16_000)), 5_000
    yield "empty continuations", begun, frame(Kind.CONTINUATION, 0, 1) * 1_000, 100
    # 4,000 bytes in the table of headers, which each further byte stands for: 56 MB a call.
    entry = b"\x40" + literal("x-odd", "y" * 4_000)[1:]
    again = integer(62, bits=7, first=128) * 14_000
    calls = [frame(Kind.HEADERS, 5, stream, headers + again) for stream in range(3, 43, 2)]
    once = frame(Kind.HEADERS, 5, 1, headers + entry)
    yield "one header for many", once, b"".join(calls), 1
    endless = frame(Kind.HEADERS, 0, 1, headers + entry)
    yield "one header without end", endless, frame(Kind.CONTINUATION, 0, 1, again), 300


@pytest.mark.parametrize(("once", "again", "times"), named(_floods()))
def test_floods(attacked: Attacked, once: bytes, again: bytes, times: int) -> None:
    """Who sends without end and reads nothing is stopped, or costs nothing."""
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        with suppress(Gone, TimeoutError):
            peer.greet(once)
            flood(peer, (again for _ in range(times)))
        attacked.serves()


def flood(peer: Peer, parts: Iterator[bytes]) -> None:
    """Send them all, unless the server stops to take them."""
    peer.socket.settimeout(SILENT_SECONDS)
    for part in parts:
        try:
            peer.send(part)
        except Gone as error:
            if isinstance(error.__cause__, TimeoutError):
                return
            raise


@pytest.mark.parametrize("ending", ["reset", "left open"])
def test_calls_that_are_begun_and_given_up(attacked: Attacked, ending: str) -> None:
    """20,000 calls on one connection, whole and reset at once, or never ended."""
    headers = request(POST, ("authorization", "Bearer sk-" + "x" * 43))

    def calls() -> Iterator[bytes]:
        for stream in range(1, 40_001, 2):
            begun = frame(Kind.HEADERS, END_HEADERS, stream, headers)
            if ending == "reset":
                begun += frame(Kind.DATA, END_STREAM, stream, message())
                begun += frame(Kind.RST_STREAM, 0, stream, CANCEL)
            yield begun

    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        with suppress(Gone, TimeoutError):
            peer.greet()
            flood(peer, calls())
        attacked.serves()


# --- what is no gRPC ------------------------------------------------------------------------------


def _no_grpc() -> Iterator[tuple[str, bytes]]:
    """Calls that the server refuses, or serves, in so many words."""
    empty = message()
    yield "another content type", call(GET_WALLET, empty, content_type="text/plain")
    yield "JSON", call(GET_WALLET, b"{}" * 9, content_type="application/json")
    yield "an unknown method", call("/credit.v1.WalletService/Steal", empty)
    yield "an unknown service", call("/a/b", empty)
    yield "a path that is none", call("/", empty)
    yield "compressed by nothing", call(GET_WALLET, message(compressed=1))
    yield (
        "compressed by what nobody knows",
        (call(GET_WALLET, message(b"x", compressed=1), ("grpc-encoding", "odd"))),
    )
    yield (
        "compressed, but not so",
        (call(GET_WALLET, message(b"x" * 20, compressed=1), ("grpc-encoding", "gzip"))),
    )
    yield "two messages in one", call(GET_WALLET, empty + empty)
    yield "no protobuf", call(GET_WALLET, message(b"\xff" * 20))
    yield "no text", call(GET_WALLET, message(b"\x0a\x02\xff\xff"))
    yield "a deadline that is none", call(GET_WALLET, empty, ("grpc-timeout", "soon"))
    yield "a deadline of no time", call(GET_WALLET, empty, ("grpc-timeout", "0n"))
    yield "binary that is none", call(GET_WALLET, empty, ("x-odd-bin", "!!!"))
    yield "two keys", call(GET_WALLET, empty, ("x-api-key", "sk-a"), ("x-api-key", "sk-b"))


@pytest.mark.parametrize("sent", named(_no_grpc()))
def test_what_is_no_grpc_is_refused(attacked: Attacked, sent: bytes) -> None:
    """The call ends with a status that is not OK, and no word of what the server is made of."""
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        peer.greet(sent)
        told = peer.until_end_of(1)

    assert told.get("grpc-status", "none") != "0"
    assert not [text for text in told.values() if "Traceback" in text or ".py" in text]


@pytest.mark.parametrize(
    "body", [b"", b"\0", message(length=9) + b"ab"], ids=["none", "half-a-head", "half"]
)
def test_a_message_that_never_comes(attacked: Attacked, body: bytes) -> None:
    """A call that ends before its message does posts nothing and holds nobody up."""
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        peer.greet(call(POST, body, ("authorization", attacked.service[0][1])))
        peer.until_pong()


def test_more_metadata_than_is_allowed(attacked: Attacked) -> None:
    """Headers of more than 256 KiB are refused; what Envoy lets in, 60 KiB, is not too much."""

    def asked(parts: int) -> dict[str, str]:
        more = [
            frame(Kind.CONTINUATION, END_HEADERS * (n == parts), 1, literal(f"x-{n}", "y" * 15_000))
            for n in range(1, parts + 1)
        ]
        with Peer(attacked.address) as peer:
            peer.greet(frame(Kind.HEADERS, 0, 1, request(GET_WALLET)), *more)
            peer.send(frame(Kind.DATA, END_STREAM, 1, message()))
            return peer.until_end_of(1)

    with attacked.keeps_its_memory():
        reached, refused = asked(4), asked(20)

    assert "x-creditledger-error" in reached
    assert "x-creditledger-error" not in refused
    assert (refused.get("grpc-status"), refused[":status"]) in {("8", "200"), (None, "431")}


def test_a_message_of_more_than_4_mib(attacked: Attacked) -> None:
    """It is RESOURCE_EXHAUSTED; one of 4 MiB reaches the service, and is refused there."""

    def asked(size: int) -> str | None:
        with Peer(attacked.address) as peer:
            peer.greet(frame(Kind.HEADERS, END_HEADERS, 1, request(POST, *attacked.service)))
            # One unknown field of bytes, so that it is protobuf.
            filler = b"\xfa\x7f" + integer_of_protobuf(size - 6) + bytes(size - 6)
            peer.upload(1, message(filler[:size], length=size))
            with suppress(Gone):
                peer.send(frame(Kind.DATA, END_STREAM, 1))
            return peer.until_end_of(1).get("grpc-status")

    codes = [asked(MESSAGE_BYTES_MAX), asked(MESSAGE_BYTES_MAX + 1)]
    attacked.serves()

    assert codes == ["3", "8"]  # INVALID_ARGUMENT, RESOURCE_EXHAUSTED


def integer_of_protobuf(value: int) -> bytes:
    """A varint of four bytes."""
    return bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128, value >> 21])


# --- who does not listen --------------------------------------------------------------------------


def test_who_never_reads_is_not_read_either(attacked: Attacked) -> None:
    """A stream whose answers nobody takes is read no further, whatever comes."""
    with attacked.keeps_its_memory():
        post_and_never_read(attacked, 8_000)
        attacked.serves()


def post_and_never_read(attacked: Attacked, count: int) -> None:
    """Fails unless the server stops to read so many postings of 8 kB; then leaves."""
    heavy = {f"{n:02}": "x" * 160 for n in range(50)}

    def posting(n: int) -> bytes:
        wanted = post(f"unread {n}", metadata=heavy, **consume("0.01"))
        return message(pb.StreamPostRequest(posting=wanted).SerializeToString())

    with Peer(attacked.address) as peer:
        with_key = request(STREAM_POST, ("authorization", attacked.service[0][1]))
        peer.greet(frame(Kind.HEADERS, END_HEADERS, 1, with_key), INITIAL_WINDOW_SIZE=0)
        peer.socket.settimeout(SILENT_SECONDS)
        with pytest.raises(TimeoutError):
            peer.upload(1, b"".join(posting(n) for n in range(count)))


def test_connections_that_do_nothing(attacked: Attacked) -> None:
    """200 connections, silent or half-closed, hinder nobody and leave nothing behind."""
    attacked.serves()
    before = attacked.files()
    with attacked.keeps_its_memory(), connected(attacked.address, 200) as peers:
        for n, peer in enumerate(peers):
            if n % 3:
                peer.greet()
            if n % 2:
                peer.socket.shutdown(socket.SHUT_WR)
        attacked.serves()

    assert attacked.files(most=before + 10) <= before + 10


def test_connections_that_take_their_time(attacked: Attacked) -> None:
    """100 connections that send a byte at a time hinder nobody, and are served in the end."""
    asked = call(GET_WALLET, message(), *attacked.service)
    whole = PREFACE + settings() + frame(Kind.SETTINGS, ACK) + asked
    with attacked.keeps_its_memory(), connected(attacked.address, 100) as peers:
        for n, byte in enumerate(whole):
            for peer in peers:
                peer.send(bytes([byte]))
            if n % 40 == 0:
                attacked.serves()
        ends = [peer.until_end_of(1)["grpc-status"] for peer in peers]

    assert ends == ["3"] * 100


# --- what takes memory ----------------------------------------------------------------------------


def test_a_message_is_refused_by_its_length(attacked: Attacked) -> None:
    """A message that says it is too large is not gathered first."""
    with Peer(attacked.address) as peer:
        peer.greet(frame(Kind.HEADERS, END_HEADERS, 1, request(POST, *attacked.service)))
        sent = peer.upload(1, message(bytes(32 * MEBIBYTE), length=1 << 30))

    assert sent < 2 * MESSAGE_BYTES_MAX


def test_a_message_is_refused_by_what_it_unpacks_to(attacked: Attacked) -> None:
    """256 MiB packed into a quarter of one do not come to stand in memory."""
    bomb = message(gzip.compress(bytes(4 * GROWTH_BYTES_MAX)), compressed=1)
    with attacked.keeps_its_memory(), Peer(attacked.address) as peer:
        headers = request(POST, ("grpc-encoding", "gzip"), *attacked.service)
        peer.greet(frame(Kind.HEADERS, END_HEADERS, 1, headers))
        peer.upload(1, bomb)
        with suppress(Gone):
            peer.send(frame(Kind.DATA, END_STREAM, 1))
        assert peer.until_end_of(1)["grpc-status"] == "8"


def test_who_leaves_without_having_read_leaves_nothing(attacked: Attacked) -> None:
    """Streams whose clients end while their answers wait are let go of."""
    attacked.serves()
    before = attacked.files()
    for _ in range(4):
        post_and_never_read(attacked, 3_000)
    attacked.serves()

    assert attacked.files(most=before + 2, seconds=5) <= before + 2


def test_a_length_alone_costs_no_memory(tmp_path: Path) -> None:
    """Five bytes that claim 4 GiB do not end a server that could not have them."""
    with serving(tmp_path) as one:
        room = psutil.Process(one.process.pid).memory_info().vms + 2048 * MEBIBYTE
        resource.prlimit(one.process.pid, resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(one.process.pid, resource.RLIMIT_AS, (room, room))
        with Peer(one.address) as peer, suppress(Gone):
            peer.greet(call(POST, message(length=(1 << 32) - 1), *one.service))
            peer.until_pong()

        one.serves()


def test_a_stream_of_the_network_is_nobody_without_a_key(attacked: Attacked) -> None:
    """Only calls through the Unix socket are the owner's."""
    wanted = pb.StreamPostRequest(posting=post("stolen", **grant("1"))).SerializeToString()
    with Peer(attacked.address) as peer:
        peer.greet(call(STREAM_POST, message(wanted)))
        told = peer.until_end_of(1)

    assert told["grpc-status"] == "16"  # UNAUTHENTICATED
