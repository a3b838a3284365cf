"""What a configuration file may be written as: merged mappings are read as YAML says, and a key that one mapping gives twice is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml

from unime.config.files import UnreadableConfig, read_values

MERGED = {
    "a merge": "a: &a {x: 1, y: 2}\nb: {<<: *a, z: 3}\n",
    "a merged key given anew": "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n",
    "a merged key given anew, before the merge": "a: &a {x: 1, y: 2}\nb: {x: 3, <<: *a}\n",
    "a merge of what merges": "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n",
    "a merge of what merges what merges": "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: &c {<<: *b, x: 3}\nd: {<<: *c, x: 4}\n",
    "merged twice": "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: {<<: *b, y: 5}\n",
    "a list of merges": "a: &a {x: 1, y: 2}\nb: &b {x: 3, z: 4}\nc: {<<: [*a, *b], w: 5}\n",
    "a list of merges that merge": "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, *a, {q: 1}], y: 4}\n",
    "a merge of a mapping written there": "a: {<<: {x: 1, y: 2}, x: 3}\n",
    "merges at two depths": "a: &a {in: &in {x: 1}, y: 2}\nb: {<<: *a, in: {<<: *in, x: 5}}\n",
    "the same key in two mappings": "a: {x: 1}\nb: {x: 2}\nc: [{x: 3}, {x: 4}]\n",
    "1 and '1'": "a: {1: x, '1': y}\n",
}


@pytest.mark.parametrize("text", MERGED.values(), ids=MERGED)
def test_merges_are_read_as_dvc_reads_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    values = read_values(tmp_path / "config.yaml")
    assert values == parse_yaml(text, "config.yaml")
    assert "<<" not in str(values)


TWICE = {
    "at the top": ("x: 1\ny: 2\nx: 3\n", "line 3: the key 'x' is given twice, first in line 1; keep one"),
    "of equal values": ("x: 1\nx: 1\n", "line 2: the key 'x' is given twice, first in line 1"),
    "in a section": ("a:\n  x: 1\n  x: 2\n", "line 3: the key 'x' is given twice, first in line 2"),
    "in a list": ("a:\n- b: 1\n- x: 1\n  x: 2\n", "line 4: the key 'x' is given twice, first in line 3"),
    "far down": ("a: {b: [{c: {d: {e: [[{x: 1, x: 2}]]}}}]}\n", "line 1: the key 'x' is given twice"),
    "in what is merged": ("a: &a {x: 1, x: 2}\nb: {<<: *a}\n", "line 1: the key 'x' is given twice"),
    "in a mapping written into a merge": ("a: {<<: {x: 1, x: 2}}\n", "line 1: the key 'x' is given twice"),
    "in a list of merges": ("a: {<<: [{y: 1}, {x: 1, x: 2}]}\n", "line 1: the key 'x' is given twice"),
    "beside a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n  x: 3\n", "line 5: the key 'x' is given twice, first in line 4"),
    "of a merge that merges": ("a: &a {x: 1}\nb: &b {<<: *a, x: 2, x: 3}\nc: {<<: *b}\n", "line 2: the key 'x' is given twice"),
    "two merges": (
        "a: &a {x: 1}\nb: {<<: *a, <<: *a}\n",
        "line 2: the key '<<' is given twice, first in line 2; merge several mappings as a list",
    ),
    "written in two ways": ("a: {1: x, 0x1: y}\n", "line 1: the key '0x1' is given twice"),
    "in quotes and without": ("a: {x: 1, 'x': 2}\n", "line 1: the key 'x' is given twice"),
    "in a key": ("? {x: 1, x: 2}\n: 1\n", "line 1: the key 'x' is given twice"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_key_that_one_mapping_gives_twice_is_refused_at_every_depth(name: str, tmp_path: Path) -> None:
    text, said = TWICE[name]
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UnreadableConfig) as caught:
        read_values(tmp_path / "config.yaml")
    assert said in str(caught.value)
