"""How a scope is written, and the step sizes that follow from it."""

import pytest

from mlxzo.core.config import RunConfig, Scope
from mlxzo.core.defaults import mezo_defaults
from mlxzo.core.device import COMPUTE_AS
from mlxzo.core.errors import ConfigError
from mlxzo.core.scope import KINDS, STEP_SIZES

SCOPES = {
    "full": Scope(("full",)),
    "last-4": Scope(("full",), 4),
    "lora": Scope(("lora",)),
    "lora/last-12": Scope(("lora",), 12),
    "norms/last-6": Scope(("norms",), 6),
    "norms/last-0": Scope(("norms",), 0),
    "norms+gains/last-6": Scope(("norms", "gains"), 6),
    "gains+norms/last-6": Scope(("gains", "norms"), 6),
    "scales": Scope(("scales",)),
    "biases+lora+scales": Scope(("biases", "lora", "scales")),
    "match:*.mlp.down_proj.weight/last-4": Scope(("match",), 4, ("*.mlp.down_proj.weight",)),
    "norms+match:*.o_proj.weight,*.v_proj.w[ei]ight": Scope(
        ("norms", "match"), None, ("*.o_proj.weight", "*.v_proj.w[ei]ight")
    ),
}


@pytest.mark.parametrize("text", SCOPES)
def test_a_scope_is_read_and_written_back(text):
    assert Scope.parse(text) == SCOPES[text]
    assert str(SCOPES[text]) == text


def test_full_of_the_last_layers_has_a_shorter_name():
    assert str(Scope.parse("full/last-4")) == "last-4"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half", "scope 'half' is not known"),
        ("norm", "did you mean norms?"),
        ("gain/last-2", "did you mean gains?"),
        ("", "is not known"),
        ("norms+", "is not known"),
        ("+norms", "is not known"),
        ("norms/", "is not known"),
        ("/last-2", "is not known"),
        ("last-", "is not known"),
        ("norms/last-2/last-3", "is not known"),
        ("norms/first-2", "is not known"),
        ("norms+last-2", "is not known"),
        ("last-2/last-3", "is not known"),
        ("lora:q_proj", "is not known"),
        ("Norms", "is not known"),
        (" norms", "is not known"),
        ("norms/last--2", "is not known"),
        ("last-0", "asks for no layer"),
        ("norms+gains/last-0", "asks for no layer"),
        ("norms+norms", "names norms twice"),
        ("match:a+match:b", "names match twice"),
        ("full+norms", "full is every weight already"),
        ("lora+full/last-2", "full is every weight already"),
        ("match", "has an empty pattern"),
        ("match:", "has an empty pattern"),
        ("match:a,,b", "has an empty pattern"),
    ],
)
def test_what_is_no_scope_is_refused_with_the_forms_there_are(text, words):
    with pytest.raises(ConfigError) as caught:
        Scope.parse(text)
    assert words in caught.value.message
    assert all(kind in caught.value.fix for kind in KINDS)
    assert "last-6" in caught.value.fix


@pytest.mark.parametrize("update", ["sgd", "adaptive"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_defaults_that_a_run_accepts(kind, update):
    scope = "match:*" if kind == "match" else kind
    for text in (scope, f"{scope}/last-2"):
        run = RunConfig(scope=text, update=update).resolved()
        assert run.lr > 0
        assert run.eps > 0


def test_several_kinds_take_the_rate_of_the_first_and_perturb_none_too_far():
    scope = Scope.parse("norms+lora")
    defaults = mezo_defaults(scope)
    norms, lora = STEP_SIZES["norms"], STEP_SIZES["lora"]
    assert defaults["lr"] == norms.adaptive_lr
    # LoRA alone moves by its own rate and is perturbed by its own eps.
    assert defaults["lr"] * scope.rate_ratio("lora") == pytest.approx(lora.adaptive_lr)
    assert defaults["eps"] <= norms.eps
    assert defaults["eps"] * scope.rate_ratio("lora") <= lora.eps
    # The other way round the same steps come out, in other units.
    turned = Scope.parse("lora+norms")
    assert mezo_defaults(turned)["lr"] == lora.adaptive_lr
    assert mezo_defaults(turned)["eps"] * turned.rate_ratio("norms") == pytest.approx(defaults["eps"])


def test_half_precision_is_perturbed_further_where_weights_compute_in_it(monkeypatch):
    def eps(device: str, scope: str, dtype: str = "auto") -> float:
        monkeypatch.setenv(COMPUTE_AS, device)
        return RunConfig(scope=scope, dtype=dtype).resolved().eps

    for scope, kind in (("norms/last-6", "norms"), ("lora", "lora"), ("full", "full"), ("norms/last-0", "final norm")):
        sizes = STEP_SIZES[kind]
        assert eps("gpu", scope) == eps("gpu", scope, "bfloat16") == sizes.half_eps >= sizes.eps
        # A CPU computes in float32 whatever the weights are stored in.
        assert eps("cpu", scope) == eps("cpu", scope, "bfloat16") == eps("gpu", scope, "float32") == sizes.eps
    assert eps("gpu", "norms+lora") == mezo_defaults(Scope.parse("norms+lora"), in_half_precision=True)["eps"]
    assert eps("gpu", "norms+lora") > eps("cpu", "norms+lora")


def test_the_final_norm_alone_takes_steps_of_its_own():
    scope = Scope.parse("norms/last-0")
    assert scope.step_sizes("norms") is STEP_SIZES["final norm"]
    assert mezo_defaults(scope)["lr"] == STEP_SIZES["final norm"].adaptive_lr != STEP_SIZES["norms"].adaptive_lr
