"""One wallet's life as many wallets', by SQL.

A life is a few stretches of rows as they lie in their tables, one of which is lived again and
again. What its second time has more than its first (sequences, balances, times) it has more every
time, so an INSERT ... SELECT for each table writes any number of times for any number of wallets.
Wallets differ by their number and by a shift in time. Rows are written in order of time, which is
how a ledger grows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Boolean, Connection, Table, Text, text

from creditledger.domain import ids
from creditledger.domain.clock import QUARTER
from creditledger.store import schema

#: Rows written in one transaction: enough for few of them, little enough to see them go on.
CHUNK_ROWS = 500_000

Rows = Sequence[Mapping[str, Any]]
Pair = tuple[Rows, Rows]  # at time 0, at time 1


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a life: its rows at the times `start` to `start + times - 1`.

    Postings of one moment (expirations, and the one that came upon them) are a group; beside the
    columns of its table a posting has

    - `at`: when it was; `ends_at`: the end of the grant it gave, where its terms name one;
    - `group_number`: its group's first posting;
    - `group_sequence`, `group_rows`: its group's first row, and how many it has.
    """

    postings: Pair
    transactions: Pair
    grants: Pair
    folds: Pair
    start: int = 0
    times: int = 1


@dataclass(frozen=True, slots=True)
class Life:
    """All of a wallet."""

    sections: Sequence[Section]
    dimensions: Rows
    state: Pair  #: Where it stands in the end, a row of wallet_states.
    time: int  #: At which of its state's times the end is.
    rows: int
    moved: int  #: Added to every time; whole quarters of an hour, in milliseconds.
    slot: int  #: No two postings are closer in time, so wallets are spread over it. Milliseconds.


