"""Defaults of a run that depend on its method, scope and other options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .scope import Scope

if TYPE_CHECKING:
    from .config import RunConfig


def default_values(config: RunConfig) -> dict[str, Any]:
    """Defaults of the configuration's method, by option; a clip that is not among them means no limit."""
    if config.method == "bp":
        return bp_defaults(config.parsed_scope, config.optimizer)
    defaults = mezo_defaults(config.parsed_scope, config.update, config.direction_scale)
    defaults |= {"weight_decay": 0.0, "queries": default_queries(config.estimator)}
    if config.estimator == "rsgn":
        return {name: defaults[name] for name in ("eps", "queries", "weight_decay")}
    if defaults["update"] == "adaptive":
        defaults["clip"] = 3.0
    return defaults


def default_queries(estimator: str) -> int:
    """Default number of random directions per step of an estimator."""
    return {"spsa": 1, "rsgn": 16}[estimator]


def mezo_defaults(scope: Scope, update: str | None = None, direction_scale: str = "auto") -> dict[str, Any]:
    """Default update rule, learning rate and eps of MeZO in a scope.

    Several kinds share the rate of the first, and the largest eps that perturbs none of them by more than its own eps.
    Where `direction_scale` makes direction entries longer or shorter than `auto` does, rate and eps of the first kind
    are converted, so that typical weights are perturbed and moved by as much.
    """
    update = update or "adaptive"
    first = scope.step_sizes(scope.kinds[0])
    lr = first.adaptive_lr if update == "adaptive" else first.sgd_lr
    if direction_scale == "auto":
        eps = min(scope.step_sizes(kind).eps / scope.rate_ratio(kind) for kind in scope.kinds)
        return {"update": update, "lr": lr, "eps": eps}
    shorter = first.typical_length / (1.0 if direction_scale == "none" else first.typical_rms)
    # The derivative along z grows with z: a step of sgd does so twice.
    lr *= shorter if update == "adaptive" else shorter**2
    return {"update": update, "lr": lr, "eps": first.eps * shorter}


def bp_defaults(scope: Scope, optimizer: str) -> dict[str, Any]:
    """Default learning rate and weight decay of backpropagation; several kinds share the rate of the first."""
    return {"lr": scope.step_sizes(scope.kinds[0]).bp_lr, "weight_decay": 0.01 if optimizer == "adamw" else 0.0}
