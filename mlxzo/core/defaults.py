"""Defaults of a run that depend on its method, scope and other options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .device import computes_in_half_precision
from .scope import Scope

if TYPE_CHECKING:
    from .config import RunConfig


# Limits that stand for none.
UNLIMITED_STEPS = 10_000_000
ALL_EXAMPLES = 1_000_000
MOST_ROWS = 4096

# Batch size of RSGN in the layers.
RSGN_BATCH = 64
# Where the final norm alone trains and the answers need the vocabulary's normaliser, a step takes examples with about
# this many scored tokens in all, and no fewer examples than this. On TREC, 3 tokens each, 128 examples learned faster
# than 32 and than 256 at equal time.
RSGN_TOKENS_BEHIND = 384
RSGN_FEWEST_BEHIND = 32

# Directions of a step. Behind all layers they cost little beside the vocabulary's normaliser; with 48 and labels of one
# token, steps were so long that evaluations missed the best state.
RSGN_QUERIES = 16
RSGN_QUERIES_BEHIND = 32

# Steps between evaluations. A step on parameters of all layers takes as long as one or two thousand examples through
# the whole model, and few such steps go a long way.
EVAL_EVERY = 5
EVAL_EVERY_DEEP = 2

# Directions of a step of ES, its rate in multiples of eps, and its pull towards the start, which is the alpha lambda of
# arXiv 2605.30148.
ES_QUERIES = 8
ES_LR = 1.0
ES_PULL = 0.005
ES_SECONDS = 1800.0
ES_PATIENCE = 10
# Kinds of few numbers: a copy of their start costs next to nothing.
_PULLED = {"norms", "biases", "gains", "lora"}

DEFAULT_SECONDS = 900.0
DEFAULT_PATIENCE = 10
DEFAULT_STEPS = 300


def default_values(config: RunConfig) -> dict[str, Any]:
    """Defaults of the configuration's method, by option."""
    if config.method == "bp":
        return {**_BY_STEPS, **bp_defaults(config.parsed_scope, config.optimizer)}
    estimator, scope = default_estimator(config), config.parsed_scope
    found = {"estimator": estimator, "queries": default_queries(config), "weight_decay": 0.0}
    step_sizes = mezo_defaults(scope, config.update, computes_in_half_precision(config.dtype))
    if estimator == "rsgn":
        return {**found, "eps": step_sizes["eps"], **_rsgn_defaults(config)}
    if estimator == "es":
        return {**found, **_es_defaults(config)}
    return {**_BY_STEPS, **found, **step_sizes}


_BY_STEPS = {"steps": DEFAULT_STEPS, "patience": 0, "batch_size": 16, "eval_every": 50}


def _rsgn_defaults(config: RunConfig) -> dict[str, Any]:
    """Default limits and batches of RSGN: a budget of time, and a batch size where it does not depend on the data."""
    last_layers = config.parsed_scope.last_layers
    every = EVAL_EVERY_DEEP if last_layers is None else EVAL_EVERY
    found: dict[str, Any] = {"steps": UNLIMITED_STEPS, "eval_every": every}
    if last_layers != 0:
        found["batch_size"] = RSGN_BATCH
    if config.steps is not None:
        return {**found, "patience": 0}
    return {**found, "patience": DEFAULT_PATIENCE, "max_seconds": DEFAULT_SECONDS}


def _es_defaults(config: RunConfig) -> dict[str, Any]:
    """Default limits and rates of ES; eps has none, as it is found before the first step."""
    pull = ES_PULL if set(config.parsed_scope.kinds) <= _PULLED else 0.0
    found = {"steps": UNLIMITED_STEPS, "eval_every": 10, "batch_size": 16, "lr": ES_LR, "pull": pull}
    if config.steps is not None:
        return {**found, "patience": 0}
    return {**found, "patience": ES_PATIENCE, "max_seconds": ES_SECONDS}


def step_limit(config: RunConfig) -> int | None:
    """The number of steps that ends a run; None where only time or a plateau does."""
    steps = default_values(config)["steps"] if config.steps is None else config.steps
    return None if steps >= UNLIMITED_STEPS else steps


def default_estimator(config: RunConfig) -> str:
    """The estimator of a configuration of mezo: its own, or the one that its other options need."""
    if config.estimator is not None:
        return config.estimator
    if config.weight_decay or config.update is not None:
        return "spsa"
    if config.writes:
        return "es"
    # rsgn has no learning rate.
    return "rsgn" if config.objective == "loss" and config.lr is None else "spsa"


def default_queries(config: RunConfig) -> int:
    """Default number of random directions per step of a configuration of mezo."""
    if (estimator := default_estimator(config)) != "rsgn":
        return ES_QUERIES if estimator == "es" else 1
    if config.parsed_scope.last_layers == 0:
        return RSGN_QUERIES_BEHIND
    return RSGN_QUERIES // 2 if differences_are_two_sided(config) else RSGN_QUERIES


def differences_are_two_sided(config: RunConfig) -> bool:
    """True if RSGN takes the scores on both sides of w, for half as many directions.

    A LoRA pair A B multiplies its perturbations. In half precision eps must be so large that their product outweighs
    the derivative, and two sides cancel it (bench/results/bf16.md).
    """
    return "lora" in config.parsed_scope.kinds and computes_in_half_precision(config.dtype)


def mezo_defaults(scope: Scope, update: str | None = None, in_half_precision: bool = False) -> dict[str, Any]:
    """Default update rule, learning rate and eps of MeZO in a scope.

    Several kinds share the rate of the first, and the largest eps that perturbs none of them by more than its own eps.

    Args:
        in_half_precision: weights compute in bfloat16 or float16.
    """
    update = update or "adaptive"
    first = scope.step_sizes(scope.kinds[0])
    lr = first.adaptive_lr if update == "adaptive" else first.sgd_lr

    def own_eps(kind: str) -> float:
        sizes = scope.step_sizes(kind)
        return sizes.half_eps if in_half_precision else sizes.eps

    eps = min(own_eps(kind) / scope.rate_ratio(kind) for kind in scope.kinds)
    return {"update": update, "lr": lr, "eps": eps}


def bp_defaults(scope: Scope, optimizer: str) -> dict[str, Any]:
    """Default learning rate and weight decay of backpropagation; several kinds share the rate of the first."""
    return {"lr": scope.step_sizes(scope.kinds[0]).bp_lr, "weight_decay": 0.01 if optimizer == "adamw" else 0.0}
