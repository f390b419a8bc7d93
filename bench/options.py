"""How to measure, as the command line says; what every part of the benchmark is given."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """One run over one database."""

    runs: int  #: That medians are taken of.
    seconds: float  #: That count, of each scenario.
    wallets: int
    workers: int = 1  #: Processes that serve; on SQLite there is one.
