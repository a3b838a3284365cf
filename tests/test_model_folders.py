"""Model folders: what is missing, damaged or does not fit is named with its folder, and every published form of a file is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from unime import backbones
from unime.backbones import ModelError

MODELS = families.MODELS


@pytest.fixture
def copy(nano, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(nano, folder)
    return folder


@pytest.fixture
def other(family, tmp_path):
    """A copy of a family's folder."""

    def made(name):
        shutil.copytree(family(name), tmp_path / name)
        return tmp_path / name

    return made


def changed(folder, file: str, **values) -> None:
    """Put other values into a JSON file; `a__b` is b in a."""
    settings = json.loads((folder / file).read_text())
    for name, value in values.items():
        place, *parts = settings, *name.split("__")
        for part in parts[:-1]:
            place = place[part]
        place[parts[-1]] = value
    (folder / file).write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_missing_file_is_named_with_its_folder(copy, name):
    for spare in ("vocab.json", "merges.txt"):
        (copy / spare).unlink(missing_ok=True)
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name) as caught:
        backbones.load(copy, models=MODELS)
    assert str(copy) in str(caught.value) and "missing" in str(caught.value) and "copy the whole model folder" in str(caught.value)


def test_a_missing_chat_template_is_named_and_its_older_place_is_read(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template", None) or (copy / "chat_template.jinja").read_text()
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="chat_template"):
        backbones.load(copy, models=MODELS)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert backbones.load(copy, models=MODELS).chat_prompt(["a"]).text.endswith("assistant\n")


