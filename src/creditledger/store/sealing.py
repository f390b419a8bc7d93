"""Webhook secrets at rest: sealed by a key that is not in the database.

A sealed secret is the text `sealed:KEY:DATA`: KEY names the sealing key, DATA is the nonce and the
AES-256-GCM ciphertext in base64. The endpoint's id is authenticated with it, so a sealed secret
that is copied to another endpoint does not open. Without keys secrets are kept as they are.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from creditledger.domain.webhook_events import Secret

#: Keys that one file may hold: the one that seals, and those before it.
KEYS_MAX = 16
_PREFIX = "sealed"
_KEY_BYTES, _NONCE_BYTES, _NAME_CHARACTERS = 32, 12, 16
#: How many characters of a sealed secret hold the name of its key.
SEALED_NAME_CHARACTERS = len(_PREFIX) + 1 + _NAME_CHARACTERS


class CannotUnseal(Exception):
    """None of the keys opens a secret. The text is one sentence that names the endpoint."""


class Seal:
    """The sealing keys. The first one seals; all of them open."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """`keys`: 32 bytes each; none: secrets are kept as they are."""
        self._ciphers = {_name(key): AESGCM(key) for key in keys}
        self._first = _name(keys[0]) if keys else None

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """The keys of a file, a line of base64 each. Raises ValueError saying what is wrong."""
        if path is None:
            return cls()
        try:
            lines = path.read_text("ascii").split()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError("must hold keys in base64, one a line") from None
        if not 0 < len(lines) <= KEYS_MAX:
            raise ValueError(f"must hold 1 to {KEYS_MAX} keys, one a line")
        keys = []
        for number, line in enumerate(lines, 1):
            try:
                key = base64.b64decode(line, validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != _KEY_BYTES:
                raise ValueError(f"must hold 32 bytes in base64 in line {number}")
            keys.append(key)
        return cls(keys)

    @property
    def seals(self) -> bool:
        """Whether there is a key."""
        return self._first is not None

    def seal(self, secret: Secret, endpoint_id: str) -> Secret:
        """What is stored of an endpoint's secret; the secret itself where there is no key."""
        if self._first is None:
            return secret
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, secret.encode(), endpoint_id.encode())
        data = base64.b64encode(nonce + sealed).decode()
        return Secret(f"{_PREFIX}:{self._first}:{data}")

    def unseal(self, stored: Secret, endpoint_id: str) -> Secret:
        """The secret of what is stored. Raises CannotUnseal."""
        if not stored.startswith(f"{_PREFIX}:"):
            return stored
        try:
            _, name, data = stored.split(":")
            given = base64.b64decode(data, validate=True)
            nonce, sealed = given[:_NONCE_BYTES], given[_NONCE_BYTES:]
            opened = self._ciphers[name].decrypt(nonce, sealed, endpoint_id.encode())
        except (KeyError, ValueError, InvalidTag):
            raise CannotUnseal(
                f"none of the keys opens the secret of webhook endpoint {endpoint_id}"
            ) from None
        return Secret(opened.decode())

    def is_current(self, stored: Secret) -> bool:
        """Whether the first key sealed it, or there is no key and it is not sealed."""
        return sealed_by(stored) == self._first

    def knows(self, name: str | None) -> bool:
        """Whether it has the key of this name; None: of what is not sealed, which needs none."""
        return name is None or name in self._ciphers


def sealed_by(stored: Secret) -> str | None:
    """The name of the key that sealed what begins so; None: it is not sealed."""
    prefix, _, rest = stored.partition(":")
    return rest.partition(":")[0] if prefix == _PREFIX else None


def _name(key: bytes) -> str:
    """What names a key and does not tell it."""
    return hashlib.sha256(b"creditledger sealing key" + key).hexdigest()[:_NAME_CHARACTERS]
