"""What the answer of one call may hold: known, and refused, before anything is written."""

from dataclasses import dataclass

from creditledger.domain.errors import ResultTooLarge
from creditledger.domain.model import Posting

#: An answer must fit what a gRPC client accepts unasked (4 MiB), with room for its envelope.
ANSWER_BYTES_MAX = 4 * 1024 * 1024 - 64 * 1024
#: What a transaction takes in an answer beside its texts: ids, numbers and times, rounded up.
ROW_BYTES = 640


@dataclass(slots=True)
class Budget:
    """Bytes that the answer of one call may still take; its postings share it."""

    left: int = ANSWER_BYTES_MAX

    def spend(self, posting: Posting, rows: int) -> None:
        """Raises ResultTooLarge, before anything is written, if the posting's rows do not fit."""
        size = ROW_BYTES
        for text in (posting.description, posting.note, posting.meter_event_id):
            if text:
                size += len(text.encode())
        for pairs in (posting.metadata, posting.source):
            if pairs:
                for key, value in pairs.items():
                    size += len(key.encode()) + len(value.encode()) + 8
        needed = rows * size + ROW_BYTES
        if needed > self.left:
            raise ResultTooLarge(
                f"the answer would hold {rows} more transactions of this posting and pass"
                " 4 MiB; post it in a smaller batch, or with less metadata"
            )
        self.left -= needed
