"""How the workers take time: a while that counts, behind one in which everything gets warm."""

import time
from dataclasses import dataclass, field

from bench.worker import Failed

#: Connections, caches and the server's own buffers get warm before anything counts.
WARM_SECONDS_MAX = 0.3


@dataclass(slots=True)
class Times:
    """What was done in the while that counts, and all that was done before and after it."""

    seconds: float  #: How long the while is. It begins when this is made, and the warming up over.
    counted: int = 0  #: Postings done in the while; calls, where a call posts nothing.
    total: int = 0
    latencies: list[float] = field(default_factory=list)  #: Of calls answered in it.
    receipts: list[bytes] = field(default_factory=list)  #: Of what was acknowledged at all.
    _from: float = field(init=False)
    _to: float = field(init=False)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = time.perf_counter()
        self._from = self._last + min(WARM_SECONDS_MAX, self.seconds)
        self._to = self._from + self.seconds

    def go_on(self) -> bool:
        """Whether another call may begin."""
        return time.perf_counter() < self._to

    def done(self, postings: int, began: float | None = None, receipts: bytes = b"") -> bool:
        """A call that began then, or as the last one was done, is answered; whether to go on."""
        now = time.perf_counter()
        if began is None:
            began = self._last
        self._last = now
        self.total += postings
        if receipts:
            self.receipts.append(receipts)
        if now > self._to and self.latencies:
            return False
        if now > self._to:
            # Slower than was thought: the while lasts until its first answer.
            self._to, self.seconds = now, now - self._from
        if now >= self._from:
            self.counted += postings
            self.latencies.append(now - began)
        return True

    def answer(self) -> dict[str, object]:
        """What a worker answers. Raises Failed if nothing was done."""
        return answer(self.counted / self.seconds, self.total, self.latencies)


def answer(rate: float, total: int, latencies: list[float]) -> dict[str, object]:
    """What a worker answers: postings a second, how many in all, and latencies of calls."""
    if not latencies:
        raise Failed("no call was answered in the time that counts")
    ordered = sorted(latencies)
    return {
        "rate": rate,
        "total": total,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
    }