def test_damaged_weights_are_named(copy):
    whole = (copy / "model.safetensors").read_bytes()
    for torn in (whole[: len(whole) // 2], b"\x00" * 100, b""):
        (copy / "model.safetensors").write_bytes(torn)
        with pytest.raises(ModelError, match="model.safetensors is damaged") as caught:
            backbones.load(copy, models=MODELS)
        assert str(copy) in str(caught.value)


def test_weights_that_may_not_be_read_are_not_called_damaged(copy):
    """As a user who is not root, to whom nothing is forbidden."""
    (copy / "model.safetensors").chmod(0)
    lines = ["import os, sys", "from pathlib import Path", "from unime.backbones import files", "os.chdir(sys.argv[1])"]
    if os.geteuid() == 0:
        lines.append("os.setuid(65534)")  # nobody, who may not look into the folders above, but stands in this one
    lines.append("files.check_tensors(Path('.'), 'model.safetensors')")
    command = [sys.executable, "-c", "\n".join(lines), str(copy)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "ModelError: .: model.safetensors cannot be read (no permission); chmod a+r" in done.stderr, done.stderr


def test_a_missing_tensor_is_an_error_and_not_random_weights(copy):
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in sorted(tensors) if "q_proj" in n)
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 tensors"):
        backbones.load(copy, models=MODELS)


def test_weights_of_another_size_are_an_error(copy):
    tensors = load_file(copy / "model.safetensors")
    name = next(n for n in sorted(tensors) if "q_proj.weight" in n)
    tensors[name] = tensors[name][:-8].contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit config.json"):
        backbones.load(copy, models=MODELS)


def test_shards_are_read_and_a_missing_one_is_named(copy):
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    place = {n: f"model-0000{1 + (i >= len(names) // 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(place.values()):
        save_file({n: tensors[n] for n in names if place[n] == file}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    backbones.load(copy, models=MODELS)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors is missing"):
        backbones.load(copy, models=MODELS)


def test_unusable_folders_are_named(copy, tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        backbones.load(tmp_path / "absent", models=MODELS)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": "qwen9"}))
    with pytest.raises(ModelError, match="model_type 'qwen9'; known: internvl, llava_onevision, qwen2_5_vl, qwen2_vl"):
        backbones.load(copy, models=MODELS)
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is not JSON"):
        backbones.load(copy, models=MODELS)


def test_an_absent_gpu_is_named(nano):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="torch sees no GPU"):
        backbones.load(nano, models=SimpleNamespace(**vars(MODELS) | {"device": "cuda"}))


@pytest.mark.parametrize("name", families.NAMES)
@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer_config.json", "preprocessor_config.json", "chat_template.json"]
)
def test_every_familys_missing_files_are_named(name, file, other):
    folder = other(name)
    (folder / file).unlink()
    with pytest.raises(ModelError, match=file.split(".")[0]) as caught:
        backbones.load(folder, models=MODELS)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", families.NAMES)
def test_a_tokenizer_of_two_files_gives_the_same_tokens(name, other):
    folder = other(name)
    text = families.TEMPLATES[name][:60] + "".join(families.MARKS[name]) + "Yes, a small red ring"
    tokenizer = backbones.load(folder, models=MODELS).tokenizer
    whole = tokenizer.encode(text)
    (folder / "tokenizer.json").unlink()
    marks = {str(id): {"content": token.content, "special": True} for id, token in tokenizer.added_tokens_decoder.items()}
    changed(folder, "tokenizer_config.json", added_tokens_decoder=marks)
    assert backbones.load(folder, models=MODELS).tokenizer.encode(text) == whole


@pytest.mark.parametrize("name", families.NAMES)
def test_image_settings_are_read_where_newer_transformers_put_them(name, other):
    folder = other(name)
    plain = backbones.load(folder, models=MODELS)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": settings["processor_class"]}))
    with pytest.raises(ModelError, match="preprocessor_config.json .or an image_processor in processor_config.json. is missing"):
        backbones.load(folder, models=MODELS)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    again = backbones.load(folder, models=MODELS)
    picture = families.image(130, 70)
    assert torch.equal(again._picture(picture).pixels, plain._picture(picture).pixels)


@pytest.mark.parametrize("name", families.NAMES)
def test_weights_under_older_and_current_names_are_read(name, other):
    """Published folders were written before the language model got a name of its own; so were these, as transformers still does."""
    folder = other(name)
    older, plain = load_file(folder / "model.safetensors"), backbones.load(folder, models=MODELS).model
    tied = {"lm_head.weight"} if name == "qwen2_vl" else set()
    current = {key: value for key, value in plain.state_dict().items() if key not in tied}
    assert len(older) == len(current) and set(older) - set(current)
    save_file(current, folder / "model.safetensors", metadata={"format": "pt"})
    found = backbones.load(folder, models=MODELS).model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in plain.state_dict().items())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_a_config_of_the_published_form_is_read(name, other):
    """One level for the language model, and rotary positions as they were written then."""
    folder = other(name)
    wanted = backbones.load(folder, models=MODELS)
    settings = json.loads((folder / "config.json").read_text())
    text = settings.pop("text_config")
    for late in ("model_type", "layer_types"):
        text.pop(late)
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    settings["vision_config"].pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(text | settings | {"torch_dtype": "bfloat16"}))
    found = backbones.load(folder, models=MODELS)
    prompts = [found.chat_prompt(["Query:", families.image(90, 60), "a ring"])]
    with torch.no_grad():
        assert torch.equal(found.embed(found.collate(prompts)), wanted.embed(wanted.collate(prompts)))


BOUNDS = {"longest_edge": 36 * 784, "shortest_edge": 784}
FAST = dict.fromkeys(["crop_size", "data_format", "device", "disable_grouping", "input_data_format", "pad_size", "return_tensors"])
# How transformers has written Qwen2-VL's image settings -> what differs from the published file, which has min_pixels and max_pixels alone
FORMS: dict[str, dict[str, object]] = {
    "published": {},
    "4.45": {"size": {"min_pixels": 784, "max_pixels": 36 * 784}},
    "4.49": {"size": BOUNDS},
    "4.50, where size was not kept in step": {"size": {"longest_edge": 12845056, "shortest_edge": 3136}},
    "4.53": {"size": BOUNDS, "image_processor_type": "Qwen2VLImageProcessorFast", **FAST},
    "4.57": {"size": BOUNDS, "image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": None, "max_pixels": None, **FAST},
    "Qwen2.5-VL's first": {"image_processor_type": "Qwen2_5_VLImageProcessor"},
}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_qwens_image_settings_gives_the_same_pixels(form, name, other):
    folder = other(name)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    for default in ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "resample", "rescale_factor"):
        settings.pop(default)  # the published file does not have them
    shapes = [(90, 60), (301, 97), (500, 480), (20, 20)]  # the last two are shrunk and enlarged
    wanted = backbones.load(folder, models=MODELS, weights=False)
    file.write_text(json.dumps(settings | FORMS[form]))
    found = backbones.load(folder, models=MODELS, weights=False)
    for width, height in shapes:
        picture = families.image(width, height)
        assert torch.equal(found._picture(picture).pixels, wanted._picture(picture).pixels)
        assert found._tokens(height, width) == wanted._picture(picture).tokens


