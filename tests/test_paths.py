"""Folders that config.yaml may name: what passes through Snakemake, DVC and the readers is accepted, the rest is refused with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT, Checkout, new_checkout
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from unime import backbones, config
from unime.config.types import Folder, OwnFolder

VALUES = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))

KINDS = {
    "Latin, composed": unicodedata.normalize("NFC", "modèles/é"),
    "Latin, as macOS writes it": unicodedata.normalize("NFD", "modèles/é"),
    "Hindi": "मॉडल/हिन्दी",
    "Thai": "โมเดล/ภาษาไทย",
    "Hebrew with points": "מוֹדֶל",
    "Persian with a joiner": "مدل\u200cها",
    "Korean in parts": unicodedata.normalize("NFD", "모델"),
    "an emoji of several": "👩\u200d🔬 models",
    "brackets": "models (copy 2)/final",
    "punctuation": "R&D, it's a+b@c=d#e",
    "more punctuation": '50%; a:b!c|d>e;f^g~h"i]j',
    "a backslash": "old\\models",
    "a hidden folder": ".models/.x",
    "a dash first": "-models",
    "two blanks": "my  models/a b",
    "a full stop last": "models./x.",
}
"""Kinds of names that people and their systems give to folders."""

EACH = pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)


@EACH
@pytest.mark.parametrize("above", ["", "/srv/", "../", "../../"])
def test_names_of_every_kind_are_accepted_in_the_project_beside_it_and_from_the_root(name: str, above: str) -> None:
    for kind in (Folder, OwnFolder):
        assert TypeAdapter(kind).validate_python(above + name) == above + name


REFUSED = {
    "": "'' is no path; name a folder",
    "models//x": "one slash between two names",
    "models/": "none at the end",
    "/": "none at the end",
    "./models": "has a part '.'",
    "models/..": "has a part '..'",
    "..": "has a part '..'",
    "../..": "has a part '..'",
    "../models/../x": "has a part '..'",
    "/srv/../x": "has a part '..'",
    "models/{set}": "has '{' in it: Snakemake reads braces as a wildcard; rename the folder, or name a link to it",
    "models/x}": "has '}' in it: Snakemake",
    "${HOME}/models": "has '$' in it: a shell fills in what follows it and the pipeline does not, so write the path itself",
    "models/`id`": "has '`' in it: a shell runs",
    "models/a\nb": "has '\\n' in it: a control character",
    "models/a\x7fb": "has '\\x7f' in it: a control character",
    "models/a\u2028b": "has '\\u2028' in it: a line separator",
    "models/a\ud800b": "has '\\ud800' in it: half of a character",
    "data/[x]": "has '[' in it: the reader of tables takes it for a pattern",
    "data/x?": "has '?' in it",
    "data/**": "has '*' in it",
    "models/<a>": "has '<' in it: Snakemake reads <name> as a path of its own",
    "s3:models": "begins with a name and a colon, which DVC reads as the address of a server; rename the folder",
    "remote:models/x": "begins with a name and a colon",
    "~/models": "begins with '~', which only a shell knows; write the home folder's own path, from /",
    "models ": "has a blank before or after it",
    "\u00a0models": "has a blank before or after it",
    "models/weights.dvc": "has the name of one of DVC's own files",
    "models/dvc.yaml": "has the name of one of DVC's own files",
    "models/" + "x" * 256: "has a name of 256 characters; names of up to 255 bytes are possible",
    "models/" + "ท" * 86: "has a name of 86 characters; names of up to 255 bytes are possible",
    "/a" * 1025: "has 2,050 characters; paths of up to 2,048 bytes are possible",
}


@pytest.mark.parametrize("path", REFUSED, ids=[repr(path)[:30] for path in REFUSED])
def test_what_breaks_a_tool_is_refused_with_the_value_and_the_remedy(path: str) -> None:
    for kind in (Folder, OwnFolder):
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(kind).validate_python(path)
        said = caught.value.errors()[0]["msg"]
        assert REFUSED[path] in said and (repr(path) in said or repr(path[:40]) in said) and len(said) < 2500


def test_a_way_back_into_the_project_or_higher_than_needed_is_refused_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "a" / "project"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    check = TypeAdapter(OwnFolder).validate_python
    with pytest.raises(ValidationError, match="lies in the project; write its path from the project's root: 'results/x'"):
        check("../project/results/x")
    with pytest.raises(ValidationError, match=r"goes further up than it needs to; write '\.\./shared'"):
        check("../../a/shared")
    assert check("../../shared") == "../../shared"


def with_value(**changes: object) -> dict:
    """The repository's configuration with these values, `__` between the names of a key."""
    values = yaml.safe_load(yaml.safe_dump(VALUES))
    for key, value in changes.items():
        *above, last = key.split("__")
        section = values
        for part in above:
            section = section[part]
        section[last] = value
    return values


