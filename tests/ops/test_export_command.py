"""`creditledger export`: a file that is whole or not there, whatever interrupts it."""

from __future__ import annotations

import csv
import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from bench.seed.fill import fill

from creditledger.ops import export_file
from creditledger.ops.config import load
from creditledger.ops.export_file import CannotExport, ExportRequest, check
from tests.support.commands import creditledger
from tests.support.setup import findings, finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from creditledger.ops.config import Config

ROWS = 600


@pytest.fixture(scope="module")
def filled(new_database: Callable[[], str]) -> Iterator[str]:
    """A ledger of some hundred rows, to which nobody adds."""
    url = new_database()
    finished(fill(url, rows=ROWS, wallets=3, days=30, on_progress=lambda *_: None))
    yield url
    assert findings(url) == []


@pytest.fixture
def config(filled: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The ledger, whose rows are many steps."""
    monkeypatch.setattr(export_file, "STEP_ROWS", 50)
    monkeypatch.setattr(export_file, "CHECKPOINT_ROWS", 100)
    return load({"database_url": filled})


def asked(
    file: Path, *, digest_line: bool = False, excel: str | None = None, **given: str
) -> ExportRequest:
    """An export of everything, but for what is given."""
    options = {"format": "csv", "columns": "", "time_zone": "UTC", "start": None, "end": None}
    return ExportRequest.of(
        file=file,
        livemode=True,
        digest_line=digest_line,
        excel=excel,
        **{**options, **given},  # type: ignore[arg-type]  # texts
    )


class Interrupted(Exception):
    """Somebody pulled the plug."""


async def export_until(config: Config, what: ExportRequest, stop: int | None) -> None:
    """Export, and be interrupted after so many rows."""

    def on_progress(rows: int, of: int) -> None:
        assert rows <= of == ROWS
        if stop is not None and rows >= stop:
            raise Interrupted

    await export_file.export(config, what, on_progress=on_progress)


@pytest.mark.parametrize(
    ("file_format", "excel", "digest_line"),
    [("csv", None, False), ("ndjson", None, False), ("csv", "comma", True)],
)
async def test_an_interrupted_export_goes_on(
    config: Config, tmp_path: Path, file_format: str, excel: str | None, digest_line: bool
) -> None:
    """Interrupted twice, and with bytes on disk that were not known to be, it is byte for byte
    the file that was not interrupted; until then there is no file of that name.
    """
    whole, parts = (
        asked(tmp_path / name, format=file_format, excel=excel, digest_line=digest_line)
        for name in ("a", "b")
    )
    await export_until(config, whole, None)
    for stop in (250, 550):
        with pytest.raises(Interrupted):
            await export_until(config, parts, stop)
        assert not parts.file.exists()
        assert not (tmp_path / "b.sha256").exists()
        kept = json.loads(parts.state.read_text())
        assert 0 < kept["rows"] < stop + 50
        with parts.part.open("ab") as file:
            file.write(b"torn off")
    await export_until(config, parts, None)

    assert parts.file.read_bytes() == whole.file.read_bytes()
    assert check(parts.file).digest == check(whole.file).digest
    assert not parts.part.exists()
    assert not parts.state.exists()


async def test_a_part_is_gone_on_with_by_its_own_export(config: Config, tmp_path: Path) -> None:
    """Another request does not append to it; a part that has lost bytes is begun anew."""
    first = asked(tmp_path / "a")
    with pytest.raises(Interrupted):
        await export_until(config, first, 300)
    with pytest.raises(CannotExport, match="another export"):
        await export_until(config, asked(tmp_path / "a", columns="id"), None)
    first.part.write_bytes(b"")
    await export_until(config, first, None)
    assert check(first.file).digest
    with pytest.raises(CannotExport, match="there already"):
        await export_until(config, first, None)


@pytest.mark.parametrize("digest_line", [False, True])
@pytest.mark.parametrize("file_format", ["csv", "ndjson"])
async def test_a_file_that_is_not_whole_is_found(
    config: Config, tmp_path: Path, file_format: str, digest_line: bool
) -> None:
    """Cut off anywhere, or with a digit changed: by the file beside it, or the digest line."""
    what = asked(tmp_path / "a", format=file_format, digest_line=digest_line)
    await export_until(config, what, None)
    content = what.file.read_bytes()
    beside = tmp_path / "a.sha256"
    whole = hashlib.sha256(content).hexdigest()
    assert beside.read_text() == f"{whole}  a\n"
    assert check(what.file).digest == whole
    if digest_line:
        beside.unlink()
        assert check(what.file).digest.encode() in content
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        content.replace(b"1", b"2", 1),
    ):
        what.file.write_bytes(damaged)
        with pytest.raises(CannotExport):
            check(what.file)


async def test_any_sha256_file_of_its_form_is_taken(config: Config, tmp_path: Path) -> None:
    """As other tools write it; names that `sha256sum` escapes; anything else is no digest."""
    what = asked(tmp_path / "back\\slash\nline")
    await export_until(config, what, None)
    digest = hashlib.sha256(what.file.read_bytes()).hexdigest()
    beside = tmp_path / "back\\slash\nline.sha256"
    assert beside.read_text() == f"\\{digest}  back\\\\slash\\nline\n"
    for text in (beside.read_text(), digest, f"{digest.upper()} *x\r\n"):
        beside.write_text(text)
        assert check(what.file).digest == digest
    for text in ("", f"{digest[1:]}  x\n", f"{digest}x"):
        beside.write_text(text)
        with pytest.raises(CannotExport, match="no digest"):
            check(what.file)
    beside.unlink()
    with pytest.raises(CannotExport, match="neither"):
        check(what.file)


async def test_the_command(config: Config, tmp_path: Path) -> None:
    """`clock show` and `clock accept` work while commands are refused and after a restart."""
    url = config.database_url
    done = creditledger("export", "a.csv", "--json", "--database-url", url, folder=tmp_path)
    checked = creditledger("export", "a.csv", "--check", folder=tmp_path)
    again = creditledger("export", "a.csv", "--database-url", url, folder=tmp_path)
    wrong = creditledger(
        "export", "b.csv", "--columns", "x", "--database-url", url, folder=tmp_path
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == ROWS
    assert (checked.returncode, checked.stdout) == (0, f"a.csv: whole, sha256 {told['sha256']}\n")
    assert (tmp_path / "a.csv.sha256").read_text() == f"{told['sha256']}  a.csv\n"
    assert (again.returncode, wrong.returncode) == (1, 2)
    assert again.stderr.startswith("creditledger: a.csv is there already")
    assert "columns" in wrong.stderr
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == ROWS + 1

    sheet = ("export", "d.csv", "--excel", "comma", "--database-url", url)
    assert creditledger(*sheet, folder=tmp_path).returncode == 0
    with (tmp_path / "d.csv").open(encoding="utf-8-sig", newline="") as file:
        amounts = [row["amount"] for row in csv.DictReader(file, delimiter=";")]
    assert len(amounts) == ROWS
    assert all("," in amount for amount in amounts)
    for words in (("comma", "--format", "ndjson"), ("tab",)):
        refused = creditledger("export", "e", "--excel", *words, folder=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("creditledger: --excel ")

    line = ("export", "c.csv", "--digest-line", "--database-url", url)
    assert creditledger(*line, folder=tmp_path).returncode == 0
    *same, last = (tmp_path / "c.csv").read_text().splitlines()
    assert same == lines
    assert last.startswith(f"# rows={ROWS} sums: ")