@pytest.mark.parametrize("name", families.NAMES)
def test_a_template_among_several_is_read_as_transformers_does(name, other):
    folder = other(name)
    (folder / "chat_template.json").unlink()
    several = [{"name": "tool_use", "template": "{{ none }}"}, {"name": "default", "template": families.TEMPLATES[name]}]
    changed(folder, "tokenizer_config.json", chat_template=several)
    theirs = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "text", "text": "a ring"}]}]
    wanted = theirs.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert backbones.load(folder, models=MODELS, weights=False).chat_prompt(["a ring"]).text == wanted


@pytest.mark.parametrize("name", families.NAMES)
@pytest.mark.parametrize("tied", [True, False, None], ids=["tied", "not tied", "not stated"])
def test_a_head_in_the_weights_is_the_models_whatever_the_config_says_of_tied_words(tied, name, other):
    """InternVL3's folders have a head of their own, and say nothing of it; the class takes the words to be tied then."""
    folder = other(name)
    key = families.older(name, "lm_head.weight")
    stored = load_file(folder / "model.safetensors")
    words = next(tensor for name, tensor in stored.items() if name.endswith("embed_tokens.weight"))
    stored[key] = words.flip(0).contiguous()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    for place in (settings, settings["text_config"]):
        place.pop("tie_word_embeddings", None)
        if tied is not None:
            place["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(settings))
    opened = backbones.load(folder, models=MODELS)
    assert torch.equal(opened.head.weight, stored[key]) and torch.equal(opened.core.get_input_embeddings().weight, words)


@pytest.mark.parametrize("name", families.NAMES)
def test_rotary_frequencies_that_were_saved_with_the_weights_are_no_leftover(name, other):
    folder = other(name)
    stored = load_file(folder / "model.safetensors")
    layer = families.older(name, "model.language_model.layers.0.self_attn.rotary_emb.inv_freq")
    save_file(stored | {layer: torch.ones(16)}, folder / "model.safetensors", metadata={"format": "pt"})
    backbones.load(folder, models=MODELS)


def test_pickles_are_refused_with_the_remedy(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights in pytorch_model.bin are a pickle.*get model.safetensors"):
        backbones.load(copy, models=MODELS)


@pytest.mark.parametrize("name", families.NAMES)
def test_a_language_model_with_a_window_is_refused(name, other):
    folder = other(name)
    settings = json.loads((folder / "config.json").read_text())["text_config"]
    assert settings["use_sliding_window"] is False  # a width alone does no harm: the folder opened so far
    kinds = ["full_attention", "sliding_attention"]
    changed(folder, "config.json", text_config__use_sliding_window=True, text_config__layer_types=kinds, text_config__sliding_window=32)
    with pytest.raises(ModelError, match="sliding_attention layers .a window of 32 tokens. cannot share prefixes; use a model with full"):
        backbones.load(folder, models=MODELS)


@pytest.mark.parametrize("name", families.NAMES)
def test_parts_of_two_models_in_one_folder_are_named(name, other):
    folder = other(name)
    key = "image_token_index" if name == "llava_onevision" else "image_token_id"
    changed(folder, "config.json", **{key: 3})
    with pytest.raises(ModelError, match=f"config.json has image token 3, its tokenizer has {families.IMAGE[name]} at"):
        backbones.load(folder, models=MODELS)


@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_tiles_that_the_model_does_not_have_are_named(name, other):
    folder = other(name)
    changed(folder, "preprocessor_config.json", size={"height": 28, "width": 28})
    with pytest.raises(ModelError, match="preprocessor_config.json cuts tiles of .*28.*config.json has .*56"):
        backbones.load(folder, models=MODELS)
