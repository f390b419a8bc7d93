"""`creditledger bench seed`: a made-up ledger in an empty database."""

from collections.abc import Callable
from typing import Annotated

import typer

from creditledger.ops.cli.console import AsJson, print_json, progress_bar, say, with_settings
from creditledger.ops.config import CannotStart, Config

commands = typer.Typer(no_args_is_help=True, help="What measurements need.")


@commands.command("seed")
@with_settings("database_url")
def bench_seed(
    config: Config,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Credit transactions in all.")],
    wallets: Annotated[int, typer.Option("--wallets", min=1, help="Wallets they belong to.")],
    days: Annotated[int, typer.Option("--days", min=1, help="How long it took, until now.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Fill an empty database with a made-up ledger, to see what size does.

    Every wallet has the same number of rows: grants of several kinds, consumption, refunds,
    adjustments, expirations. `verify` finds nothing in it. A hundred thousand rows take seconds.
    """
    from creditledger.ops.process import run

    if wallets > rows:
        raise typer.BadParameter("there must be at least as many rows as wallets")
    with progress_bar() as progress:
        task = progress.add_task("seeding", total=rows)

        def on_progress(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        written = run(fill(config, rows=rows, wallets=wallets, days=days, on_progress=on_progress))
    if as_json:
        print_json({"database": config.database, "rows": written, "wallets": wallets})
    else:
        say(f"{config.database}: {written} rows of {wallets} wallets")


async def fill(
    config: Config,
    *,
    rows: int,
    wallets: int,
    days: int,
    on_progress: Callable[[int, int], None],
) -> int:
    """So many rows for every wallet that they are `rows` or a few less; how many they are.

    Raises CannotStart, and DatabaseLocked where a server runs on a file.
    """
    from creditledger.ops.database import require_schema
    from creditledger.ops.seeding import NotEmpty, seed
    from creditledger.store import CannotOpen

    await require_schema(config)
    try:
        return await seed(
            config.database_url, rows=rows, wallets=wallets, days=days, on_progress=on_progress
        )
    except NotEmpty:
        raise CannotStart(
            f"{config.database} is not empty; `bench seed` fills only a database without customers."
        ) from None
    except (ValueError, CannotOpen) as error:
        raise CannotStart(f"{config.database} cannot be filled: {error}") from None
