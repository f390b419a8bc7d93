"""Tables of what was measured: on the terminal, and as Markdown beside the JSON.

`latest.md` is made anew from every JSON file of the folder, so that parts measured on different
days stand together, each under what it says of its machine.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import outcome
from bench.figures import Figure, figures
from bench.outcome import Outcome, Result

COLUMNS = (
    "scenario",
    "per second",
    "p50 ms",
    "p99 ms",
    "server µs",
    "database µs",
    "client µs",
    "ratio",
)


def show(one: Outcome) -> None:
    """On the terminal."""
    table = Table(*COLUMNS, title=one.database)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for result in one.results:
        table.add_row(*_cells(result))
    console = _console()
    console.print(table)
    for name, value in one.facts.items():
        console.print(f"{name}: {value}", highlight=False)


def _console() -> Console:
    """Off a terminal nothing is broken into lines: whoever keeps a table wants to read it."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def show_figures(found: Sequence[Figure]) -> None:
    """On the terminal."""
    table = Table("figure", "wanted", "measured", "reached")
    for one in found:
        table.add_row(one.says, one.wanted, one.measured, "yes" if one.reached else "NO")
    _console().print(table)


def write(folder: Path) -> list[Figure]:
    """`latest.md` of all outcomes there are; the figures in it."""
    outcomes = [outcome.load(path) for path in sorted(folder.glob("*-*.json"))]
    found = figures(outcomes)
    (folder / "latest.md").write_text(_markdown(outcomes, found))
    return found


def _cells(result: Result) -> tuple[str, ...]:
    sample = result.median
    times = (sample.p50_ms, sample.p99_ms)
    cpu = (sample.server_us, sample.database_us, sample.client_us)
    return (
        result.name,
        f"{sample.rate:,.0f}",
        *("" if value is None else f"{value:.2f}" for value in times),
        *("" if value is None else f"{value:.0f}" for value in cpu),
        "" if result.ratio is None else f"{result.ratio:.2f} of {result.against}",
    )


def _markdown(outcomes: Sequence[Outcome], found: Sequence[Figure]) -> str:
    lines = [
        "# Benchmark",
        "",
        "Made by `make bench`; what is measured, and how, is in [bench](../../bench/README.md).",
        "",
        "## Figures",
        "",
        "| figure | wanted | measured | reached |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one.says} | {one.wanted} | {one.measured} | {'yes' if one.reached else '**no**'} |"
        for one in found
    ]
    for one in outcomes:
        lines += ["", f"## {one.database}: {one.part}", ""]
        lines += [f"- {name}: {value}" for name, value in one.facts.items()]
        lines += ["", "| " + " | ".join(COLUMNS) + " |"]
        lines += ["| --- |" + " ---: |" * (len(COLUMNS) - 2) + " --- |"]
        lines += ["| " + " | ".join(_cells(result)) + " |" for result in one.results]
        lines += ["", "Scenarios:", ""]
        lines += [f"- {result.name}: {result.says}" for result in one.results]
    return "\n".join(lines) + "\n"
