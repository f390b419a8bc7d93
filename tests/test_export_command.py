"""`creditledger export`: a file that is whole or not there, whatever interrupts it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from creditledger.commands import export as exporting
from creditledger.commands.export import Asked, CannotExport, check
from creditledger.config import load
from creditledger.seeding import seed
from tests.commands import creditledger

if TYPE_CHECKING:
    from pathlib import Path

    from creditledger.config import Config

ROWS = 600


@pytest.fixture
async def config(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A ledger of some hundred rows, which are many steps."""
    await seed(database_url, rows=ROWS, wallets=3, days=30, on_progress=lambda *_: None)
    monkeypatch.setattr(exporting, "STEP_ROWS", 50)
    monkeypatch.setattr(exporting, "CHECKPOINT_ROWS", 100)
    return load({"database_url": database_url})


def asked(file: Path, **given: str) -> Asked:
    """An export of everything, but for what is given."""
    options = {"format": "csv", "columns": "", "time_zone": "UTC", "start": None, "end": None}
    return Asked.of(file=file, livemode=True, **{**options, **given})  # type: ignore[arg-type]  # texts


class Interrupted(Exception):
    """Somebody pulled the plug."""


async def export_until(config: Config, what: Asked, stop: int | None) -> None:
    """Export, and be interrupted after so many rows."""

    def on_progress(rows: int, of: int) -> None:
        assert rows <= of == ROWS
        if stop is not None and rows >= stop:
            raise Interrupted

    await exporting.export(config, what, on_progress=on_progress)


@pytest.mark.parametrize("file_format", ["csv", "ndjson"])
async def test_an_interrupted_export_goes_on(
    config: Config, tmp_path: Path, file_format: str
) -> None:
    """Interrupted twice, and with bytes on disk that were not known to be, it is byte for byte
    the file that was not interrupted; until then there is no file of that name.
    """
    whole, parts = (
        asked(tmp_path / "a", format=file_format),
        asked(tmp_path / "b", format=file_format),
    )
    await export_until(config, whole, None)
    for stop in (250, 550):
        with pytest.raises(Interrupted):
            await export_until(config, parts, stop)
        assert not parts.file.exists()
        kept = json.loads(parts.state.read_text())
        assert 0 < kept["rows"] < stop + 50
        with parts.part.open("ab") as file:
            file.write(b"torn off")
    await export_until(config, parts, None)

    assert parts.file.read_bytes() == whole.file.read_bytes()
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


@pytest.mark.parametrize("file_format", ["csv", "ndjson"])
async def test_a_file_that_is_not_whole_is_found(
    config: Config, tmp_path: Path, file_format: str
) -> None:
    """Cut off anywhere, or with a digit changed."""
    what = asked(tmp_path / "a", format=file_format)
    await export_until(config, what, None)
    content = what.file.read_bytes()
    digest = check(what.file).digest
    assert digest.encode() in content
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        content.replace(b"1", b"2", 1),
    ):
        what.file.write_bytes(damaged)
        with pytest.raises(CannotExport):
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
    assert (again.returncode, wrong.returncode) == (1, 2)
    assert again.stderr.startswith("creditledger: a.csv is there already")
    assert "columns" in wrong.stderr
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == ROWS + 2
    assert lines[-1].startswith(f"# rows={ROWS} sums: ")
