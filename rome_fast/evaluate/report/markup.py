"""Tables for papers and pages: Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_LATEX = {
    **{character: f"\\{character}" for character in "_%&#${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


class Bold(str):
    """A cell that is to be seen first."""

    __slots__ = ()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is a name, the others numbers."""
    lines = [[*head], ["---", *["---:"] * (len(head) - 1)]]
    for name, *numbers in rows:
        bar = _in_line(name).replace("|", r"\|")  # which parts cells also within a code span
        lines.append([f"`{bar}`", *map(_in_markdown, numbers)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for the package booktabs."""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        rf"{' & '.join(map(in_latex, head))} \\",
        r"\midrule",
    ]
    lines += [
        " & ".join([in_latex(name), *map(_number_in_latex, numbers)]) + r" \\"
        for name, *numbers in rows
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def in_latex(text: str) -> str:
    """Text, in which nothing means anything to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in _in_line(text))


def _in_line(text: str) -> str:
    return " ".join(text.split())


def _in_markdown(cell: str) -> str:
    return f"**{cell}**" if isinstance(cell, Bold) and cell else cell


def _number_in_latex(cell: str) -> str:
    if not cell:
        return ""
    number = cell.replace("±", r"\pm")
    return rf"$\mathbf{{{number}}}$" if isinstance(cell, Bold) else f"${number}$"
