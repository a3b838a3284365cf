"""Markdown to HTML, as much of it as the reports use: headings, paragraphs, lists, tables, fenced text, bold, code, links, images, and
backslashes before marks that are text (unime/markdown.py).

Small on purpose: the reports are written here, so nothing else can occur in them, and a page needs no further dependency.  All text
is escaped; an image is looked up by name and put into the page, never linked.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

STYLE = """
:root { color-scheme: only light; }  /* the charts have dark ink on no ground: a browser that darkens pages must leave them be */
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #222; background: #fff; overflow-wrap: break-word;
  max-width: 1120px; margin: 2rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .25rem; }
h3 { font-size: 1.05rem; margin-top: 1.75rem; }
nav { margin: 1rem 0 2rem; } nav a { margin-right: 1.25rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #999; white-space: nowrap; } .right { text-align: right; }
tbody tr:hover { background: #f5f7fa; }
img { max-width: max(100%, 800px); height: auto; } figure { margin: 1rem 0; overflow-x: auto; }  /* a phone scrolls a chart */
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; background: #f4f4f4; border-radius: 3px; }
code { padding: .1em .3em; white-space: pre; } pre { padding: .75rem 1rem; overflow-x: auto; } a { color: #0072b2; }
"""


# While a line is taken apart, a mark behind a backslash is held as a letter of its own, from Unicode's private area.
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_HELD = re.compile("[\ue021-\ue07e]")
_AREA = 0xE000


def page(title: str, body: str) -> str:
    """A whole page that needs no other file."""
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def figure(svg: str, text: str) -> str:
    """An SVG inside the page; as an image of its own, so that the ids of two of them cannot meet."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{html.escape(text)}"></figure>'


def render(markdown: str, images: Mapping[str, str] | None = None, deeper: int = 0) -> str:
    """HTML of a markdown text.  `images`: SVG text by the name that `![text](name)` uses; `deeper` is added to heading levels."""
    # Not `splitlines`: a text from outside may have a line end of Unicode in it.
    lines, out = markdown.split("\n"), []
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            stop = next((k for k in range(at + 1, len(lines)) if lines[k].startswith("```")), len(lines))
            out.append("<pre>" + html.escape("\n".join(lines[at + 1 : stop])) + "</pre>")
            at = stop + 1
            continue
        kind = _kind(line)
        stop = at + 1
        while kind and stop < len(lines) and _kind(lines[stop]) == kind and kind != "heading":
            stop += 1
        if kind:
            out.append(_block(kind, lines[at:stop], images or {}, deeper))
        at = stop
    return "\n".join(out)


def _kind(line: str) -> str:
    """What a line belongs to; '' for an empty one."""
    starts = {"|": "table", "- ": "list", "* ": "list", "```": "fence"}
    if re.match(r"#{1,6} ", line):
        return "heading"
    return next((kind for start, kind in starts.items() if line.startswith(start)), "text" if line.strip() else "")


def _block(kind: str, lines: list[str], images: Mapping[str, str], deeper: int) -> str:
    if kind == "heading":
        marks, text = lines[0].split(" ", 1)
        level = min(6, len(marks) + deeper)
        return f'<h{level} id="{slug(text)}">{_inline(_hidden(text))}</h{level}>'
    if kind == "list":
        return "<ul>" + "".join(f"<li>{_inline(_hidden(line[2:]))}</li>" for line in lines) + "</ul>"
    if kind == "table":
        return _table(lines)
    text = " ".join(lines)
    if (found := re.fullmatch(r"!\[(.*?)\]\((.+?)\)", text.strip())) and found[2] in images:
        return figure(images[found[2]], found[1])
    return f"<p>{_inline(_hidden(text))}</p>"


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in _hidden(line.strip()).split("|")[1:-1]] for line in lines]
    if len(rows) < 2 or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1]):
        return f"<p>{_inline(_hidden(' '.join(lines)))}</p>"
    sides = [' class="right"' if cell.endswith(":") else "" for cell in rows[1]]
    sides += [""] * (max(map(len, rows)) - len(sides))

    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{side}>{_inline(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=False)) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows[2:])
    return f'<div class="wide"><table>\n<thead>{row(rows[0], "th")}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _hidden(text: str) -> str:
    """The text with each mark behind a backslash as one letter that is no mark."""
    return _ESCAPE.sub(lambda found: chr(_AREA + ord(found[1])), text)


def _shown(text: str, before: str = "") -> str:
    """The marks that `_hidden` has hidden, as HTML, each with `before` in front."""
    return _HELD.sub(lambda found: before + html.escape(chr(ord(found[0]) - _AREA)), text)


def _inline(text: str) -> str:
    """HTML of text out of `_hidden`: `code`, **bold** and [links](to a place in the page or the web); nothing is read inside code."""
    out = []
    for k, piece in enumerate(re.split(r"`([^`]+)`", text)):
        piece = html.escape(piece)
        if k % 2:
            out.append(f"<code>{_shown(piece, before=chr(92))}</code>")  # a backslash inside code is a backslash
            continue
        piece = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", piece)
        piece = re.sub(r"\[([^\]]+)\]\(((?:https?://|#)[^)\s]+)\)", r'<a href="\2">\1</a>', piece)
        out.append(_shown(piece))
    return "".join(out)


def slug(text: str) -> str:
    """A heading's place in the page: its words in lower case, joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
