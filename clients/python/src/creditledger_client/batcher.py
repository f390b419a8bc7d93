"""Many postings at high rates: gathered into batches in the background.

A batch goes out as soon as the one before is answered, with all that has come meanwhile: so a
lonely posting does not wait, and a flood fills its batches.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from credit.v1 import wallet_service_pb2 as pb

from creditledger_client.errors import LedgerError, refusal
from creditledger_client.messages import posting_request

if TYPE_CHECKING:
    from creditledger_client.client import Client
    from creditledger_client.policy import Amount

#: As many as the ledger takes in a batch.
BATCH_MAX = 1_000
#: Batches under way at once: while one is answered the next is on its way.
SENDERS = 2


class BatcherFull(Exception):
    """As many postings wait as may: nothing was taken, the caller slows down or tries again."""


class Batcher:
    """Posts for many threads. Each posting has its own answer, whatever becomes of the others.

    As a context manager it waits at its end until everything is answered.
    """

    def __init__(self, client: Client, *, waiting_max: int = 100_000) -> None:
        """waiting_max: postings that may wait to be sent."""
        self._client = client
        self._waiting: queue.Queue[tuple[pb.PostRequest, Future[pb.BriefPosting]] | None]
        self._waiting = queue.Queue(waiting_max)
        self._closed = False
        self._closing = threading.Lock()
        self._senders = [threading.Thread(target=self._send, daemon=True) for _ in range(SENDERS)]
        for sender in self._senders:
            sender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def consume(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> Future[pb.BriefPosting]:
        """Spend credit, as Client.consume does. The answer, or its LedgerError, comes later."""
        return self.post(posting_request("consumption", wallet_id, amount, idempotency_key, more))

    def post(self, request: pb.PostRequest) -> Future[pb.BriefPosting]:
        """Write one posting, whose idempotency key is required.

        Raises BatcherFull, and RuntimeError once it is closed.
        """
        if not request.idempotency_key:
            raise ValueError("a posting in a batch needs an idempotency_key")
        answer: Future[pb.BriefPosting] = Future()
        with self._closing:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            try:
                self._waiting.put_nowait((request, answer))
            except queue.Full:
                raise BatcherFull(f"{self._waiting.maxsize} postings wait already") from None
        return answer

    def close(self) -> None:
        """Take no more, and wait until all that was taken is answered."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        for _ in self._senders:
            self._waiting.put(None)  # behind everything that was taken
        for sender in self._senders:
            sender.join()

    def _send(self) -> None:
        while True:
            first = self._waiting.get()
            if first is None:
                return
            batch, ended = [first], False
            while len(batch) < BATCH_MAX:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    ended = True
                    break
                batch.append(following)
            self._answer(batch)
            if ended:
                return

    def _answer(self, batch: list[tuple[pb.PostRequest, Future[pb.BriefPosting]]]) -> None:
        # What nobody waits for any more is not sent; what is sent cannot be canceled.
        batch = [one for one in batch if one[1].set_running_or_notify_cancel()]
        if not batch:
            return
        request = pb.BatchPostRequest(postings=[one for one, _ in batch], view="BRIEF")
        try:
            results = self._client.wallets.BatchPost(request).results
        except Exception as error:  # each caller gets it, and the sender goes on
            for _, answer in batch:
                answer.set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if result.WhichOneof("result") == "error":
                answer.set_exception(_refusal(result.error))
            else:
                answer.set_result(result.brief)


def _refusal(error: pb.PostingError) -> LedgerError:
    return refusal(
        error.message,
        reason=error.code,
        field=error.param if error.HasField("param") else None,
        metadata=dict(error.metadata),
    )
