"""Zero-shot results on every task that a folder has data for, each answer checked by another computation.

    python -m bench.tasks --data DIR
    python -m bench.tasks --data DIR --models smollm2-135m --tasks squad copa --rows 500 --check 100

DIR holds a folder a task, named as the task, with train.jsonl, validation.jsonl and optionally test.jsonl in the public
field names. Measured is the test split, or where there is none the validation split.

The other computation takes mlx-lm's model as it is, one candidate at a time: the logits of its tokens behind mlx-lm's
own key-value cache of the prompt, the log-softmax in NumPy's float64, the mean over the candidate's tokens. Where the
model writes its answer, it is mlx-lm's own greedy generation, one prompt at a time. The first `--check` examples must
agree answer by answer: `disagree` counts those that do not, `ties` those among them whose best two scores differ by
less than 1e-4 (or logits, in writing).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from bench.report import emit, machine, table
from mlxzo.core.config import RunConfig
from mlxzo.core.events import ignore
from mlxzo.core.formatting import format_metric
from mlxzo.engine.evaluation import Evaluator, choose, majority_share, mean_metric
from mlxzo.engine.prefix_sharing import MAX_NEW_TOKENS
from mlxzo.engine.session import Session, fetch, load_base, load_data, make_session
from mlxzo.models.trainable import Trainable
from mlxzo.tasks.base import Example
from mlxzo.tasks.registry import get_task, task_names

_TIE = 1e-4


def measure(session: Session, split: str) -> tuple[list[str], dict[str, Any]]:
    """mlxzo's answers on a split, and the figures of them."""
    task, examples = session.data.task, getattr(session.data, split)
    evaluator = Evaluator(session)
    started = time.perf_counter()
    scored = evaluator.score(split, session.splits[split], lambda event: None)
    score_seconds = time.perf_counter() - started
    if task.writes:
        answers = evaluator.write(split, examples, lambda event: None)
    else:
        answers = choose(examples, scored.scores)
    figures = {
        "metric": task.metric,
        "value": mean_metric(task.metric, answers, examples),
        "more": {name: mean_metric(name, answers, examples) for name in task.more_metrics},
        "loss": scored.loss,
        "majority": majority_share(examples),
        "rows": len(examples),
        "truncated": sum(example.truncated for example in session.splits[split]),
        "score_seconds": score_seconds,
        "write_seconds": time.perf_counter() - started - score_seconds,
    }
    return answers, figures


def independent_answer(session: Session, example: Example) -> tuple[str, float]:
    """The answer by plain means, and how far the best choice is ahead of the next (of tokens: at its narrowest)."""
    model, tokenizer, longest = session.loaded.model, session.loaded.tokenizer, session.config.max_tokens
    if session.data.task.writes:
        tokens = _last(tokenizer.encode(example.prompt), longest - MAX_NEW_TOKENS, tokenizer)
        return _greedy(model, tokenizer, tokens)
    scores = []
    prompt = tokenizer.encode(example.prompt)
    endings = [tokenizer.encode(example.prompt + candidate)[len(prompt) :] for candidate in example.candidates]
    context = _last(prompt, longest + 1 - max(map(len, endings)), tokenizer)
    read = make_prompt_cache(model)
    if len(context) > 1:
        mx.eval(model(mx.array([context[:-1]]), cache=read))
    for ending in endings:
        tokens = mx.array([[context[-1], *ending[:-1]]])
        logits = np.array(model(tokens, cache=copy.deepcopy(read))[0].astype(mx.float32), np.float64)
        largest = logits.max(axis=1, keepdims=True)
        log_probabilities = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        scores.append(log_probabilities[np.arange(len(ending)), ending].mean())
    best, second = np.sort(scores)[:-3:-1]
    return example.candidates[int(np.argmax(scores))], float(best - second)


def _greedy(model: Any, tokenizer: Any, prompt: list[int]) -> tuple[str, float]:
    from mlx_lm.generate import generate_step

    written: list[int] = []
    narrowest = np.inf
    for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=MAX_NEW_TOKENS):
        second, best = np.partition(np.array(logprobs.astype(mx.float32)), -2)[-2:]
        narrowest = min(narrowest, float(best - second))
        if token in tokenizer.eos_token_ids:
            break
        written.append(int(token))
        if "\n" in tokenizer.decode(written):
            break
    return (tokenizer.decode(written) if written else "").split("\n")[0].strip(), narrowest


def _last(tokens: list[int], room: int, tokenizer: Any) -> list[int]:
    """The end of a prompt, after its beginning-of-text token if it has one."""
    if len(tokens) <= room:
        return tokens
    if tokens[0] == tokenizer.bos_token_id:
        return [tokens[0], *tokens[len(tokens) - room + 1 :]]
    return tokens[-room:]


def compare(session: Session, split: str, answers: Sequence[str], count: int) -> dict[str, int]:
    """How many of the first answers another computation does not give."""
    examples = getattr(session.data, split)[:count]
    disagree = ties = 0
    for example, answer in zip(examples, answers, strict=False):
        other, ahead = independent_answer(session, example)
        if other != answer:
            disagree += 1
            ties += ahead < _TIE
    return {"checked": len(examples), "disagree": disagree, "ties": ties}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder that holds one a task")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma-3-270m"])
    parser.add_argument("--tasks", nargs="+", help="only these (default: every task that DIR has a folder for)")
    parser.add_argument("--rows", type=int, default=1000, help="examples a task")
    parser.add_argument("--check", type=int, default=100, help="examples that are computed by other means as well")
    parser.add_argument("--max-tokens", type=int, default=1024)
    arguments = parser.parse_args()
    print(f"<!-- {machine()} -->")
    names = arguments.tasks or [name for name in task_names() if (arguments.data / name).is_dir()]
    lines = []
    for model in arguments.models:
        for name in names:
            config = RunConfig(
                model=model,
                # On the CPU half-precision products are slow, and both computations are of the same weights.
                dtype="float32" if mx.default_device() == mx.cpu else "auto",
                task=name,
                data=str(arguments.data / name),
                train_examples=1,
                validation_examples=arguments.rows,
                test_examples=arguments.rows,
                max_tokens=arguments.max_tokens,
            )
            inputs = fetch(config, load_data(config, ignore), ignore)
            session = make_session(inputs, load_base(inputs), Trainable(()), ignore)
            split = "test" if session.splits["test"] else "validation"
            answers, figures = measure(session, split)
            checked = compare(session, split, answers, arguments.check)
            emit("zero-shot", model=model, task=name, split=split, **figures, **checked)
            metric = figures["metric"]
            lines.append(
                [
                    model,
                    get_task(name).name,
                    f"{figures['rows']} {split}",
                    f"{metric} {format_metric(metric, figures['value'])}",
                    format_metric(metric, figures["majority"]),
                    f"{checked['checked'] - checked['disagree']} of {checked['checked']}",
                    f"{figures['score_seconds'] + figures['write_seconds']:.0f} s",
                ]
            )
    table(["model", "task", "rows", "zero-shot", "majority class", "agree with the other computation", "time"], lines)


if __name__ == "__main__":
    main()
