"""The baselines on SQLite: one connection, for it has one writer, set up as the server's own."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from bench.posting import AMOUNT, BATCH, STANDING, STATEMENTS, Figures
from bench.timing import Times
from bench.traffic import Traffic
from creditledger.domain import clock
from creditledger.store.sqlite import writer as sqlite_writer


@contextmanager
def _connected(url: str) -> Iterator[sqlite3.Connection]:
    path = make_url(url).database
    assert path is not None
    engine = sqlite_writer.writer_engine(Path(path))
    try:
        driver = engine.raw_connection().driver_connection
        assert isinstance(driver, sqlite3.Connection)
        yield driver
    finally:
        engine.dispose()


def ordinary(url: str, traffic: Traffic, seconds: float) -> Times:
    """A transaction for each posting, one after the other."""
    with _connected(url) as driver:
        dimensions = {wallet: dimension for _, wallet, *_, dimension in driver.execute(STANDING)}
        times = Times(seconds)
        while times.go_on():
            wallet, key = traffic.named()
            driver.execute("BEGIN IMMEDIATE")
            now = clock.now()
            figures = Figures(*driver.execute(STATEMENTS["find_wallet"], (wallet,)).fetchone())
            place = figures.wallet
            assert not driver.execute(STATEMENTS["find_posting"], (place, key)).fetchall()
            (grant, remaining), *_ = driver.execute(STATEMENTS["find_grants"], (place,)).fetchall()
            assert remaining > AMOUNT
            figures.move()
            driver.execute(STATEMENTS["insert_posting"], figures.posting(key))
            dimension = dimensions[place]
            driver.execute(STATEMENTS["insert_row"], figures.row(grant, dimension, now))
            driver.execute(STATEMENTS["update_grant"], (AMOUNT, place, grant))
            driver.execute(STATEMENTS["update_wallet"], figures.state(now))
            driver.execute("COMMIT")
            times.done(1)
        return times


def limit(url: str, traffic: Traffic, seconds: float) -> Times:
    """Five hundred postings to a transaction, a statement for each table."""
    with _connected(url) as driver:
        known = {
            name: (Figures(*figures), grant, dimension)
            for name, *figures, grant, dimension in driver.execute(STANDING)
        }
        times = Times(seconds)
        while times.go_on():
            now = clock.now()
            postings, rows = [], []
            touched: dict[str, int] = {}
            for _ in range(BATCH):
                wallet, key = traffic.named()
                figures, grant, dimension = known[wallet]
                figures.move()
                postings.append(figures.posting(key))
                rows.append(figures.row(grant, dimension, now))
                touched[wallet] = touched.get(wallet, 0) + 1
            moved = [(*known[wallet], times_) for wallet, times_ in touched.items()]
            driver.execute("BEGIN IMMEDIATE")
            many = driver.executemany
            many(STATEMENTS["insert_posting"], postings)
            many(STATEMENTS["insert_row"], rows)
            many(STATEMENTS["update_grant"], [(AMOUNT * n, f.wallet, g) for f, g, _, n in moved])
            many(STATEMENTS["update_wallet"], [f.state(now) for f, *_ in moved])
            driver.execute("COMMIT")
            times.done(BATCH)
        return times
