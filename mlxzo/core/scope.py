"""The scope of a run: the parameters that train, and the step sizes that suit them. Nothing here imports MLX."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import NoReturn

from .errors import ConfigError
from .formatting import shown


@dataclass(frozen=True)
class StepSizes:
    """Default step sizes of one kind of parameter.

    Attributes:
        length: length of one direction entry, relative to eps and lr; None: the rms of the tensor it belongs to.
        eps: perturbation scale.
        half_eps: the same where weights compute in half precision, whose rounding would hide smaller perturbations.
        adaptive_lr, sgd_lr: learning rates of MeZO's two update rules.
        bp_lr: learning rate of Adam on exact gradients.
    """

    length: float | None
    eps: float
    half_eps: float
    adaptive_lr: float
    sgd_lr: float
    bp_lr: float


# The final norm acts on the logits directly, and stands larger steps than the norms inside the blocks.
FINAL_NORM_LENGTH = 0.05
# An adaptive rate is the length of a step itself, as g is divided by its rms: those of `norms` and of the final norm
# alone were found on the embedded task's validation rows (bench/quickstart.py measures the latter). The sgd rates of
# `full` and `lora` are those of Malladi et al. 2023 (Appendix, Table 15). All others are starting points: chosen so
# that a step changes weights by about as much, not tuned. Adam's rates are those in common use for such parameters
# (1e-5 for all weights is also that of Malladi et al.). `half_eps` is where steps of RSGN in bfloat16 do most of what
# they do in float32 (bench/results/bf16.md); that of `scales` was not measured.
STEP_SIZES = {
    "full": StepSizes(1.0, eps=1e-3, half_eps=4e-3, adaptive_lr=1e-5, sgd_lr=1e-6, bp_lr=1e-5),
    "last": StepSizes(1.0, eps=1e-3, half_eps=4e-3, adaptive_lr=1e-4, sgd_lr=3e-5, bp_lr=3e-5),
    "match": StepSizes(1.0, eps=1e-3, half_eps=4e-3, adaptive_lr=1e-4, sgd_lr=3e-5, bp_lr=3e-5),
    "lora": StepSizes(1.0, eps=1e-2, half_eps=4e-2, adaptive_lr=1e-3, sgd_lr=1e-4, bp_lr=1e-3),
    "norms": StepSizes(0.01, eps=1e-1, half_eps=0.8, adaptive_lr=0.4, sgd_lr=4.0, bp_lr=1e-2),
    "final norm": StepSizes(FINAL_NORM_LENGTH, eps=1.0, half_eps=1.0, adaptive_lr=2.0, sgd_lr=0.2, bp_lr=1e-2),
    "biases": StepSizes(0.3, eps=1e-1, half_eps=1.6, adaptive_lr=0.4, sgd_lr=15.0, bp_lr=1e-2),
    "gains": StepSizes(0.05, eps=1e-1, half_eps=1.6, adaptive_lr=0.4, sgd_lr=15.0, bp_lr=1e-2),
    "scales": StepSizes(None, eps=1e-2, half_eps=1e-2, adaptive_lr=1e-3, sgd_lr=1e-4, bp_lr=3e-5),
}

KINDS = ("full", "lora", "norms", "scales", "biases", "gains", "match")

SCOPE_FORMS = (
    "use last-6 (all weights of the last 6 layers), or full, lora, norms, scales, biases, gains or "
    "match:GLOB[,GLOB...] (parameters by name), several joined by +, and /last-6 after it for the last 6 layers only: "
    "norms+gains/last-6"
)


@dataclass(frozen=True)
class Scope:
    """The parameters that train: one or several kinds, in the last `last_layers` decoder layers (None: in all).

    Attributes:
        kinds: a selection of `KINDS`, in the order given; `full` only alone.
        last_layers: 0, with `norms` only, is the final norm alone.
        globs: of `match`: shell patterns over dotted parameter names; empty without it.
    """

    kinds: tuple[str, ...]
    last_layers: int | None = None
    globs: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> Scope:
        """Parses `KIND[+KIND...][/last-K]`, or `last-K` for every weight of the last K layers.

        Raises:
            ConfigError: the text is neither, a kind is repeated, `full` is combined, or K is 0 for another kind than
                `norms`.
        """

        def refuse(problem: str) -> NoReturn:
            raise ConfigError(f"scope {shown(text)} {problem}", SCOPE_FORMS)

        what, slash, restriction = text.partition("/")
        if not slash and re.fullmatch(r"last-[0-9]+", text):
            what, slash, restriction = "full", "/", text
        layers = re.fullmatch(r"last-([0-9]+)", restriction) if slash else None
        if slash and not layers:
            refuse("is not known")
        kinds: list[str] = []
        globs: tuple[str, ...] = ()
        for part in what.split("+"):
            kind, colon, patterns = part.partition(":")
            if kind not in KINDS or (colon and kind != "match"):
                near = difflib.get_close_matches(kind, KINDS, n=1)
                refuse("is not known" + (f"; did you mean {near[0]}?" if near and kind not in KINDS else ""))
            if kind in kinds:
                refuse(f"names {kind} twice")
            kinds.append(kind)
            if kind == "match":
                globs = tuple(patterns.split(","))
                if not all(globs):
                    refuse("has an empty pattern")
        if "full" in kinds and len(kinds) > 1:
            refuse("joins full with another kind, and full is every weight already")
        if layers and int(layers[1]) == 0 and kinds != ["norms"]:
            refuse("asks for no layer at all")
        return Scope(tuple(kinds), int(layers[1]) if layers else None, globs)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        restriction = "" if self.last_layers is None else f"last-{self.last_layers}"
        if restriction and self.kinds == ("full",):
            return restriction
        named = {"match": "match:" + ",".join(self.globs)}
        what = "+".join(named.get(kind, kind) for kind in self.kinds)
        return f"{what}/{restriction}" if restriction else what

    def step_sizes(self, kind: str) -> StepSizes:
        """The step sizes of one of the scope's kinds."""
        if self.last_layers == 0:
            return STEP_SIZES["final norm"]
        return STEP_SIZES["last" if kind == "full" and self.last_layers else kind]

    def rate_ratio(self, kind: str) -> float:
        """Length of direction entries of `kind`, relative to a scope of that kind alone.

        A run has one lr, that of its first kind: the entries of the others are made longer or shorter, so that each
        kind moves as fast as it would alone.
        """
        return self.step_sizes(kind).adaptive_lr / self.step_sizes(self.kinds[0]).adaptive_lr

    def bp_rate_ratio(self, kind: str) -> float:
        """Factor of backpropagation's learning rate for parameters of `kind`."""
        return self.step_sizes(kind).bp_lr / self.step_sizes(self.kinds[0]).bp_lr
