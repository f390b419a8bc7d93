"""`creditledger migrate`."""

from creditledger.ops.cli.console import AsJson, print_json, say, with_settings
from creditledger.ops.config import Config


@with_settings("database_url")
def migrate(config: Config, as_json: AsJson = False) -> None:
    """Make the database if it is missing, and bring its schema to this version's.

    Refused while a server runs on it.
    """
    from creditledger.ops import database
    from creditledger.ops.process import run

    before, after, renumbered = run(database.migrate(config))
    if as_json:
        made = {"before": before, "after": after, "rows_renumbered": renumbered}
        print_json({"database": config.database, **made})
    elif before == after:
        say(f"{config.database} has schema {after} already")
    else:
        say(f"{config.database}: schema {before or 'none'} → {after}")
    if renumbered and not as_json:
        say(f"It came from another server of PostgreSQL: {renumbered:,} rows are numbered anew.")
