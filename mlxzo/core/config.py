"""RunConfig: the definition of every option of a run.

Command-line flags, YAML schema and the terminal UI's form are generated from its fields. Nothing here imports MLX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import defaults
from .config_checks import combination_problems, configuration_error, parse_values
from .errors import ConfigError
from .formatting import parse_bytes
from .options import current_name, option_field, value_problems, yaml_text
from .removed_options import without_removed
from .scope import Scope

GENERATED = ("f1", "exact_match", "reward")
"""Objectives that are functions of generated answers."""


@dataclass(frozen=True)
class RunConfig:
    """All options of a run. With the base weights they determine every bit of a MeZO run."""

    # Model, task and data.
    model: str = option_field(
        "smollm2-135m", "model: a name from `mlxzo models`, a Hugging Face id, a folder or a .gguf file", "model"
    )
    dtype: str = option_field(
        "auto",
        "dtype of the weights at rest; auto keeps what is stored",
        "model",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    task: str = option_field("reviews", "task: a name from `mlxzo tasks`, or a task YAML of your own", "task")
    data: str | None = option_field(
        None,
        "folder with train.jsonl, validation.jsonl and optionally test.jsonl (or .json, .csv, .tsv, .parquet)",
        "task",
        auto="the task's own data",
    )
    prompt_style: str = option_field(
        "plain",
        "plain: prompts as the task words them; chat: each as a user's turn in the model's own chat template, for "
        "models tuned to converse",
        "task",
        choices=("plain", "chat"),
    )
    train_examples: int | None = option_field(
        1000, "training examples to use, drawn by the seed", "task", minimum=1, auto="all"
    )
    train_per_label: int | None = option_field(
        None,
        "training examples of each label (k-shot), drawn by the seed, in place of --train-examples",
        "task",
        minimum=1,
        auto="as they come",
    )
    validation_examples: int | None = option_field(
        200, "validation examples to use at each evaluation", "task", minimum=1, auto="all"
    )
    test_examples: int | None = option_field(1000, "test examples to use at the end", "task", minimum=1, auto="all")
    max_tokens: int = option_field(
        512, "longest sequence; longer prompts are cut at the start", "task", unit="tokens", minimum=8, maximum=131072
    )
    # Training.
    method: str = option_field(
        "mezo",
        "optimisation method: mezo (forward passes only) or bp (backpropagation)",
        "method",
        choices=("mezo", "bp"),
    )
    scope: str = option_field(
        "norms/last-0",
        "what trains: last-K (all weights of the last K layers), or full, lora, norms, scales (of a quantised "
        "model), biases, gains or match:GLOB[,GLOB...] (parameters by name); kinds join with +, and /last-K "
        "restricts them to the last K layers (norms/last-0: the final norm alone)",
        "method",
    )
    max_seconds: float | None = option_field(
        None,
        "training time (or --minutes): the run ends after the step that reaches it. Steps, the first pass through "
        "frozen layers and evaluations on the validation split count; loading, zero-shot and test do not. A schedule "
        "follows --steps, never the clock",
        "method",
        unit="seconds",
        minimum=0.0,
        maximum=1e9,
        exclusive_minimum=True,
        auto=f"{defaults.DEFAULT_SECONDS:g} for rsgn and {defaults.ES_SECONDS:g} for es without --steps, no limit for "
        "all else",
    )
    steps: int | None = option_field(
        None,
        "optimisation steps",
        "method",
        minimum=1,
        maximum=defaults.UNLIMITED_STEPS,
        auto=f"as many as the time allows for rsgn and es, {defaults.DEFAULT_STEPS} for all else",
    )
    patience: int | None = option_field(
        None,
        "the run ends after so many evaluations without a lower validation loss (by 0.1 % at least), or of es without "
        "a higher metric; 0: never",
        "method",
        minimum=0,
        maximum=1_000_000,
        auto=f"{defaults.DEFAULT_PATIENCE} for rsgn and {defaults.ES_PATIENCE} for es without --steps, 0 for all else",
    )
    batch_size: int | None = option_field(
        None,
        "training examples per step; a number as large as the training set, or larger, takes all of it in every step",
        "method",
        minimum=1,
        maximum=defaults.ALL_EXAMPLES,
        auto="16; for rsgn 64, for the final norm alone all examples, or some 384 scored tokens if labels have several",
    )
    micro_batch: int | None = option_field(
        None,
        "most sequences in one forward pass; a smaller number takes less memory and gives the same losses",
        "method",
        minimum=1,
        maximum=defaults.MOST_ROWS,
        auto="as many as suit the device",
    )
    lr: float | None = option_field(
        None,
        "learning rate; of es the length of a step in multiples of eps",
        "method",
        minimum=0.0,
        maximum=1e6,
        exclusive_minimum=True,
        auto=f"{defaults.ES_LR:g} for es; by method, scope and update for all else",
    )
    schedule: str = option_field(
        "linear", "how the learning rate changes over the run", "method", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = option_field(
        0, "steps at the start over which the learning rate rises linearly", "method", minimum=0
    )
    weight_decay: float | None = option_field(
        None,
        "decoupled weight decay: each step takes this share, times the learning rate, off every matrix; vectors are "
        "exempt",
        "method",
        minimum=0.0,
        maximum=1e6,
        auto="0.01 for adamw, 0 for all else",
    )
    memory_cap: str | None = option_field(
        None,
        "most memory the run may take, such as 8GB or 900MB; the run is fitted to the cap before it starts, and "
        "held to it",
        "method",
        auto="no cap",
    )
    seed: int = option_field(
        0, "seed of data order, directions and initial adapters", "method", minimum=0, maximum=2**63 - 1
    )
    # MeZO.
    objective: str = option_field(
        "loss",
        "what a step minimises: the loss; accuracy (the share of wrong answers), which has no gradient and needs a "
        "large --batch-size; soft-accuracy (1 minus the probability of the right answer); f1 or exact_match of "
        "generated answers; or reward (1 minus the score that a judge gives them: your own program or function, or the "
        "judges that a task YAML names)",
        "mezo",
        choices=("loss", "accuracy", "soft-accuracy", "f1", "exact_match", "reward"),
    )
    reward_command: str | None = option_field(
        None,
        "a program that scores generated answers, for the objective reward and for every evaluation: it reads one JSON "
        "object per line (prompt, answer, gold, fields) and writes one (score); it runs only if the command line has "
        "--allow-code",
        "mezo",
        auto="none",
    )
    reward_function: str | None = option_field(
        None,
        "instead of a program, a Python function MODULE:FUNCTION of prompt, answer and gold answers (and fields, if it "
        "has such a parameter), imported from the current folder; it runs only if the command line has --allow-code",
        "mezo",
        auto="none",
    )
    reward_seconds: float = option_field(
        60.0,
        "longest time that the judge may take for one answer",
        "mezo",
        unit="seconds",
        minimum=0.0,
        maximum=86400.0,
        exclusive_minimum=True,
    )
    temperature: float = option_field(
        0.0,
        "where the objective is of generated answers: sample their tokens in steps, with the logits divided by "
        "this; 0 takes the likeliest token, as evaluations always do",
        "mezo",
        minimum=0.0,
        maximum=100.0,
    )
    top_p: float = option_field(
        1.0,
        "with a temperature, sample only among the likeliest tokens that together have this probability",
        "mezo",
        minimum=0.0,
        exclusive_minimum=True,
        maximum=1.0,
    )
    eps: float | None = option_field(
        None,
        "perturbation scale: the loss is evaluated at w + eps*z and w - eps*z",
        "mezo",
        minimum=0.0,
        maximum=10.0,
        exclusive_minimum=True,
        auto="the default of the scope; for es found before the first step, so that 20 to 50 % of the answers change",
    )
    directions: str = option_field(
        "sign", "distribution of the random direction z", "mezo", choices=("sign", "gaussian")
    )
    estimator: str | None = option_field(
        None,
        "rsgn: the scores along many directions, and a Gauss-Newton step in their span, which needs no learning rate; "
        "spsa: the loss on both sides of each direction (MeZO as published); es: evolution strategies, for objectives "
        "of generated answers: the rewards of a population on both sides of its directions, z-scored",
        "mezo",
        choices=("rsgn", "spsa", "es"),
        auto="rsgn; es for f1, exact_match and reward; spsa for other objectives, for the loss with --lr, and with "
        "--update or --weight-decay",
    )
    queries: int | None = option_field(
        None,
        "random directions per step",
        "mezo",
        minimum=1,
        maximum=4096,
        auto="1 for spsa; 8 for es; for rsgn 16, or 32 where the final norm alone trains",
    )
    pull: float | None = option_field(
        None,
        "share of the way back to its start that each step of es takes from every parameter that trains, against "
        "forgetting what the rewards do not ask for",
        "mezo",
        minimum=0.0,
        maximum=1.0,
        auto=f"{defaults.ES_PULL:g} for norms, biases, gains and lora, 0 for all else, whose start would take memory",
    )
    update: str | None = option_field(
        None,
        "update rule: sgd (w -= lr*g*z), or adaptive (g divided by its running rms and cut at 3 times that, so that lr "
        "is the length of a step)",
        "mezo",
        choices=("sgd", "adaptive"),
        auto="the default of the scope",
    )
    lora_targets: str = option_field(
        "auto",
        "linear layers that get an adapter: auto (queries and values), all, or names such as q_proj,v_proj,o_proj",
        "lora",
    )
    lora_rank: int = option_field(8, "rank of the LoRA adapters", "lora", minimum=1, maximum=1024)
    lora_scale: float = option_field(
        2.0, "multiplier of the LoRA product (alpha / rank)", "lora", minimum=0.0, exclusive_minimum=True, maximum=1e4
    )
    activation_cache: str = option_field(
        "auto",
        "keep the output of frozen layers, computed once per example: in memory (ram) or in a file of the run "
        "(disk); auto: where it pays and fits",
        "mezo",
        choices=("auto", "ram", "disk", "off"),
    )
    # Backpropagation.
    optimizer: str = option_field(
        "adam",
        "optimiser; adamw is adam with weight decay, and sgd needs --lr",
        "bp",
        choices=("sgd", "adam", "adamw"),
    )
    checkpointing: str = option_field(
        "auto",
        "gradient checkpointing: keep only the input of each layer and recompute the rest; auto: where the memory "
        "cap requires it",
        "bp",
        choices=("auto", "on", "off"),
    )
    # Several processes or machines (docs/distributed.md).
    parallel: str = option_field(
        "data",
        "what the ranks of a run divide among themselves: data (the micro-batches of a step) or directions (the "
        "perturbed copies of the weights; mezo only); the resulting weights are the same",
        "ranks",
        choices=("data", "directions"),
    )
    shares: str | None = option_field(
        None,
        "share of the work of each rank, such as 2,1,1; it changes who computes what, never the weights",
        "ranks",
        auto="by measured speed; equal for bp",
    )
    # Evaluation and output.
    eval_every: int | None = option_field(
        None,
        "steps between evaluations on the validation split",
        "run",
        minimum=1,
        auto="5 for rsgn, or 2 where parameters of all layers train; 10 for es; 50 for all else",
    )
    out: str = option_field("runs", "folder that holds the run directories", "run")
    name: str | None = option_field(None, "name of the run", "run", auto="made of model, task, method and seed")

    def __post_init__(self) -> None:
        problems = [text for f in options() for text in value_problems(f, getattr(self, f.name))]
        if problems := problems + combination_problems(self):
            raise configuration_error(problems)

    @property
    def parsed_scope(self) -> Scope:
        return Scope.parse(self.scope)

    @property
    def memory_cap_bytes(self) -> int | None:
        return None if self.memory_cap is None else parse_bytes(self.memory_cap)

    @property
    def writes(self) -> bool:
        """Returns whether the objective is a function of generated answers."""
        return self.objective in GENERATED

    @property
    def names_judge(self) -> bool:
        """Returns whether a program or function of the user scores answers."""
        return self.reward_command is not None or self.reward_function is not None

    @property
    def estimator_in_use(self) -> str:
        """The estimator of mezo, by default or as it was chosen; empty for bp."""
        return defaults.default_estimator(self) if self.method == "mezo" else ""

    @property
    def gauss_newton(self) -> bool:
        """Returns whether the method is mezo with the estimator rsgn."""
        return self.estimator_in_use == "rsgn"

    @property
    def evolves(self) -> bool:
        """Returns whether the method is mezo with the estimator es."""
        return self.estimator_in_use == "es"

    @property
    def direction_count(self) -> int:
        """Random directions per step of mezo."""
        return self.queries or defaults.default_queries(self)

    @property
    def point_count(self) -> int:
        """Forward passes per step of mezo and sequence, one at each point of the estimator."""
        if not self.gauss_newton:
            return 2 * self.direction_count
        return (2 if self.two_sided else 1) * self.direction_count + 2

    @property
    def two_sided(self) -> bool:
        """True if RSGN takes differences of the scores on both sides of w."""
        return defaults.differences_are_two_sided(self)

    def resolved(self) -> RunConfig:
        """The configuration as config.yaml holds it: with every default that depends on other options.

        Values of the other method stay None.
        """
        missing = {name for name, value in self.to_dict().items() if value is None}
        found = {name: value for name, value in defaults.default_values(self).items() if name in missing}
        return dataclasses.replace(self, **found)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """YAML text that `from_mapping` reads back, options grouped and explained."""
        return yaml_text(options(), self.to_dict())

    @staticmethod
    def from_mapping(values: Mapping[str, Any], *, source: str = "") -> RunConfig:
        """Builds a configuration from option names and values, each a Python value or the text of one.

        Raises:
            ConfigError: lists every unknown name (with the nearest valid one) and every bad value at once.
        """
        known = {f.name: f for f in options()}
        problems: list[str] = []
        # Of two spellings the later one counts: mappings are merged in the order of their precedence.
        current = without_removed({current_name(key): raw for key, raw in values.items()}, problems)
        parsed = parse_values(known, current, problems)
        try:
            config = RunConfig(**parsed)
        except ConfigError as error:
            problems += error.details or [error.message]
        if problems:
            raise configuration_error(problems, source)
        return config


DATA_OPTIONS = ("task", "data", "train_examples", "train_per_label", "validation_examples", "test_examples")
"""Options that determine the rows of a run; training rows depend on its seed as well."""


def options() -> tuple[dataclasses.Field, ...]:
    """The fields of RunConfig, in order; each carries its Option under metadata['option']."""
    return dataclasses.fields(RunConfig)
