"""The tables of a study as LaTeX, from the rows and cells that Markdown shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from studies.table import TextCell, TextTable

_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "\N{EN DASH}": "--",
    "<": "$<$",
    ">": "$>$",
}


def escape(text: str) -> str:
    """Returns text as LaTeX; a number's minus is a minus."""
    signs = re.sub(r"(?<![\w)])-(?=\d)", "\N{MINUS SIGN}", text)
    return "".join(_ESCAPES.get(sign, sign) for sign in signs)


def to_latex(name: str, tables: Sequence[TextTable]) -> str:
    """Returns one `table*` per table, to be included by a document that uses the packages booktabs and graphicx."""
    parts = [f"% Tables of the study {name.replace(chr(10), ' ')}. Needs \\usepackage{{booktabs, graphicx}}."]
    for table in tables:
        columns = "".join("l" if column in table.words else "r" for column in table.head)
        head = " & ".join(escape(column) for column in table.head)
        rows = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows]
        parts += [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{escape(table.title)}. {escape(table.lead)} {escape(table.notes)}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    return "\n".join(parts)


def _latex_cell(cell: TextCell) -> str:
    text = escape(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text
