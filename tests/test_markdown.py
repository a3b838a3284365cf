"""Names and reasons from outside are text in the reports, whoever renders them: never markup, never a broken table."""

from __future__ import annotations

import random
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from unime import markdown
from unime.report import html, imported, page
from unime.train import card

HOSTILE = [
    "[click](https://example.org).png",
    "![seen](https://example.org/x.png)",
    "`code`.png",
    "``two``|`|.png",
    "a|b.png",
    "a\\|b.png",
    "a\\",
    "\\\\server\\share\\x.png",
    "<script>alert(1)</script>.png",
    "<https://example.org>",
    "https://example.org/x",
    "www.example.org",
    "two\nlines\r\nor three.png",
    "\n# a heading\n\n- a list",
    "**bold** __bold__ *it* _it_ ~~struck~~",
    "MSCOCO_i2t_x",
    "&lt;b&gt; &#60; &amp",
    "a\u2028b\x85c\x1b[31mred\u202egnp.exe",
    "| --- | ---: |",
    "1. one",
    "[x]: https://example.org",
    "\ue05b\ue05d",
    "```",
    "\udcff",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600",
    "![[[]]((",
]


class Page(HTMLParser):
    """The text of a page, its table's cells, and the tags that are in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self._open = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


TABLE = {"div", "table", "thead", "tbody", "tr", "th", "td"}
GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def told(text: str) -> str:
    """What a reader should see of a text: itself on one line, with what cannot be printed as an escape."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)


def mixtures() -> list[str]:
    """Texts of marks in any order, which no list of cases has."""
    draw = random.Random(1)
    marks = [*"\\`*_[]()<>|~!&:#-+ ab1", "https://", "www.", "\n", "&lt;", "**", "``"]
    return ["".join(draw.choices(marks, k=12)) for _ in range(400)]


@pytest.mark.parametrize("render", [html.render, GITHUB.render], ids=["the page", "as on GitHub"])
def test_a_cell_shows_every_text_as_it_is(render) -> None:
    texts = [*HOSTILE, *mixtures()]
    lines = markdown.grid(["name", "reason"], [[text, "plain"] for text in texts], [False, True])
    seen = Page(render("\n".join(lines)))
    assert seen.tags <= TABLE
    wanted = ["name", "reason"]
    for text in texts:
        wanted += [told(text), "plain"]
    assert [cell.strip() for cell in seen.cells] == wanted


def test_a_bare_address_is_no_link_on_github() -> None:
    """GitHub makes links of addresses in plain text, which the renderer above does not."""
    for address in ("https://example.org", "http://example.org", "www.example.org"):
        assert address not in markdown.escaped(f"x {address}/a.png")


def test_names_as_they_are_usual_stay_as_they_are() -> None:
    for name in ("MSCOCO_i2t", "UniME-V2 (Qwen2-VL 2B) + reranker", "image+text -> text 240", "data/own/train/S/images.zip: no such image"):
        assert markdown.escaped(name) == name


REPORT = {"name": "S", "rows": 1, "sampled": 1, "pairs": 1, "queries": 1, "candidates": 1, "duplicate_pairs": 0, "modalities": {"text": 1}}


def listed(text: str) -> dict:
    return {"count": 1, "listed": [{"file": f"data/{text}", "row": 0, "reason": f"image {text!r} is bad: {text}"}]}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_picture_cannot_write_into_the_page(name: str) -> None:
    text = page.data_markdown([REPORT | {"left_out": listed(name)}], [])
    seen = Page(html.render(text))
    assert seen.tags <= TABLE | {"h1", "p", "ul", "li", "code"}
    assert told(f"data/{name}") in seen.cells
    clean = Page(html.render(page.data_markdown([REPORT | {"left_out": listed("x")}], [])))
    assert len(seen.cells) == len(clean.cells)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_score_file_cannot_write_into_its_report(name: str) -> None:
    none = {"count": 0, "listed": []}
    report = {"sets": [], "rows": 1, "above_alpha_share": 0.0, "ranks": "made up", "rows_of_other_sets": {name: 1}}
    report |= {"left_out": {"count": 1, "listed": [{"row": 0, "reason": name}]}, "unmatched": none, "negatives_left_out": none}
    text = imported.markdown(report)
    assert Page(html.render(text)).tags <= TABLE | {"h1", "h2", "p", "ul", "li"}
    rendered = GITHUB.render(text)
    assert Page(rendered).tags <= TABLE | {"h1", "h2", "p", "ul", "li"}, rendered
    assert Page(rendered).tags == Page(GITHUB.render(imported.markdown(report | {"rows_of_other_sets": {"S": 1}}))).tags


def test_a_model_card_holds_the_base_models_path_as_text(config) -> None:
    log = [{"step": 1, "items": 2, "loss": 0.5}]
    for base in ("models/a|b", "models/`x`", "models/nano-mllm"):
        text = card.text("unime_v2", log, config.view(("seed",)), ["S"], {}, base)
        cells = Page(GITHUB.render(text.split("---\n", 2)[2])).cells
        assert cells[cells.index("base model") + 1] == base
