"""The digest of a file, and the FILE.sha256 beside it, in the form of `sha256sum`."""

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

_PIECE_BYTES = 1024 * 1024
#: The digest, two blanks (or a blank and a star), the file's name. A backslash before the digest
#: says that the name has escapes.
_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?: [ *].*)?\s*")


class NotWhole(Exception):
    """A file was cut off or changed, or nothing says that it was not. The text is for people."""


def beside(file: Path) -> Path:
    """FILE.sha256."""
    return file.with_name(f"{file.name}.sha256")


def write(file: Path, digest: str) -> None:
    """Write FILE.sha256; it is on disk then."""
    name = file.name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "" if name == file.name else "\\"
    with beside(file).open("wb") as out:
        out.write(os.fsencode(f"{mark}{digest}  {name}\n"))
        out.flush()
        os.fsync(out.fileno())


def sha256(file: BinaryIO) -> str:
    """The digest of all bytes of a file, in hexadecimal."""
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def check(file: BinaryIO, text: str) -> str:
    """The digest of a file, if it is the one in the text of its FILE.sha256. Raises NotWhole."""
    line = _LINE.fullmatch(text)
    if line is None:
        raise NotWhole("the .sha256 beside it holds no digest")
    found = sha256(file)
    if found != line[1].lower():
        raise NotWhole("it has another digest than its .sha256: it was cut off or changed")
    return found
