"""The judge behind a server: what is asked and read, what is asked again and when, what is an error; and against vLLM's real server."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import re
import socket
import subprocess
import time
from email.utils import formatdate
from pathlib import Path

import chat_server
import httpx2
import numpy as np
import polars as pl
import pytest
from PIL import Image
from published import job, read_sets

from unime import artifacts, backbones, judge, prompts
from unime import config as config_module
from unime.config import ConfigError
from unime.data.images import Decoding
from unime.data.items import Items
from unime.judge import Question, openai_backend
from unime.judge.openai_backend import OpenaiJudge, ServerError
from unime.judge.transformers_backend import TransformersJudge

SETS = ["NanoColor", "NanoCaption_i2t", "NanoEdit"]  # a text, an image, both
PYTHON = os.environ.get("UNIME_VLLM_PYTHON", "")


@pytest.fixture(scope="module")
def data(suite: Path, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    items, pairs, _ = read_sets(suite, SETS, "original", 12, 0, Decoding.of(config.data), "fail", job(folder))
    return Items(items, Decoding.of(config.data)), pairs


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openai_backend, "PAUSE", 0.01)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with chat_server.running() as server:
        yield server


def questions(pairs: pl.DataFrame, count: int = 2, candidates: int = 5) -> list[Question]:
    found = []
    for name in pairs["dataset"].unique(maintain_order=True):
        own = pairs.filter(pl.col("dataset") == name)
        pool = own["positive"].unique(maintain_order=True).to_list()[:candidates]
        found += [Question(query, tuple(pool)) for query in own["query"].unique(maintain_order=True).to_list()[:count]]
    return found


def opened(config, items: Items, url: str, image_size: int = 0, form: str = "unime", **settings: object) -> OpenaiJudge:
    values = {"url": url, "retries": 2, "timeout": 5.0, "in_flight": 4} | settings
    return OpenaiJudge(items, config.judge.openai.model_copy(update=values), image_size, logging.getLogger("test"), form)


@pytest.mark.parametrize("form", ["unime", "public"])
def test_every_pair_is_asked_once_as_the_judges_turn_and_its_words_are_read(form, data, config, chat, caplog):
    items, pairs = data
    asked = questions(pairs)
    with caplog.at_level(logging.INFO):
        found = opened(config, items, chat.url, form=form).answers(asked)
    said = {str(body["messages"][0]["content"]): body for body in chat.asked}
    assert len(said) == len(chat.asked) == sum(len(question.candidates) for question in asked)
    for question, rows in zip(asked, found, strict=True):
        assert rows.shape == (len(question.candidates), 2) and rows.dtype == np.float32
        for candidate, row in zip(question.candidates, rows, strict=True):
            content = []
            for piece in prompts.judge_turn(items[question.query].parts, items[candidate].parts, form):
                content.append({"type": "text", "text": piece} if isinstance(piece, str) else piece)
            (body,) = [body for body in chat.asked if same(body["messages"][0]["content"], content)]
            yes, no = chat_server.logits(body["messages"][0]["content"])
            assert row[0] - row[1] == pytest.approx(yes - no, abs=1e-5) and (row < 0).all()
    assert chat.most > 1, "several requests are in flight"
    assert re.search(r"openai: 30 pairs in .* s, .* a second, 0 requests repeated; 1920 of 3000 tokens", caplog.text)


def same(sent: list[dict], wanted: list) -> bool:
    """Texts are equal, and images are, pixel by pixel."""
    if len(sent) != len(wanted):
        return False
    for one, other in zip(sent, wanted, strict=True):
        if isinstance(other, dict):
            if one != other:
                return False
        elif one["type"] != "image_url" or picture(one).tobytes() != other.tobytes():
            return False
    return True


def picture(part: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))))


def test_images_are_squashed_before_they_are_sent(data, config, chat):
    items, pairs = data
    opened(config, items, chat.url, image_size=28).answers(questions(pairs.filter(pl.col("dataset") == "NanoEdit"), 1, 2))
    shown = [part for body in chat.asked for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(shown) == 4 and {picture(part).size for part in shown} == {(28, 28)}


@pytest.mark.parametrize("code", [429, 500, 503, 408])
def test_a_busy_server_is_asked_again(code: int, data, config, chat, caplog):
    items, pairs = data
    asked = questions(pairs, 1)
    wanted = opened(config, items, chat.url).answers(asked)
    chat.busy = [code, code]
    with caplog.at_level(logging.INFO):
        found = opened(config, items, chat.url).answers(asked)
    assert np.array_equal(np.concatenate(found), np.concatenate(wanted)) and "2 requests repeated" in caplog.text


def test_retry_after_is_honoured(data, config, chat):
    items, pairs = data
    chat.busy, chat.after = [429], "1"
    opened(config, items, chat.url, in_flight=1).answers(questions(pairs, 1, 1)[:1])
    assert chat.times[1] - chat.times[0] >= 1.0
    assert openai_backend.retry_after("7") == 7 and openai_backend.retry_after("soon") is None
    assert 50 < openai_backend.retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_a_silent_server_is_asked_again_and_then_named(data, config, chat):
    items, pairs = data
    (question, *_) = questions(pairs, 1, 1)
    chat.hang = [2.0]
    assert opened(config, items, chat.url, timeout=0.3).answers([question])[0].shape == (1, 2) and len(chat.times) == 2
    chat.hang = [2.0] * 3
    with pytest.raises(
        ServerError, match=rf"query {question.query}, candidate {question.candidates[0]}: .* 3 attempts .*judge.openai.timeout"
    ):
        opened(config, items, chat.url, timeout=0.3).answers([question])


def test_a_server_that_stays_busy_ends_the_run_at_once_in_all_threads(data, config, chat, monkeypatch: pytest.MonkeyPatch):
    items, pairs = data
    monkeypatch.setattr(openai_backend, "PAUSE", 30.0)
    chat.busy = [401] + [503] * 100
    begun = time.monotonic()
    with pytest.raises(ServerError, match="answers 401"):
        opened(config, items, chat.url, in_flight=8).answers(questions(pairs))
    assert time.monotonic() - begun < 10, "nobody waits its pause out"


def test_a_missing_word_is_an_error_that_names_the_pair_and_the_remedy(data, config, chat):
    items, pairs = data
    (question, *_) = questions(pairs, 1, 1)
    chat.lacks = "No"
    pair = f"query {question.query}, candidate {question.candidates[0]}"
    with pytest.raises(ServerError, match=rf"{pair}: 'No' is not among the 3 likeliest words .* raise judge.openai.top_logprobs"):
        opened(config, items, chat.url).answers([question])
    chat.plain = True
    with pytest.raises(ServerError, match=rf"{pair}: .*no log-probabilities"):
        opened(config, items, chat.url).answers([question])
    assert len(chat.asked) == 2, "what cannot get better is not asked again"


def test_words_by_token_id_are_found_whatever_their_rank(data, config, chat):
    items, pairs = data
    asked = questions(pairs, 1)
    wanted = opened(config, items, chat.url).answers(asked)
    chat.asked.clear()
    found = opened(config, items, chat.url, top_logprobs=2, token_ids=True).answers(asked)
    assert np.array_equal(np.concatenate(found), np.concatenate(wanted))
    assert all(body["logprob_token_ids"] == [11, 12] and body["return_tokens_as_token_ids"] for body in chat.asked)


def test_the_key_comes_from_the_environment(data, config, chat, monkeypatch: pytest.MonkeyPatch):
    items, pairs = data
    chat.key = "secret"
    with pytest.raises(ServerError, match=r"answers 401: .*Incorrect API key.*OPENAI_API_KEY"):
        opened(config, items, chat.url).answers(questions(pairs, 1, 1))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert len(opened(config, items, chat.url).answers(questions(pairs, 1, 1))) == 3


def test_an_address_in_the_environment_that_is_another_than_the_configurations_is_refused(data, config, chat, monkeypatch):
    items, pairs = data
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:hidden@127.0.0.1:9/v1?token=hidden")
    with pytest.raises(ConfigError, match=r"OPENAI_BASE_URL is http://127.0.0.1:9/v1, .*judge.openai.url is http.*unset") as refused:
        opened(config, items, chat.url)
    assert "hidden" not in str(refused.value) and not chat.times
    for same_address in (chat.url, chat.url + "/", ""):
        monkeypatch.setenv("OPENAI_BASE_URL", same_address)
        assert len(opened(config, items, chat.url).answers(questions(pairs, 1, 1))) == 3


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://user:hidden@127.0.0.1/v1", "a user or a password"),
        ("http://hidden@127.0.0.1/v1", "a user or a password"),
        ("http://127.0.0.1/v1?key=hidden", "a query or a fragment"),
        ("http://127.0.0.1/v1/", "without a slash"),
        ("http://127.0.0.1:99999/v1", "its port cannot be read"),
        ("http://127.0.0.1:port/v1", "its port cannot be read"),
        ("http://[::1/v1", "its host or its port"),
        ("http:///v1", "a host and a path"),
        ("http://a..b/v1", "a host and a path"),
        ("ftp://127.0.0.1/v1", "not http:// or https://"),
        ("http://127.0.0.1 /v1", "a blank"),
        ("http://127.0.0.1/v1\n", "a control character"),
    ],
)
def test_a_url_that_is_more_or_less_than_an_address_is_refused_and_no_password_shown(url: str, why: str, config):
    values = config.model_dump(mode="json")
    values["judge"]["openai"]["url"] = url
    with pytest.raises(ConfigError, match=f"judge.openai.url: .*{re.escape(why)}") as refused:
        config_module.parse(values)
    assert "hidden" not in str(refused.value)


def test_a_notebook_with_an_event_loop_of_its_own_can_ask(data, config, chat):
    items, pairs = data

    async def cell():
        return opened(config, items, chat.url).answers(questions(pairs, 1, 1))

    assert len(asyncio.run(cell())) == 3


def test_the_rate_and_the_number_in_flight_are_kept(data, config, chat):
    items, pairs = data
    opened(config, items, chat.url, rate=20.0).answers(questions(pairs, 1, 4))
    assert chat.times[-1] - chat.times[0] > 0.9 * (len(chat.times) - 1) / 20  # single gaps are the machine's as well
    chat.pause, chat.most = 0.05, 0
    opened(config, items, chat.url, in_flight=3).answers(questions(pairs, 1))
    assert 1 < chat.most <= 3


def test_a_failed_run_goes_on_from_its_shards(data, config, chat, tmp_path: Path):
    items, pairs = data
    pairs = pairs.filter(pl.col("dataset") == "NanoEdit")
    rows = [(pair, one, rank, 0.5) for pair, positive in pairs.select("pair", "positive").iter_rows() for rank, one in
            enumerate(pairs.filter(pl.col("positive") != positive)["positive"].unique(maintain_order=True)[:3])]  # fmt: skip
    hits = pl.DataFrame(rows, schema=artifacts.HITS, orient="row")

    def run(scratch: Path) -> pl.DataFrame:
        backend = opened(config, items, chat.url, retries=0, in_flight=1)
        return judge.judge(pairs, hits, backend, mode="exact", shard=3, scratch=scratch, track=job(scratch).track)

    def said() -> list[str]:
        found = [str(body["messages"]) for body in chat.asked]
        chat.asked.clear()
        return found

    whole = run(tmp_path / "whole")
    every = said()
    chat.busy = [0] * 20 + [503]  # 0: an answer
    with pytest.raises(ServerError, match="whole shards are kept"):
        run(tmp_path / "cut")
    assert said() == every[:20] and len(list((tmp_path / "cut").glob("judge-*"))) == 1
    assert run(tmp_path / "cut").equals(whole)
    rest = said()
    assert rest == every[-len(rest) :] and len(every) - 20 < len(rest) < len(every)


def test_the_published_mode_is_refused(config) -> None:
    values = config.model_dump(mode="json")
    values["judge"] |= {"backend": "openai", "mode": "published"}
    with pytest.raises(
        ConfigError, match="judge: mode 'published' rounds and penalizes logits, and backend 'openai' gets log-probabilities"
    ):
        config_module.parse(values)


@pytest.fixture(scope="module")
def served(nano: Path, tmp_path_factory):
    """vLLM's own server on the nano MLLM; the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        "--dtype float32 --max-model-len 2048 --enforce-eager --block-size 32 --kv-cache-memory-bytes 268435456 --served-model-name nano"
    )
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(nano), "--host", "127.0.0.1", "--port", str(port)]
    command += [*options.split(), "--enable-prompt-tokens-details"]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                assert server.poll() is None, log.read_text()[-6000:]
                try:
                    if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                except httpx2.TransportError:
                    time.sleep(0.5)
            yield f"{url}/v1"
        finally:
            server.terminate()


@pytest.mark.vllm
@pytest.mark.skipif(not PYTHON, reason="UNIME_VLLM_PYTHON names no python with vLLM; tests/vllm_env.sh makes one")
@pytest.mark.parametrize("token_ids", [False, True])
def test_vllms_server_gives_the_transformers_backends_scores(token_ids: bool, served: str, data, config, nano: Path, caplog):
    items, pairs = data
    asked = questions(pairs, 3, 8)
    with caplog.at_level(logging.INFO):
        found = np.concatenate(opened(config, items, served, model="nano", timeout=120.0, token_ids=token_ids).answers(asked))
    wanted = np.concatenate(TransformersJudge(backbones.load(nano, models=config.models), items, 8192).answers(asked))
    scores = [judge.score(rows[:, 0], rows[:, 1], "exact") for rows in (found, wanted)]
    worst = np.abs(scores[0] - scores[1]).max()
    print(f"{len(found)} pairs, by token ids: {token_ids}; scores differ by {worst:.1e}; {caplog.messages[-1]}")
    assert worst < 1e-3 and scores[1].std() > 0.05
    read, cached = map(int, re.search(r"(\d+) of (\d+) tokens", caplog.messages[-1]).group(2, 1))
    assert 0 < cached < read
