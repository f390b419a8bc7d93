"""What a made-up ledger has in its registry: wallets with their customers, and a meter."""

from sqlalchemy import Connection, insert

from creditledger.store import schema

METER = "mtr_tokens"


def wallet_id(number: int) -> str:
    """The id of a wallet that was made up, from 0; its customer's has the same digits."""
    return f"wal_{number:07}"


def register(connection: Connection, first: int, wallets: int, *, at: int) -> None:
    """Wallets and their customers, without the rows that say where they stand."""
    numbers = range(first, first + wallets)
    customers = [
        {"id": f"cus_{n:07}", "name": f"Customer {n}", "email": f"customer-{n}@example.com"}
        for n in numbers
    ]
    connection.execute(insert(schema.customers).values(metadata="{}", created_at=at), customers)
    connection.execute(
        insert(schema.wallets).values(currency="USD", livemode=True, created_at=at),
        [{"id": wallet_id(n), "customer_id": f"cus_{n:07}"} for n in numbers],
    )


def register_meter(connection: Connection, *, at: int) -> None:
    """The meter that half of the usage is of."""
    connection.execute(
        insert(schema.meters).values(
            id=METER,
            name="Tokens",
            event_name="tokens",
            unit="token",
            currency=None,
            metadata="{}",
            created_at=at,
        )
    )
