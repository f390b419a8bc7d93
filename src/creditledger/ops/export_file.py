"""Credit transactions written to a file, resumable, with a .sha256 beside it.

FILE.sha256 holds the digest of FILE as `sha256sum` writes it. Until it is whole the file is
FILE.part, beside it FILE.part.json: how much of it is on disk, of which export, and where the walk
stands.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.domain import clock
from creditledger.domain.errors import Refusal
from creditledger.ops.config import Config
from creditledger.ops.database import look, require_schema
from creditledger.outlets.exports import checksums
from creditledger.outlets.exports import stream as export_stream
from creditledger.outlets.exports.files import FORMATS, Export, Format, check_digest_line
from creditledger.outlets.exports.stream import Walk
from creditledger.store.read import lists
from creditledger.store.read.export_walk import ExportPlace
from creditledger.store.read.transaction_reads import Filters

#: Rows of one transaction.
STEP_ROWS = 5_000
#: Rows that an interruption may cost at most.
CHECKPOINT_ROWS = 50_000


class WrongOption(Exception):
    """An option of the export is wrong. Its text is one sentence that names it."""


class CannotExport(Exception):
    """There will be no file, or none that is whole. The text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to write where."""

    file: Path
    format: Format
    columns: str
    time_zone: str
    excel: str | None  #: The decimal mark of the Excel that the CSV is for: "point" or "comma".
    digest_line: bool
    filters: Filters

    @classmethod
    def of(
        cls,
        *,
        file: Path,
        format: str,  # noqa: A002 # as the option is called
        columns: str,
        time_zone: str,
        excel: str | None,
        digest_line: bool,
        start: str | None,
        end: str | None,
        livemode: bool,
        **narrowed: str | None,
    ) -> "ExportRequest":
        """From the command's options. Raises WrongOption."""
        try:
            format_ = fields.word(format, FORMATS, field="format")
            export_stream.dialect(excel, format_)
            return cls(
                file=file,
                format=format_,
                columns=",".join(export_stream.columns(columns)),
                time_zone=clock.zone(time_zone, field="time_zone").key,
                excel=excel,
                digest_line=digest_line,
                filters=Filters(
                    livemode=livemode,
                    start=None if start is None else clock.parse(start, field="start"),
                    end=None if end is None else clock.parse(end, field="end"),
                    **narrowed,  # type: ignore[arg-type] # texts, or nothing
                ),
            )
        except Refusal as refusal:
            raise WrongOption(f"--{refusal.message.replace('_', '-')}.") from None

    @property
    def part(self) -> Path:
        """The file until it is whole."""
        return self.file.with_name(f"{self.file.name}.part")

    @property
    def state(self) -> Path:
        """How much of the part is on disk."""
        return self.file.with_name(f"{self.file.name}.part.json")

    def name(self, config: Config) -> str:
        """What tells this export from others: a part is gone on with only by its own.

        Parts on disk hold it, so it stays as older versions wrote it, whose class was Asked.
        """
        request = repr(replace(self, file=Path())).replace(type(self).__name__, "Asked", 1)
        return f"({config.database!r}, {request})"


@dataclass(frozen=True, slots=True)
class Whole:
    """A file that is whole."""

    file: Path
    digest: str
    rows: int | None = None  #: None where it was only checked.

    def as_json(self) -> dict[str, object]:
        """For programs."""
        rows = {} if self.rows is None else {"rows": self.rows}
        return {"file": str(self.file), **rows, "sha256": self.digest}

    def as_text(self) -> str:
        """For people."""
        rows = "" if self.rows is None else f"{self.rows} rows, "
        return f"{self.file}: {rows}whole, sha256 {self.digest}"


def check(file: Path) -> Whole:
    """A file that is whole by its FILE.sha256 or, where there is none, by its digest line.

    Raises CannotExport with the reason where it is not.
    """
    try:
        with file.open("rb") as opened:
            with suppress(FileNotFoundError):
                text = checksums.beside(file).read_text(errors="replace")
                return Whole(file, checksums.check(opened, text))
            return Whole(file, check_digest_line(opened))
    except checksums.NotWhole as error:
        raise CannotExport(f"{file}: {error}.") from None
    except OSError as error:
        raise CannotExport(f"{file} cannot be read: {error.strerror}.") from None


async def export(
    config: Config, asked: ExportRequest, *, on_progress: Callable[[int, int], None]
) -> Whole:
    """Write it, or go on with it. Raises CannotExport, CannotStart."""
    await require_schema(config)
    if asked.file.exists():
        raise CannotExport(f"{asked.file} is there already; take it away, or name another file.")
    columns = export_stream.columns(asked.columns)
    dialect = export_stream.dialect(asked.excel, asked.format)
    export = Export(asked.format, columns, ZoneInfo(asked.time_zone), dialect)
    walk = Walk(asked.filters, size=STEP_ROWS)
    try:
        with asked.part.open("ab+") as out:
            if not _resumed(config, asked, export, walk, out):
                out.truncate(0)
                out.write(export.head())
            await _write(config, asked, export, walk, out, on_progress)
            if checksums.sha256(out) != export.sha256:
                raise CannotExport(
                    f"{asked.part} is not on disk as it was written; take it away and try again."
                )
        # Before the file: no file is without its digest.
        checksums.write(asked.file, export.sha256)
        asked.part.rename(asked.file)
        asked.state.unlink(missing_ok=True)
    except OSError as error:
        raise CannotExport(f"{asked.part} cannot be written: {error.strerror}.") from None
    return Whole(asked.file, export.sha256, export.rows)


async def _write(
    config: Config,
    asked: ExportRequest,
    export: Export,
    walk: Walk,
    out: BinaryIO,
    on_progress: Callable[[int, int], None],
) -> None:
    def count(connection: Connection) -> int:
        return lists.page(connection, asked.filters, size=1, offset=0).count

    total = await look(config, count)
    safe = export.rows
    while (step := await look(config, walk.step)).lines:
        out.write(export.body(*step))
        on_progress(export.rows, total)
        if export.rows - safe >= CHECKPOINT_ROWS:
            _save(config, asked, export, walk, out)
            safe = export.rows
    if asked.digest_line:
        out.write(export.digest_line())
    out.flush()
    os.fsync(out.fileno())


def _save(config: Config, asked: ExportRequest, export: Export, walk: Walk, out: BinaryIO) -> None:
    """What is written is on disk before it is said to be."""
    out.flush()
    os.fsync(out.fileno())
    state = {
        "export": asked.name(config),
        "bytes": out.tell(),
        "rows": export.rows,
        "sums": [[*unit, amount] for unit, amount in export.sums.items()],
        "pin": walk.pin,
        "behind": walk.after,
    }
    fresh = asked.state.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(asked.state)


def _resumed(
    config: Config, asked: ExportRequest, export: Export, walk: Walk, out: BinaryIO
) -> bool:
    """Whether there was something to go on with; everything stands behind it then."""
    state: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        state = json.loads(asked.state.read_text())
    if "behind" not in state:  # nothing, or a place in the order of an older version
        return False
    if state["export"] != asked.name(config):
        raise CannotExport(
            f"{asked.part} is part of another export; take it and {asked.state.name} away,"
            " or name another file."
        )
    if out.seek(0, os.SEEK_END) < state["bytes"]:
        return False
    out.truncate(state["bytes"])
    out.seek(0)
    sums = {(currency, scale): amount for currency, scale, amount in state["sums"]}
    export.resume(state["rows"], sums, out)
    walk.pin, walk.after = state["pin"], ExportPlace(*state["behind"])
    return True
