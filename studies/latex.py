"""The tables of a study as LaTeX, from the rows and cells that Markdown shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from studies.rows import Row, Table
from studies.table import HEAD, WORDS, caption, cells_of, reference_line, title

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


def to_latex(name: str, tables: Sequence[Table]) -> str:
    """Returns one `table*` per task and target, to be included by a document that uses the package booktabs."""
    columns = "".join("l" if column in WORDS else "r" for column in HEAD)
    parts = [f"% Tables of the study {name.replace(chr(10), ' ')}. Needs \\usepackage{{booktabs, graphicx}}."]
    for table in tables:
        head = " & ".join(escape(column) for column in HEAD)
        rows = [_latex_row(row) for row in table.rows]
        parts += [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{escape(title(table))}. {escape(reference_line(table))} {escape(caption([table]))}}}",
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


def _latex_row(row: Row) -> str:
    cells = [escape(cell) for cell in cells_of(row)]
    if row.best:
        cells[0], cells[3] = rf"\textbf{{{cells[0]}}}", rf"\textbf{{{cells[3]}}}"
    return " & ".join(cells) + r" \\"
