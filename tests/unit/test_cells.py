"""Other people's text in files and pages: a spreadsheet computes none of it, and all is seen."""

from __future__ import annotations

import json

import pytest

from creditledger.outlets.exports.files import cell, csv_text

FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\t=1",
    "  =1",
    "\u00a0\u3000=1",
    "\u200b\ufeff@x",
    "\uff1d1+1",
    "a;=1+1",
    "a; \uff0b1",
    "a\n-1",
    "a\t@x",
)


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_text_becomes_a_formula(text: str, delimiter: str) -> None:
    """Text gets an apostrophe wherever a spreadsheet may begin a cell, in either width."""
    line = csv_text([["x", cell(text, True), cell({"k": text}, False), "y"]])

    cells = [one for row in line.splitlines() for one in row.split(delimiter)]
    blanks = ' \t\u00a0\u3000\u200b\ufeff"'
    assert [one for one in cells if one.lstrip(blanks)[:1] in tuple("=+-@\uff1d\uff0b")] == []


def test_what_is_no_formula_stays_as_it_is() -> None:
    """Figures, and words with such characters inside, stay as they are, and so does JSON."""
    assert cell("-5.00", False) == "-5.00"
    assert [cell(one, True) for one in ("a=b", "5-1", "a@b;c", "")] == ["a=b", "5-1", "a@b;c", ""]
    value = {"k": "a;=1\u202e"}
    assert json.loads(str(cell(value, False))) == value


def test_the_direction_of_text_is_seen() -> None:
    """Controls that turn the direction of text are shown as escapes, in files and in pages."""
    evil = "invoice\u202efdp.exe\u2066\u200f"
    assert cell(evil, True) == "invoice\\u202efdp.exe\\u2066\\u200f"
