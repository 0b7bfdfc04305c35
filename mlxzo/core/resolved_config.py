"""A configuration to compute with: step sizes, update rule and directions have values."""

from __future__ import annotations

from dataclasses import dataclass

from .config import RunConfig
from .defaults import ALL_EXAMPLES, default_estimator, default_values, mezo_defaults


@dataclass(frozen=True)
class ResolvedConfig(RunConfig):
    """A configuration whose defaults are filled in.

    The options of the other method have values as well, which nothing reads.
    """

    # These defaults are out of range: values must be given.
    lr: float = 0.0
    eps: float = 0.0
    update: str = ""
    queries: int = 0
    weight_decay: float = -1.0
    estimator: str = ""
    pull: float = -1.0
    steps: int = 0
    patience: int = -1
    batch_size: int = 0
    eval_every: int = 0

    def __post_init__(self) -> None:
        """Checks nothing: the configuration was checked before its defaults were filled in."""

    @staticmethod
    def of(config: RunConfig) -> ResolvedConfig:
        """Fills in the defaults of a configuration."""
        defaults = {
            **mezo_defaults(config.parsed_scope, config.update),
            "queries": config.direction_count,
            # Of RSGN on the final norm alone; `engine.session.fetch` knows whether the data allow it.
            "batch_size": ALL_EXAMPLES,
            "pull": 0.0,
            "estimator": default_estimator(config),
            **default_values(config),
        }
        given = {name: value for name, value in config.to_dict().items() if value is not None}
        return ResolvedConfig(**{**config.to_dict(), **defaults, **given})
