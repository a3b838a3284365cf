"""A JSON list of any length is read row by row: equal to json.load, in bounded memory, and whatever is wrong is named by file and row."""

from __future__ import annotations

import json
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from unime.data import stream
from unime.data.rows import DataError

VALUES = [
    {"text": 'quotes " and \\ and \n, [brackets] {braces}', "list": [1, -2.5e-7, None, True, False, []]},
    {},
    "snow ☃ and 😀 in a string",
    1234567890,
    -0.25,
    None,
    [[["deep"]]],
    {"long": "x" * 3000},
    0,
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii", [True, False])
def test_rows_equal_those_of_json_load_wherever_a_block_ends(
    block: int, indent: int | None, ascii: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "_BLOCK", block)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(VALUES, indent=indent, ensure_ascii=ascii) + "\n", encoding="utf-8")
    assert list(stream.rows(file)) == list(enumerate(VALUES))


@pytest.mark.parametrize("text", ["[]", " [ ] \n", "\ufeff[]"])
def test_an_empty_list_has_no_rows(text: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert list(stream.rows(tmp_path / "a.json")) == []


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_a_file_cut_anywhere_gives_its_whole_rows_and_then_names_the_next(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "_BLOCK", block)
    whole = json.dumps(VALUES[:6], ensure_ascii=False).encode()
    file, counts = tmp_path / "cut.json", set()
    for size in range(1, len(whole)):
        file.write_bytes(whole[:size])
        found = []
        with pytest.raises(DataError, match="cut.json: .*row [0-9]") as error:
            for _, value in stream.rows(file):
                found.append(value)
        assert f"row {len(found)}" in str(error.value) or f"row {len(found) - 1}" in str(error.value)
        assert found == VALUES[: len(found)]
        counts.add(len(found))
    assert counts >= {0, 1, 2, 3, 4, 5}


BROKEN = {
    "no list": ('{"a": 1}', "not a JSON list of rows"),
    "empty file": ("", "not a JSON list of rows"),
    "no comma": ("[1 2]", "row 0: '2' where ',' or ']' must follow"),
    "comma at the end": ("[1, 2, ]", "row 2: not JSON"),
    "bad word": ('[{"a": 1}, {"a": nope, "b": "cccccccccccccccccccc"}]', r"row 1: not JSON \(Expecting value, 6 characters into the row\)"),
    "bad word at the end": ('[{"a": 1}, nope]', "row 1: not JSON"),
    "bad escape": ('["a", "\\q and more text behind it"]', "row 1: not JSON"),
    "text behind it": ("[1, 2] [3]", r"'\[' after the end of the list of 2 rows"),
    "two closing marks": ("[]]", "after the end of the list of 0 rows"),
    "deep": ("[0, " + "[" * 200_000, "row 1: not JSON that can be a row"),
    "endless number": ("[0, " + "1" * 5000 + "]", "row 1: not JSON that can be a row"),
}


@pytest.mark.parametrize("block", [1 << 20, 16])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_list_is_named_by_file_and_row(what: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "_BLOCK", max(block, 1 << 16) if what == "deep" else block)
    text, reason = BROKEN[what]
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(DataError, match=f"b.json: .*{reason}"):
        list(stream.rows(tmp_path / "b.json"))


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_named(tmp_path: Path):
    (tmp_path / "b.json").write_bytes(b'["a", "\xff"]')
    with pytest.raises(DataError, match="b.json: .*not UTF-8"):
        list(stream.rows(tmp_path / "b.json"))
    with pytest.raises(DataError, match="none.json: cannot be read"):
        list(stream.rows(tmp_path / "none.json"))


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "_LONGEST", 1000)
    monkeypatch.setattr(stream, "_BLOCK", 100)
    (tmp_path / "b.json").write_text('["a", "' + "x" * 10_000)
    with pytest.raises(DataError, match="row 1: more than 1000 characters"):
        list(stream.rows(tmp_path / "b.json"))
    (tmp_path / "b.jsonl").write_text('"a"\n"' + "x" * 10_000 + '"\n')
    with pytest.raises(DataError, match="line 2: more than 1000 bytes"):
        list(stream.lines(tmp_path / "b.jsonl"))


def large(path: Path, count: int) -> Path:
    """A list of `count` rows of about 1 KB."""
    with path.open("w") as file:
        for i in range(count):
            file.write(("[" if i == 0 else ",\n") + json.dumps({"row": i, "text": f"{i} " * 150}))
        file.write("]")
    return path


def test_a_long_list_is_read_in_bounded_memory_and_its_start_without_the_rest(tmp_path: Path):
    file = large(tmp_path / "l.json", 40_000)
    assert file.stat().st_size > 30_000_000
    tracemalloc.start()
    count = sum(row["row"] == index for index, row in stream.rows(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000 and peak < 8_000_000, peak
    with file.open("r+b") as handle:
        handle.truncate(3_000_000)  # what lies behind is not there to be read
    assert len(list(islice(stream.rows(file), 1000))) == 1000
    with pytest.raises(DataError, match="truncated"):
        list(stream.rows(file))


def test_lines_are_named_by_number_and_a_damaged_one_costs_itself_only(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": \n"\xff"\n[2]')
    found = list(stream.lines(file))
    assert [(number, value) for number, value, _ in found] == [(1, {"a": 1}), (3, None), (4, None), (5, [2])]
    assert found[0][2] is None and found[1][2].startswith("not JSON") and found[2][2].startswith("not UTF-8")
