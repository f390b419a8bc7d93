"""What is measured, by name, and what each is set against.

A scenario says which worker is asked what; the database, the server's address and how long it takes
are filled in by run.py. Names are what `--only` chooses by.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch

from bench.posting import BATCH
from bench.prepare import HOT, IMPORTED, drawn, holding
from bench.traffic import Wallets

IN_FLIGHT = (1, 16, 64, 256)
BATCHES = (10, 100, 500)
#: Batches and streams that one busy gateway has under way.
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to measure, on one database."""

    name: str
    says: str  #: What happens in it, for people.
    worker: str  #: load, inprocess, baseline, imports or fsync.
    values: dict[str, object] = field(default_factory=dict)  #: What the worker is asked.
    against: str | None = None  #: The scenario of the same run that its rate is divided by.
    copy: str | None = None  #: The copy of the database it needs; None: the server's own.
    unit: str = "postings"  #: What the rate counts.


def _load(
    name: str,
    says: str,
    kind: str,
    wallets: Wallets,
    in_flight: int,
    batch: int,
    against: str | None,
) -> Scenario:
    values: dict[str, object] = {"kind": kind, "in_flight": in_flight, "batch": batch}
    values["wallets"] = asdict(wallets)
    return Scenario(name, says, "load", values, against)


def scenarios(wallets: int) -> list[Scenario]:
    """All that does not need a seeded database, for a ledger of so many wallets."""
    crowd = Wallets(count=wallets)
    places = {
        "random": (crowd, f"{wallets:,} wallets at random"),
        "hot": (HOT, "one hot wallet"),
    }
    zipf = Wallets(count=wallets, zipf=True), f"{wallets:,} wallets, Zipf 1.0"
    found = [
        Scenario("fsync", "8 kB written and fdatasync'ed", "fsync", unit="writes"),
        _empty(1),
        _empty(64),
    ]
    for place, (where, said) in places.items():
        found += [
            _baseline("ordinary", place, where, f"a transaction a posting, {said}"),
            _baseline("limit", place, where, f"{BATCH} postings a statement, {said}"),
        ]
    for place, (where, said) in (*places.items(), ("zipf", zipf)):
        found += [_unary(n, place, where, said) for n in IN_FLIGHT if n == 256 or place != "zipf"]
        found += [_batch(n, place, where, said) for n in BATCHES if n == 500 or place != "zipf"]
    for place, (where, said) in places.items():
        says = f"{AT_ONCE} streams, {said}"
        against = f"ordinary-{place}"
        found.append(_load(f"stream-{place}", says, "stream", where, AT_ONCE, 1, against))
        values: dict[str, object] = {"wallets": asdict(where), "batch": BATCH}
        found.append(
            Scenario(
                f"inprocess-{place}",
                f"batches of {BATCH} without gRPC, {said}",
                "inprocess",
                {"act": "batches", **values},
                f"limit-{place}",
                copy="inprocess",
            )
        )
    found += [_grants(grants, holding(grants, wallets)) for grants in (1, 3, 20)]
    found += [_drawing(grants, drawn(wallets)) for grants in (3, 20)]
    found += [
        _load("grpcio-1-hot", "unary by gRPC's Python client", "grpcio", HOT, 1, 1, "unary-1-hot"),
        _load("rest-1-hot", "unary through Envoy as REST", "rest", HOT, 1, 1, "unary-1-hot"),
        _load("rest-64-random", "the same, 64 in flight", "rest", crowd, 64, 1, "unary-64-random"),
        Scenario(
            "import-hot",
            "creditledger import-usage of a file, one wallet",
            "imports",
            {"wallet": IMPORTED.first},
            "batch-500-hot",
        ),
    ]
    return found


def _empty(in_flight: int) -> Scenario:
    says = f"an empty RPC, {in_flight} in flight"
    return _load(f"empty-{in_flight}", says, "empty", HOT, in_flight, 1, None)


def _baseline(name: str, place: str, wallets: Wallets, says: str) -> Scenario:
    values: dict[str, object] = {"name": name, "wallets": asdict(wallets)}
    return Scenario(f"{name}-{place}", says, "baseline", values, copy=f"{name}_{place}")


def _unary(in_flight: int, place: str, wallets: Wallets, said: str) -> Scenario:
    against = "ordinary-hot" if place == "hot" else "ordinary-random"
    says = f"unary, {in_flight} in flight, {said}"
    return _load(f"unary-{in_flight}-{place}", says, "unary", wallets, in_flight, 1, against)


def _batch(batch: int, place: str, wallets: Wallets, said: str) -> Scenario:
    against = "limit-hot" if place == "hot" else "limit-random"
    says = f"batches of {batch}, {AT_ONCE} in flight, {said}"
    return _load(f"batch-{batch}-{place}", says, "batch", wallets, AT_ONCE, batch, against)


def _grants(grants: int, wallets: Wallets) -> Scenario:
    says = f"batches of 100, {wallets.count} wallets with {grants} open grants"
    against = None if grants == 1 else "grants-1"
    return _load(f"grants-{grants}", says, "batch", wallets, AT_ONCE, 100, against)


def _drawing(grants: int, wallets: Wallets) -> Scenario:
    return Scenario(
        f"drawing-{grants}",
        f"batches of 100 without gRPC, each posting uses up {grants} grants",
        "inprocess",
        {"act": "draws", "wallets": asdict(wallets), "grants": grants, "batch": 100},
        copy="inprocess",
    )


def chosen(found: list[Scenario], only: str) -> list[Scenario]:
    """Those whose name fits one of the patterns (a comma between them), and what they are set
    against.

    A pattern without a star fits every name it is a part of.
    """
    if not only:
        return found
    patterns = [one if "*" in one else f"*{one}*" for one in only.split(",")]
    fitting = [one for one in found if any(fnmatch(one.name, each) for each in patterns)]
    names = {one.name for one in fitting} | {one.against for one in fitting}
    return [one for one in found if one.name in names]


def copies(found: Iterable[Scenario]) -> list[str]:
    """The copies of the database that these need."""
    return sorted({one.copy for one in found if one.copy is not None})
