"""`creditledger statement`: what a wallet's credit did, on the terminal and as a file."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from creditledger.domain import clock as time
from tests.support.commands import creditledger
from tests.support.setup import command, consume, give, migrated, opened

if TYPE_CHECKING:
    from pathlib import Path

MONTH = ("--month", "2026-01", "--time-zone", "Europe/Berlin")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A database in which wal_acme has spent 3 of 10 dollars in January 2026."""
    url = migrated(tmp_path / "credit.db")
    january = time.parse("2026-01-21T12:00:00Z", field="time")

    async def fill() -> None:
        async with opened(url, lambda: january) as (_, ledger):
            await ledger.post(command(give("10"), key="topup"))
            await ledger.post(command(consume("3"), key="call"))

    asyncio.run(fill())
    # Nothing has been written since, for longer than a ledger is ever idle.
    return {"CREDITLEDGER_DATABASE_URL": url, "CREDITLEDGER_CLOCK_IDLE_DAYS": "36500"}


def test_a_terminal_shows_tables(settings: dict[str, str]) -> None:
    """The balance and each grant, in words and figures."""
    done = creditledger("statement", "wal_acme", *MONTH, settings=settings)

    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert lines[0] == "January 2026 (Europe/Berlin)"
    for line in ("Opening balance 0.00", "Topup 1 10.00", "Usage 1 -3.00", "Closing balance 7.00"):
        assert line in lines
    assert any(line.endswith("paid never 0.00 10.00 3.00 7.00") for line in lines)


def test_a_period_is_closed_and_written_to_a_file(settings: dict[str, str], tmp_path: Path) -> None:
    """As JSON the file is what the statement's digest is of; closed again it is the same."""
    file = tmp_path / "statement.json"
    close = ("statement", "wal_acme", *MONTH, "--close")
    first = creditledger(*close, "--format", "json", "--out", file, settings=settings)
    shown = creditledger(*close, settings=settings)
    printed = creditledger(*close, "--format", "json", settings=settings)
    page = creditledger(*close, "--format", "html", settings=settings)

    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"{file}: {file.stat().st_size} bytes\n"
    assert printed.stdout == file.read_text()
    assert "closed_by" not in json.loads(printed.stdout)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"SHA-256 {digest}" in shown.stdout
    assert digest in page.stdout


def test_a_spreadsheet_has_its_digest_beside_it(settings: dict[str, str], tmp_path: Path) -> None:
    """As `export --check` reads it; the file is one that Excel opens as it is, if asked for."""
    month = ("statement", "wal_acme", *MONTH, "--format", "csv")
    for name, excel in (("plain.csv", ()), ("excel.csv", ("--excel", "comma"))):
        done = creditledger(*month, "--out", tmp_path / name, *excel, settings=settings)
        assert (done.returncode, done.stderr) == (0, "")
        checked = creditledger("export", tmp_path / name, "--check", settings=settings)
        assert checked.returncode == 0, checked.stderr

    assert "\nbalance,closing,,,,7.00," in (tmp_path / "plain.csv").read_text()
    text = (tmp_path / "excel.csv").read_text()
    assert text.startswith("\ufeffsection;item;")
    assert "\nbalance;closing;;;;7,00;" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--month", "2026-13"), "month must be a month"),
        ((), "start is required"),
        (("--month", "2999-01", "--close"), "only what has ended can be closed"),
        ((*MONTH, "--format", "pdf"), "format must be one of csv, html, json"),
        ((*MONTH, "--format", "html", "--excel", "comma"), "excel is for csv"),
        ((*MONTH, "--format", "csv", "--excel", "tab"), "excel must be one of point, comma"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    settings: dict[str, str], arguments: tuple[str, ...], sentence: str
) -> None:
    """On standard error, and nothing is written."""
    done = creditledger("statement", "wal_acme", *arguments, settings=settings)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("creditledger: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