def test_what_the_run_fetches_stays_in_the_project() -> None:
    config.parse(with_value(data__root="../shared/data"))
    with pytest.raises(
        config.ConfigError, match=r"data.root '../shared/data' lies outside the project, and MSCOCO would be fetched into it"
    ):
        config.parse(with_value(data__root="../shared/data", fetch__train_sets=["MSCOCO"]))


def test_only_keys_that_are_folders_are_said_to_name_one() -> None:
    """judge.openai.model is a name on a server, repositories are names on the Hub, a row of the table may be called anything."""
    path = "models/nano-mllm"
    values = with_value(judge__openai__model=path, fetch__copies=path, evaluate__compare={"UniME-V2": path})
    values["fetch"]["models"] = {"other": {"repo": path, "revision": path}}
    found = config.keys_of(config.parse(values), path)
    judges = [f"judge.models.{name}.model" for name in values["judge"]["models"]]
    exports = [f"export.{name}" for name in values["export"]]
    assert found == ["fetch.copies", "models.base", "models.judge", "models.reranker", "embed.model", *judges, *exports]
    assert config.keys_of(config.parse(values), f"{path}/config.json") == found
    assert config.keys_of(config.parse(values), f"{path}-2") == []
    assert config.keys_of(config.parse(values), "data/nano/train") == ["data.root"]


@EACH
def test_models_are_read_from_folders_of_every_kind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano: Path) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for above in ("", "../"):
        model = Path(above + name) / "model"
        model.parent.mkdir(parents=True, exist_ok=True)
        model.symlink_to(nano)
        parsed = config.parse(with_value(models__base=str(model), embed__model=str(model), export={}))
        assert backbones.load(model, models=parsed.models).model.config.model_type == "qwen2_vl"


def own_rows(root: Path) -> None:
    """A training set of one's own with two pictures."""
    folder = root / "train" / "Mine"
    folder.mkdir(parents=True)
    rows = []
    for number in range(4):
        Image.new("RGB", (40, 40), (number * 50, 90, 20)).save(folder / f"{number}.png")
        rows.append(
            json.dumps({"query_text": f"What is in {number}?", "query_image": f"{number}.png", "positive_text": f"square {number}"})
        )
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")


ALL = "/".join(KINDS.values())


@pytest.mark.slow
@pytest.mark.parametrize("above", ["", "../shared/"])
def test_snakemake_and_dvc_follow_folders_of_every_kind(above: str, tmp_path: Path) -> None:
    """The real tools on the real rules: what they read is found, a change in it is seen, and its absence is told by key and folder."""
    root, model = f"{above}{ALL}/data", f"{above}{ALL}/weights"
    values = with_value(data__root=root, data__train_sets=["Mine"], models__base=model, embed__model=model, export={})
    for training in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        values["train"][training]["batch"] = {"max": 16}  # the set has few rows
    checkout: Checkout = new_checkout(tmp_path / "project", values)
    own_rows(checkout.root / root)
    shutil.copytree(ROOT / "assets/nano-mllm", checkout.root / model)
    checkout.sh("python -m snakemake --cores 1 results/rows/train/Mine")
    assert "data_train@Mine" in checkout.lock()
    assert os.path.join(root, "train") in [dep["path"] for dep in checkout.lock()["data_train@Mine"]["deps"]]
    assert "data_train@Mine" not in checkout.plan("results/rows/train/Mine")
    assert "up to date" in checkout.sh("dvc repro data_train@Mine")
    with (checkout.root / root / "train/Mine/rows.jsonl").open("a") as file:
        file.write(json.dumps({"query_text": "one more?", "positive_text": "yes"}) + "\n")
    assert "data_train@Mine" in checkout.plan("results/rows/train/Mine")
    assert "Running stage 'data_train@Mine'" in checkout.sh("dvc repro data_train@Mine")
    assert "train_in_batch" in checkout.plan("results/train/in_batch")
    shutil.rmtree(checkout.root / model)
    said = checkout.sh("python -m snakemake -n results/train/in_batch", code=1)
    assert f"models.base names {model}, which is not there" in said and "correct models.base and embed.model in config.yaml" in said
