"""The command: `python -m bench.seed --rows 1000000 --wallets 1000 --database-url URL`.

It fills an empty database that `creditledger migrate` has made. Every wallet has the same number of
rows. A hundred thousand rows take seconds; `creditledger verify` finds nothing wrong in them.
"""

import argparse
import sys

from bench.seed.fill import NotEmpty, fill
from creditledger.ops.config import CannotStart, Config, load
from creditledger.ops.database import require_schema
from creditledger.ops.process import run
from creditledger.store import CannotOpen, DatabaseLocked


async def filled(config: Config, rows: int, wallets: int, days: int) -> int:
    """How many rows were written. Raises CannotStart."""
    await require_schema(config)
    try:
        return await fill(
            config.database_url,
            rows=rows,
            wallets=wallets,
            days=days,
            on_progress=lambda done, of: print(f"{done:,} of {of:,} rows", file=sys.stderr),
        )
    except NotEmpty:
        raise CannotStart(f"{config.database} is not empty: it has customers.") from None
    except (ValueError, CannotOpen, DatabaseLocked) as error:
        raise CannotStart(f"{config.database} cannot be filled: {error}") from None


def main() -> None:
    """Fill the database; exit code 1 with one sentence where it cannot be filled."""
    parser = argparse.ArgumentParser(prog="python -m bench.seed")
    parser.add_argument("--rows", type=int, required=True, help="credit transactions in all")
    parser.add_argument("--wallets", type=int, required=True, help="wallets they belong to")
    parser.add_argument("--days", type=int, default=365, help="how long it took, until now")
    parser.add_argument("--database-url", help="as the setting of creditledger")
    given = parser.parse_args()
    if not 1 <= given.wallets <= given.rows or given.days < 1:
        parser.error("rows, wallets and days are at least 1, and rows at least as many as wallets")
    config = load({"database_url": given.database_url})
    try:
        written = run(filled(config, given.rows, given.wallets, given.days))
    except CannotStart as error:
        sys.exit(str(error))
    print(f"{config.database}: {written} rows of {given.wallets} wallets")


if __name__ == "__main__":
    main()
