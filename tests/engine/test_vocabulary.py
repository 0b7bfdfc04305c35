"""A tokenizer with more tokens than the model: what it cannot read is refused before it is read."""

from __future__ import annotations

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ModelError
from mlxzo.engine.evaluation import Evaluator
from mlxzo.engine.session import open_session
from mlxzo.engine.side_by_side import SideBySide
from mlxzo.tasks.base import Example
from tests.tiny import tiny_folder, tiny_tokenizer

pytestmark = pytest.mark.device

LACKS = r"has 512 tokens and the model 300: it cannot read token \d+, '.+'"


@pytest.fixture
def config(data, tmp_path) -> RunConfig:
    folder = tiny_folder(tmp_path / "model", vocabulary=300)
    tiny_tokenizer(512).save(str(folder / "tokenizer.json"))
    return RunConfig(model=str(folder), task="custom", data=str(data)).resolved()


def test_data_with_a_token_beyond_the_embedding_is_refused_before_the_first_step(config):
    with pytest.raises(ModelError, match=LACKS):
        open_session(config, events.ignore)


def test_so_is_a_prompt(config):
    with pytest.raises(ModelError, match=LACKS):
        next(SideBySide(config, None).answer("What a terrible story", 4))


def test_so_is_a_prompt_that_an_evaluation_makes(config, tmp_path):
    tiny_tokenizer(300).save(str(tmp_path / "model" / "tokenizer.json"))
    session = open_session(config, events.ignore)
    session.loaded.tokenizer._tokenizer.add_tokens(["terrible"])
    with pytest.raises(ModelError, match="has 301 tokens and the model 300: it cannot read token 300, 'terrible'"):
        Evaluator(session).write("test", [Example("What a terrible story", ("!",), 0)])