def writing(life: Life, wallets: int) -> Iterator[tuple[int, Callable[[Connection], None]]]:
    """The transactions that write the life for so many wallets, each with its number of rows.

    They follow one another on a database in which the wallets are registered and nothing posted.
    """
    yield 0, lambda connection: _Writing(connection, life, wallets).begin()
    for section in life.sections:
        rows = len(section.transactions[0]) * wallets
        most = max(1, CHUNK_ROWS // max(1, rows))
        for start in range(0, section.times, most):
            times = min(most, section.times - start)

            def change(
                connection: Connection,
                section: Section = section,
                start: int = section.start + start,
                times: int = times,
            ) -> None:
                _Writing(connection, life, wallets).write(section, start, times)

            yield rows * times, change


class _Writing:
    """One transaction of it. Templates are temporary tables, gone when it has ended."""

    def __init__(self, connection: Connection, life: Life, wallets: int) -> None:
        self._connection = connection
        self._life = life
        self._dialect = connection.dialect.name
        self._values = {"wallets": wallets, "quarters": life.moved // QUARTER}
        self._run(
            "CREATE TEMP TABLE seed_wallets AS SELECT number, number - first AS nth,"
            f" {life.moved} + (number - first) * {life.slot} / {wallets} AS shift FROM wallets,"
            " (SELECT min(number) AS first FROM wallets) AS f ORDER BY number"
        )
        if self._dialect == "sqlite":
            # Each time writes to the newest page of every wallet in every index.
            self._run("PRAGMA cache_size = -524288")
        else:
            self._run("SET LOCAL work_mem = '256MB'")

    def begin(self) -> None:
        """Where every wallet will stand, and under which dimensions."""
        life = self._life
        dimensions = _Template(schema.dimensions, "d", (life.dimensions, life.dimensions))
        state = _Template(schema.wallet_states, "s", life.state)
        self._make(dimensions, state)
        states = state.columns()
        for name in ("updated_at", "posted_at"):
            states[name] += " + w.shift"
        self._insert(state, states, life.time, 1)
        self._insert(dimensions, dimensions.columns(), 0, 1)
        # The folds come with their rows; sums by day, with the next fold.
        self._run(
            "INSERT INTO fold_ends (wallet_number, sequence, has_days)"
            " SELECT wallet_number, sequence, false FROM wallet_states WHERE sequence > 0"
        )

    def write(self, section: Section, start: int, times: int) -> None:
        """Some times of a section."""
        postings = _Template(schema.postings, "p", section.postings, *_MORE)
        rows = _Template(schema.transactions, "t", section.transactions)
        grants = _Template(schema.grants, "g", section.grants)
        folds = _Template(schema.folds, "u", section.folds)
        self._make(postings, rows, grants, folds)
        self._run("CREATE INDEX seed_posting ON seed_credit_transactions (posting_number)")
        order = "p.group_number, w.nth, p.number"
        self._insert(postings, self._of_postings(postings), start, times, order)
        of_grants = grants.columns()
        for name in ("effective_at", "expires_at", "created_at"):
            of_grants[name] += " + w.shift"
        self._insert(grants, of_grants, start, times, "g.number, w.nth")
        self._insert(
            rows,
            self._of_rows(postings, rows),
            start,
            times,
            f"{order}, t.sequence",
            "seed_postings AS p CROSS JOIN seed_wallets AS w"
            " CROSS JOIN seed_credit_transactions AS t WHERE t.posting_number = p.number",
        )
        of_folds = folds.columns()
        of_folds["quarter"] += " + :quarters"
        self._insert(folds, of_folds, start, times, "u.quarter, w.nth")

    def _of_postings(self, postings: "_Template") -> dict[str, str]:
        found = postings.columns()
        found["idempotency_key"] = self._key(postings)
        found["terms"] = _terms(postings)
        return found

    def _of_rows(self, postings: "_Template", rows: "_Template") -> dict[str, str]:
        found = rows.columns()
        for name in ("created_at", "effective_at"):
            found[name] += " + w.shift"
        if self._dialect == "sqlite":
            # Those of one moment follow one another, wallet by wallet.
            before = f"({postings.column('group_sequence')} - 1) * :wallets + w.nth * p.group_rows"
            found["position"] = f"{before} + t.sequence - p.group_sequence + 1"
        return found

    def _key(self, postings: "_Template") -> str:
        """Keys of clients that want theirs in order of time, such as UUIDs of version 7.

        They are 48 bits of time and 80 at random, as hex.
        """
        at = f"{postings.column('at')} + w.shift"
        if self._dialect == "sqlite":
            key = f"printf('%012x', {at}) || lower(hex(randomblob(10)))"
        else:
            chance = "md5(CAST(random() AS text) || CAST(w.number AS text))"
            key = f"lpad(to_hex({at}), 12, '0') || substr({chance}, 1, 20)"
        return f"CASE WHEN p.idempotency_key IS NOT NULL THEN {key} END"

    def _make(self, *templates: "_Template") -> None:
        for template in templates:
            self._run(template.create)
            if template.rows:
                self._connection.execute(text(template.insert), template.rows)

    def _insert(
        self,
        template: "_Template",
        columns: dict[str, str],
        start: int,
        times: int,
        order: str = "",
        source: str = "",
    ) -> None:
        """The template's table, at these times, for every wallet."""
        source = source or f"{template.name} AS {template.alias} CROSS JOIN seed_wallets AS w"
        columns = {**columns, "wallet_number": "w.number"}
        # SQLite joins in the order it is told to; PostgreSQL in which it likes.
        by = f" ORDER BY r.n, {order}" if order and self._dialect != "sqlite" else ""
        self._run(
            f"INSERT INTO {template.table.name} ({', '.join(columns)})"
            " WITH RECURSIVE r (n) AS (SELECT CAST(:start AS bigint)"
            " UNION ALL SELECT n + 1 FROM r WHERE n < :last)"
            f" SELECT {', '.join(columns.values())} FROM r CROSS JOIN {source}{by}",
            start=start,
            last=start + times - 1,
        )

    def _run(self, statement: str, **values: int) -> None:
        every = {**self._values, **values}
        used = {name: value for name, value in every.items() if f":{name}" in statement}
        self._connection.execute(text(statement), used)


class _Template:
    """Rows of a table as a temporary table, and how they look at the time `r.n`."""

    def __init__(self, table: Table, alias: str, pair: Pair, *more: str) -> None:
        """`more`: columns of the rows that the table has not."""
        self.table = table
        self.alias = alias
        self.name = f"seed_{table.name}"
        own = [c.name for c in table.columns if c.name not in {"wallet_number", "position"}]
        texts = {c.name for c in table.columns if isinstance(c.type, Text)}
        self._own = own
        self._flags = {c.name for c in table.columns if isinstance(c.type, Boolean)}
        self.rows: list[dict[str, Any]] = []
        growing = set()
        for one, again in zip(*pair, strict=True):
            row = {name: one[name] for name in (*own, *more)}
            growing |= {n for n, v in row.items() if n not in texts and again[n] != v}
            self.rows.append({n: int(v) if isinstance(v, bool) else v for n, v in row.items()})
        self._growing = sorted(growing)
        for row, (one, again) in zip(self.rows, zip(*pair, strict=True), strict=True):
            for name in self._growing:
                row[f"{name}_step"] = None if one[name] is None else again[name] - one[name]
        names = [*own, *more, *(f"{name}_step" for name in self._growing)]
        kinds = [f"{name} {'text' if name in texts else 'bigint'}" for name in names]
        self.create = f"CREATE TEMP TABLE {self.name} ({', '.join(kinds)})"
        values = ", ".join(f":{name}" for name in names)
        self.insert = f"INSERT INTO {self.name} ({', '.join(names)}) VALUES ({values})"

    def column(self, name: str) -> str:
        """Its value at the time `r.n`."""
        value = f"{self.alias}.{name}"
        if name in self._growing:
            value += f" + r.n * {value}_step"
        return f"{value} = 1" if name in self._flags else value

    def columns(self) -> dict[str, str]:
        """All that the table has."""
        return {name: self.column(name) for name in self._own}


_MORE = (*("at", "ends_at", "group_number", "group_sequence", "group_rows"),)


def _terms(postings: _Template) -> str:
    """What is kept of a request. Two kinds of them name what is different every time."""
    refunded = postings.column("refund_of")
    refund = f"""'{{"refund.posting_id":"' || {_id("pst", "w.number", refunded)} || '"}}'"""
    ends = f"CAST({postings.column('ends_at')} + w.shift AS text)"
    return (
        f"CASE WHEN p.refund_of IS NOT NULL THEN {refund}"
        f" WHEN p.ends_at IS NOT NULL THEN replace(p.terms, CAST(p.ends_at AS text), {ends})"
        " ELSE p.terms END"
    )


def _id(prefix: str, *numbers: str) -> str:
    """An id as ids.compose writes it."""
    digits = [
        f"substr('{ids.ALPHABET}', CAST((({number}) >> {shift} & 31) + 1 AS integer), 1)"
        for number in numbers
        for shift in range(60, -1, -5)
    ]
    return " || ".join([f"'{prefix}_'", *digits])
