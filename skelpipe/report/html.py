"""HTML that needs nothing else: what all pages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from .plots import data_uri

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #5b6570; --line: #d9dee3;
  --paper: #fff; --band: #f4f6f8; --accent: #00639c; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #a2acb5; --line: #3a424a;
  --paper: #15191d; --band: #1f252b; --accent: #7cc0ee; --warn: #ffb86b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p, ul { margin: .5rem 0; } ul { padding-left: 1.2rem; }
.about { border-left: 4px solid var(--accent); padding: .2rem 1rem; background: var(--band); }
.warning { color: var(--warn); }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.gains { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem;
  list-style: none; padding: 0; }
.gains li { background: var(--band); border-radius: 8px; padding: .7rem 1rem; }
.gains b { display: block; font-size: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; background: var(--band); padding: .7rem; font-size: .8rem; }
.facts th { font-weight: 600; white-space: nowrap; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; min-width: 40rem; background: #fff; border-radius: 8px; }
"""


def write_html(out: Path, title: str, parts: Iterable[str], *, style: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        out: The file; its folder is made.
        title: Heading, in plain text.
        parts: HTML of what stands below the heading.
        style: CSS beside what all pages share.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n",
        encoding="utf-8",
    )
    part.replace(out)


def warnings(texts: Iterable[str]) -> str:
    """What limits the numbers below, a paragraph each."""
    return "".join(f'<p class="warning">Warning: {escape(text)}</p>' for text in texts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 2) -> str:
    """A table; its first columns are words, as many as said, and the others are numbers."""
    kinds = [""] * words + [' class="number"'] * (len(columns) - words)

    def line(tag: str, cells: Sequence[str]) -> str:
        inside = (
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    return (
        f'<div class="scroll"><table><thead>{line("th", columns)}</thead>'
        f"<tbody>{''.join(line('td', row) for row in rows)}</tbody></table></div>"
    )


def facts(rows: Mapping[str, object]) -> str:
    """Names and what they stand for, as a table of two columns."""
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f'<table class="facts">{body}</table>'


def picture(figure: Figure, what: str, caption: str) -> str:
    """A figure with its caption, if any; ``what`` stands for it where it cannot be seen."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll"><img alt="{escape(what)}" src="{data_uri(figure)}"></div>'
        f"{words}</figure>"
    )
