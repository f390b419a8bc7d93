"""A statement as a file: CSV for a spreadsheet, HTML for printing, or the very text that is hashed.

All are made of the same document, so they show the same figures. Pure.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, time, timedelta
from html import escape
from typing import Literal, NamedTuple

from creditledger.domain.statements import COLUMNS, OVERDRAFT_COLUMNS, Document, canonical
from creditledger.outlets.exports.files import PLAIN, Dialect, cell, csv_text, visible

Format = Literal["csv", "html", "json"]
FORMATS: Mapping[str, Format] = {"csv": "csv", "html": "html", "json": "json"}
CONTENT_TYPES: Mapping[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
}

#: What a statement says of itself before its figures, in this order, where it is there.
ABOUT = (
    *("customer_name", "customer_id", "wallet_id", "currency", "livemode"),
    *("start", "end", "time_zone", "sequence"),
    *("id", "number", "closed_at", "closed_by", "previous_sha256", "sha256"),
)
_LINE = ("opening", *COLUMNS, "drawn", "repaid", "closing")
#: The columns of the CSV. A row fills those that it has; `item` is what it is about.
CSV_COLUMNS = ("section", "item", "name", "category", "count", "amount", *_LINE)
#: Behind them, in a statement that has usage by product; older closed ones have not.
_OF_PRODUCTS = ("calls", "quantity")
#: Of these the texts are people's own, which a spreadsheet might take for a formula.
_TEXTS = frozenset({"item", "name"})
_DECIMALS = frozenset({"amount", *_LINE})


def file(
    said: Document,
    format_: Format,
    sha256: str | None,
    issuer: str | None,
    *,
    dialect: Dialect = PLAIN,
    digest_line: bool = False,
) -> bytes:
    """The whole file; `sha256` is a closed statement's. A page names the issuer, if there is.

    `dialect` and `digest_line` are of a CSV: how it is written, and whether its last line is no
    row but holds the number of rows and the SHA-256 of all bytes before it.
    """
    if format_ == "json":
        return canonical(said).encode()
    shown = said if sha256 is None else {**said, "sha256": sha256}
    if format_ == "csv":
        return _csv(shown, dialect, digest_line=digest_line)
    return _html(shown, issuer).encode()


def file_name(said: Document) -> str:
    """What a client calls the CSV: the wallet, and the first and last day of the period."""
    first, last = datetime.fromisoformat(said["start"]), datetime.fromisoformat(said["end"])
    last -= timedelta(microseconds=1)
    return f"statement_{said['wallet_id']}_{first:%Y-%m-%d}_{last:%Y-%m-%d}.csv"


# --- CSV ------------------------------------------------------------------------------------------


def _csv(said: Document, dialect: Dialect, *, digest_line: bool) -> bytes:
    rows = list(_rows(said))
    columns = (*CSV_COLUMNS, *(_OF_PRODUCTS if "by_product" in said else ()))
    lines = [columns, *([_cell(row, name, dialect) for name in columns] for row in rows)]
    data = (dialect.begin + csv_text(lines, dialect.separator)).encode()
    if not digest_line:
        return data
    return data + f"# rows={len(rows)} sha256={hashlib.sha256(data).hexdigest()}\n".encode()


def _cell(row: Document, name: str, dialect: Dialect) -> object:
    found = cell(row.get(name), name in _TEXTS)
    return str(found).replace(".", dialect.decimal_mark) if name in _DECIMALS else found


def _rows(said: Document) -> Iterator[Document]:
    """What the CSV has a row for, in order."""
    for name in ABOUT:
        if name in said:
            yield {"section": "about", "item": name, "name": cell(said[name], False)}
    yield {"section": "balance", "item": "opening", "amount": said["opening_balance"]}
    for section, name in (("kind", "by_kind"), ("prior_period", "prior_period_adjustments")):
        for one in said[name]:
            yield {"section": section, "item": one["kind"], **_figures(one, ("count", "amount"))}
    yield {"section": "balance", "item": "closing", "amount": said["closing_balance"]}
    for one in said["by_api_key"]:
        figures = _figures(one, ("count", "consumed", "refunded", "prior_period"))
        yield {"section": "api_key", "item": one.get("api_key_id"), **figures}
    for one in _used(said):
        words = {"item": one.get("product_id"), "name": one.get("product_name")}
        figures = _figures(one, (*_OF_PRODUCTS, "consumed", "refunded", "prior_period"))
        yield {"section": "product", **words, **figures}
    for one in said["grants"]:
        words = {name: one.get(name) for name in ("name", "category")}
        figures = _figures(one, _LINE)
        yield {"section": "grant", "item": one["credit_grant_id"], **words, **figures}
    yield {"section": "grants_total", **_figures(said["grants_total"], _LINE)}
    yield {"section": "overdraft", **_figures(said["overdraft"], _LINE)}


def _used(said: Document) -> list[Document]:
    products: list[Document] = said.get("by_product", {}).get("products", [])
    return products


def _figures(one: Document, names: Iterable[str]) -> Document:
    return {name: one[name] for name in names if name in one}


# --- for people -----------------------------------------------------------------------------------

_STYLE = """\
@page { size: A4 landscape; margin: 14mm 14mm 18mm;
        @bottom-right { content: counter(page) " / " counter(pages); font-size: 9px } }
