"""What SQLite and PostgreSQL spell differently in the checks: JSON, and the order of commits.

In every check `row` is a row of credit_transactions and `posting` is the posting that wrote it.
"""

from dataclasses import dataclass

#: Columns of a fold for the quantities of its postings.
QUANTITIES = tuple(f"quantity_{i}" for i in range(6))
#: The quantities of a posting count once, with its first row.
FIRST_QUANTITIES = "CASE WHEN row.sequence = posting.first_sequence THEN posting.quantities END"


@dataclass(frozen=True, slots=True)
class SqlSpelling:
    """The SQL of one kind of database."""

    is_file: bool  #: SQLite; otherwise PostgreSQL.
    #: PostgreSQL only: `postings` has the quantities as an array, so that each list is parsed once.
    listed: bool = False

    @property
    def postings(self) -> str:
        """The table of postings, for queries that read quantities."""
        if not self.listed:
            return "postings"
        return """(SELECT *, CASE WHEN quantities IS NOT NULL
           THEN CAST(translate(quantities, '[]', '{}') AS bigint[]) END AS listed FROM postings)"""

    @property
    def quantity(self) -> str:
        """Σ of the posting's quantities on its first row, else 0."""
        if self.listed:
            few = (f"coalesce(posting.listed[{i}], 0)" for i, _ in enumerate(QUANTITIES, 1))
            return f"""CASE WHEN row.sequence <> posting.first_sequence
                OR posting.listed IS NULL THEN 0
              WHEN cardinality(posting.listed) <= {len(QUANTITIES)} THEN {" + ".join(few)}
              ELSE (SELECT sum(quantity) FROM unnest(posting.listed) AS quantity) END"""
        if self.is_file:
            total, each = "sum(pair.value)", f"json_each({FIRST_QUANTITIES})"
        else:
            total = "sum(CAST(pair.value AS bigint))"
            each = f"json_array_elements_text(CAST({FIRST_QUANTITIES} AS json))"
        return f"(SELECT coalesce({total}, 0) FROM {each} AS pair)"

    @property
    def moved(self) -> str:
        """The effective_at of a row; most rows have none."""
        # The plus keeps SQLite from using the index: the rows lie far apart, so all are read.
        return "+row.effective_at" if self.is_file else "row.effective_at"

    def place(self, row: str) -> str:
        """The place of a row in the order of commits."""
        return f"{row}.position" if self.is_file else f"coalesce({row}.position, {row}.written_in)"

    def document(self, text: str) -> str:
        """A JSON document that can be compared with another one."""
        return text if self.is_file else f"CAST({text} AS jsonb)"

    def value(self, text: str, member: str) -> str:
        """A member of a document, as JSON."""
        if self.is_file:
            return f"json_extract({text}, '$.\"{member}\"')"
        return f"CAST({text} AS jsonb) -> '{member}'"

    def text(self, text: str, member: str) -> str:
        """A member of a document that is a text."""
        if self.is_file:
            return self.value(text, member)
        return f"(CAST({text} AS json) ->> '{member}')"

    def number(self, text: str, member: str) -> str:
        """A member of a document that is a number."""
        return (
            self.text(text, member)
            if self.is_file
            else f"CAST({self.text(text, member)} AS bigint)"
        )

    def among(self, one: str, text: str, member: str) -> str:
        """Whether a list in a document has the element `one`."""
        if self.is_file:
            return f"coalesce({one} IN (SELECT value FROM json_each({text}, '$.{member}')), 0)"
        return f"coalesce({self.value(text, member)} @> to_jsonb({one}), false)"

    def pairs(self, text: str) -> str:
        """The elements of a list of pairs, as a table with the alias `pair`."""
        return (
            f"json_each({text})" if self.is_file else f"json_array_elements(CAST({text} AS json))"
        )

    def parsed(self, text: str) -> str:
        """A list that `item` can read."""
        return text if self.is_file else f"CAST({text} AS json)"

    def item(self, i: int, of: str = "pair.value") -> str:
        """The number at index `i` of a list."""
        return f"json_extract({of}, '$[{i}]')" if self.is_file else f"CAST({of} ->> {i} AS bigint)"

    def listing(self, numbers: str) -> str:
        """A list of numbers, as text."""
        return (
            f"json_array({numbers})"
            if self.is_file
            else f"CAST(json_build_array({numbers}) AS text)"
        )


#: By the name of the dialect.
SPELLINGS = {"sqlite": SqlSpelling(is_file=True), "postgresql": SqlSpelling(is_file=False)}
