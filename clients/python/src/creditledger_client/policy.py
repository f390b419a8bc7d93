"""What both clients decide alike: what is repeated, how long to wait, how amounts are written."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.api import annotations_pb2
from google.protobuf import descriptor_pool

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from creditledger_client.errors import LedgerError

WAIT_S, WAIT_S_MAX = 0.1, 5.0
#: A watch says something this often, and is gone if it misses so many.
HEARTBEAT_S, MISSED_MAX = 10, 3
PAGE_SIZE = 100

Amount = str | Decimal


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient a client is. Times in seconds."""

    timeout: float  #: For a call with all its repetitions.
    attempt_timeout: float  #: For one attempt.
    attempts: int  #: How often a call is sent at most.

    def wait(self, error: LedgerError, attempt: int, left: float, *, repeats: bool) -> float | None:
        """How long to wait before attempt `attempt` + 1; None: the error is final."""
        if not repeats or not error.passing or attempt >= self.attempts:
            return None
        wait = pause(attempt) + error.retry_after_seconds
        return wait if wait < left else None


def pause(attempt: int) -> float:
    """Twice as long each time, and never in step with others."""
    most = min(WAIT_S_MAX, WAIT_S * 2.0 ** min(attempt - 1, 16))
    return most * (0.5 + random.random() / 2)  # noqa: S311 # not a secret


def reads(path: str) -> bool:
    """Whether the RPC of a path, `/package.Service/Method`, changes nothing."""
    service, _, method = path.removeprefix("/").partition("/")
    described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    rule = described.GetOptions().Extensions[annotations_pb2.http]
    return bool(rule.WhichOneof("pattern") == "get")


def has_key(request: Message) -> bool:
    """Whether each change that the request asks for has an idempotency key."""
    postings: Any = getattr(request, "postings", None)
    if postings:
        return all(has_key(one) for one in postings)
    return bool(getattr(request, "idempotency_key", ""))


def new_key() -> str:
    """A name for one intent."""
    return f"client:{uuid.uuid4()}"


def amount_text(amount: Amount) -> str:
    """An amount as it is sent. Raises TypeError for what would be rounded before it is seen."""
    if isinstance(amount, Decimal):
        return f"{amount:f}"
    if isinstance(amount, str):
        return amount
    raise TypeError(f"an amount is a str or a Decimal, never a {type(amount).__name__}")


def target(url: str) -> tuple[str, bool]:
    """Host and port of a URL, and whether it is spoken to by TLS. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise ValueError(f"a ledger's URL is http://host:port or https://host:port, not {url!r}")
    secure = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or (443 if secure else 80)}", secure
