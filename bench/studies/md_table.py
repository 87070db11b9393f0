"""Tables as Markdown."""


def table(rows: list[list[str]]) -> str:
    """A Markdown table of which the first row is the header."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])
