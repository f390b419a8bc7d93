"""`creditledger bench seed`: a made-up ledger in an empty database."""

from collections.abc import Callable

from creditledger.ops.config import Config
from creditledger.ops.seeding import NotEmpty, seed
from creditledger.ops.server import CannotStart, require_schema
from creditledger.store import CannotOpen


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