body { font: 14px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 72em; margin: 2em auto;
       padding: 0 1em }
h1 { font-size: 1.6em; margin: 0 } h2 { font-size: 1.1em; margin: 2em 0 .4em }
p { margin: .3em 0 } .quiet { color: #555; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25em .6em; border-bottom: 1px solid #ddd; vertical-align: top }
th { font-weight: 600; border-bottom-color: #555 } td.n, th.n { text-align: right }
td.n { white-space: nowrap } tr.sum td { font-weight: 600; border-top: 1px solid #555 }
thead { display: table-header-group } tr { break-inside: avoid }
.wide { overflow-x: auto }
@media print {
  body { font-size: 9.5px; margin: 0; max-width: none; padding: 0 }
  .wide { overflow: visible } h2 { break-after: avoid }
}"""
#: The columns of grants that are shown only where some grant has a figure in them.
_SELDOM = frozenset(COLUMNS) - {"granted", "consumed", "expired"}


#: As wide as a digit, and as a point: what a figure with fewer decimals has at its end instead.
_DIGIT_SPACE, _POINT_SPACE = "\u2007", "\u2008"


def _html(said: Document, issuer: str | None) -> str:
    title = f"Statement of {said['customer_name']}"
    parts = [] if issuer is None else [_paragraph(issuer, "quiet")]
    parts.append(f"<h1>{_shown(title)}</h1>")
    parts += [_paragraph(line) for line in heading(said)]
    parts += [_paragraph(standing(said), "quiet"), *map(_section, tables(said))]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_shown(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def heading(said: Document) -> tuple[str, str]:
    """Of which period a statement is, and of what."""
    mode = "" if said["livemode"] else ", test mode"
    wallet = f"Wallet {said['wallet_id']} of customer {said['customer_id']}"
    return (
        f"{_period(said['start'], said['end'])} ({said['time_zone']})",
        f"{wallet}, amounts in {said['currency']}{mode}",
    )


def _period(starts: str, ends: str) -> str:
    """A period of whole days as people say it, both ends included; else with its moments."""
    start, end = datetime.fromisoformat(starts), datetime.fromisoformat(ends)
    if start.time() != time.min or end.time() != time.min:
        return f"{_day(start)}, {start:%H:%M:%S}, to {_day(end)}, {end:%H:%M:%S}, the end excluded"
    last = end - timedelta(days=1)
    if start.day == 1 and end.day == 1 and (last.year, last.month) == (start.year, start.month):
        return f"{_MONTHS[start.month - 1]} {start.year}"
    return _day(start) if last.date() == start.date() else f"{_day(start)} to {_day(last)}"


#: Not by the system's locale.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)


def _day(moment: datetime) -> str:
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def standing(said: Document) -> str:
    """Whether it is closed, and how it can be told from another."""
    if "id" not in said:
        return f"Not closed: the wallet as of its row {said['sequence']}; figures may still change."
    before = said.get("previous_sha256", "none")
    return (
        f"Statement {said['number']} ({said['id']}), closed {said['closed_at']} at row"
        f" {said['sequence']}. SHA-256 {said['sha256']}; of the statement before: {before}."
    )


class Table(NamedTuple):
    """A part of a statement for people: its first `words` columns are words, others figures."""

    title: str
    names: Sequence[str]
    words: int
    rows: Sequence[Sequence[str]]
    total: Sequence[str] | None = None


def tables(said: Document) -> list[Table]:
    """What a statement shows to people; of what there is nothing of there is no table."""
    found = [_balance(said), _keys(said), _products(said), _grants(said), _overdraft(said)]
    return [table for table in found if table.rows]


def _balance(said: Document) -> Table:
    rows = [("Opening balance", "", said["opening_balance"])]
    rows += [(_words(one["kind"]), one["count"], one["amount"]) for one in said["by_kind"]]
    rows += [
        (f"Prior period: {_words(one['kind'])}", one["count"], one["amount"])
        for one in said["prior_period_adjustments"]
    ]
    last = ("Closing balance", "", said["closing_balance"])
    return Table("Balance", ("", "Rows", "Amount"), 1, rows, last)


def _keys(said: Document) -> Table:
    figures = ("count", "consumed", "refunded", "prior_period")
    rows = [
        [one.get("api_key_id", "(none)"), *(one[name] for name in figures)]
        for one in said["by_api_key"]
    ]
    return Table("Usage by API key", ("API key", "Rows", *map(_words, figures[1:])), 1, rows)


def _products(said: Document) -> Table:
    used = _used(said)
    # Columns of what products need not have are there where one has it.
    seen = {name for one in used for name in one}
    words = [name for name in ("product_name",) if name in seen]
    figures = [
        name for name in (*_OF_PRODUCTS, "consumed", "refunded", "prior_period") if name in seen
    ]
    rows = [
        [one.get("product_id", "(none)"), *(one.get(name, "") for name in (*words, *figures))]
        for one in used
    ]
    names = ("Product", *("Name" for _ in words), *map(_words, figures))
    return Table("Usage by product", names, 1 + len(words), rows)


def _grants(said: Document) -> Table:
    total = said["grants_total"]
    # Not by the total: what was booked late to several grants may cancel out in it.
    seen = {name for one in said["grants"] for name in _SELDOM if not _is_zero(one[name])}
    columns = [name for name in COLUMNS if name not in _SELDOM or name in seen]
    shown = ("opening", *columns, "closing")

    def line(words: Sequence[str], figures: Document) -> list[str]:
        return [*words, *(_worth_ink(name, figures[name]) for name in shown)]

    rows = [
        line([one.get("name", ""), one["credit_grant_id"], one["category"], _ends(one)], one)
        for one in said["grants"]
    ]
    names = ("Grant", "Id", "Category", "Ends", *map(_words, shown))
    return Table("Grants", names, 4, rows, line(["All grants", "", "", ""], total))


def _ends(one: Document) -> str:
    if "voided_at" in one:
        return f"voided {one['voided_at']}"
    ends: str = one.get("expires_at", "never")
    return ends


def _overdraft(said: Document) -> Table:
    figures = said["overdraft"]
    shown = ("opening", *OVERDRAFT_COLUMNS, "closing")
    rows = [] if all(map(_is_zero, figures.values())) else [[figures[name] for name in shown]]
    return Table("Overdraft used", list(map(_words, shown)), 0, rows)


def _worth_ink(column: str, value: str) -> str:
    """A figure as the other files have it; one that is 0 is left out but at both ends."""
    return "" if _is_zero(value) and column not in ("opening", "closing") else value


def _is_zero(value: str) -> bool:
    return not value.strip("0.")


def _section(table: Table) -> str:
    figures = [*table.rows, *([] if table.total is None else [table.total])]
    most = [max((_decimals(row[i]) for row in figures), default=0) for i in range(len(table.names))]

    def aligned(row: Sequence[str]) -> list[str]:
        return [
            value if i < table.words or not value else _padded(value, most[i])
            for i, value in enumerate(row)
        ]

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{'' if i < table.words else ' class=n'}>{_shown(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    lines = [f"<tr>{cells('td', aligned(row))}</tr>" for row in table.rows]
    if table.total is not None:
        lines.append(f"<tr class=sum>{cells('td', aligned(table.total))}</tr>")
    body = "\n".join(lines)
    return (
        f"<h2>{escape(table.title)}</h2>\n<div class=wide><table>\n"
        f"<thead><tr>{cells('th', table.names)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        f"</table></div>"
    )


def _decimals(figure: str) -> int:
    return len(figure.partition(".")[2])


def _padded(figure: str, decimals: int) -> str:
    """A figure whose point stands below that of the one with so many decimals."""
    own = _decimals(figure)
    point = _POINT_SPACE if decimals and not own else ""
    return figure + point + _DIGIT_SPACE * (decimals - own)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _paragraph(text: str, style: str = "") -> str:
    return f"<p{f' class={style}' if style else ''}>{_shown(text)}</p>"


def _shown(text: str) -> str:
    """Other people's text in a page: shown as it is, and in the direction of the page."""
    return escape(visible(text))
