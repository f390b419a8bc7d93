"""What the load posts: to which wallets, under which keys, and the requests as bytes.

A request is made by filling wallet and key into an encoded one: to build messages would cost the
client more than to send them. Called by the workers.
"""

import json
import random
from dataclasses import dataclass
from itertools import accumulate, cycle

from credit.v1 import wallet_service_pb2 as pb
from google.protobuf.json_format import ParseDict

#: Wallets are taken from this many choices made before, over and over.
PICKS = 20_000
#: A receipt names a posting afterwards: the wallet's number here (4 bytes), its key (16 bytes).
RECEIPT_BYTES = 20

CONSUMPTION = {
    "amount": "0.0123",
    "usage": {
        "api_key_id": "apk_bench",
        "product_id": "chat-1",
        "product_name": "Chat 1",
        "category": "llm",
        "quantities": ["1000", "500"],
        "base_prices": ["25", "100"],
        "discount_prices": ["25", "100"],
        "price_precision": 1000,
    },
}


def wallet_id(number: int) -> str:
    """The id of a wallet of the benchmark; all have one length."""
    return f"wal_{number:07}"


@dataclass(frozen=True, slots=True)
class Wallets:
    """Those a scenario posts to: `count` of them from `first` on."""

    first: int = 0
    count: int = 1
    zipf: bool = False  #: The n-th gets 1/n of what the first gets; else all the same.

    def numbers(self, chance: random.Random) -> list[int]:
        """Choices of them, at random."""
        weights = None
        if self.zipf:
            weights = list(accumulate(1 / rank for rank in range(1, self.count + 1)))
        numbers = range(self.first, self.first + self.count)
        return chance.choices(numbers, cum_weights=weights, k=PICKS)


class Traffic:
    """An endless supply of postings, other ones for every seed."""

    def __init__(self, wallets: Wallets, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 # load, not a secret
        numbers = wallets.numbers(self._chance)
        self._picks = cycle([(wallet_id(n).encode(), n.to_bytes(4, "big")) for n in numbers])

    def _draw(self) -> tuple[bytes, bytes, bytes]:
        """The next wallet, its idempotency key (as random as a UUID), the receipt for both."""
        wallet, number = next(self._picks)
        key = self._chance.randbytes(16)
        return wallet, key.hex().encode(), number + key

    def single(self) -> tuple[bytes, bytes]:
        """A PostRequest and its receipt."""
        wallet, key, receipt = self._draw()
        return _SINGLE % (wallet, key), receipt

    def batch(self, size: int) -> tuple[bytes, bytes]:
        """A BatchPostRequest and its receipts, one behind the other.

        A batch of one is a StreamPostRequest too: in both the posting is field 1.
        """
        items, receipts = [], []
        for _ in range(size):
            wallet, key, receipt = self._draw()
            items.append(_ITEM % (wallet, key))
            receipts.append(receipt)
        return b"".join(items), b"".join(receipts)

    def rest(self) -> tuple[bytes, bytes, bytes]:
        """Wallet, body and receipt of `POST /v1/wallets/{wallet}/postings`."""
        wallet, key, receipt = self._draw()
        return wallet, _BODY % key, receipt

    def named(self) -> tuple[str, str]:
        """Wallet and key as text, for whoever makes the request himself."""
        wallet, key, _ = self._draw()
        return wallet.decode(), key.decode()


def _form(encoded: bytes, *places: bytes) -> bytes:
    """A format of the encoded request, with room for what is as long as these."""
    form = encoded.replace(b"%", b"%%")
    for place in places:
        assert form.count(place) == 1
        form = form.replace(place, b"%b")
    return form


_WALLET, _KEY = wallet_id(0), "k" * 32
_POSTING = {"idempotency_key": _KEY, "consumption": CONSUMPTION}
_REQUEST = ParseDict({"wallet_id": _WALLET, **_POSTING}, pb.PostRequest())
_PLACES = _WALLET.encode(), _KEY.encode()
_SINGLE = _form(_REQUEST.SerializeToString(), *_PLACES)
_ITEM = _form(pb.BatchPostRequest(postings=[_REQUEST]).SerializeToString(), *_PLACES)
_BODY = _form(json.dumps(_POSTING, separators=(",", ":")).encode(), _PLACES[1])
