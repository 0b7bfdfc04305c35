"""Export of a tuned model in mlx-lm's formats: an adapter directory, or a whole model."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.lora import LoRALinear

from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..core.files import explained, need_free_space, publish_folder
from .adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .adapters import BiasedLinear, GainedLinear, PromotedNorm
from .loading import LoadedModel
from .slots import decoder, decoder_layers, parameter_slots, slot_of

CARD = "README.md"


@dataclass(frozen=True)
class Folded:
    """A model whose parameters have the names of the base model.

    Attributes:
        changed: parameters that differ from the base model's.
        added: names in `changed` that the base model does not have: residual biases.
        requantised: number of LoRA pairs that were added to quantised weights, which rounds these again.
    """

    changed: dict[str, mx.array]
    added: tuple[str, ...]
    requantised: int


def fold(model: nn.Module, trained: Iterable[str], base: Iterable[str]) -> Folded:
    """Merges the parameters that a scope inserted into the layers of the base model.

    Gains multiply the rows of a weight, or its scales and biases if it is quantised; LoRA products are added.

    Args:
        model: changed in place.
        trained: names of the parameters that the run trained.
        base: names of the parameters before the scope was prepared.

    Raises:
        ConfigError: the scales of a weight cannot hold its gain.
    """
    names, base = set(trained), set(base)
    wrappers = {path: module for path, module in model.named_modules() if isinstance(module, tuple(_FOLDS))}
    requantised = 0
    # Nested wrappers are folded from the inside out, into the same layer.
    for path in sorted(wrappers, key=lambda path: -path.count(".")):
        module = wrappers[path]
        requantised += isinstance(module, LoRALinear) and "scales" in module.linear
        layer, leaves = _FOLDS[type(module)](module)
        slot_of(model, path).set(layer)
        names |= {f"{path.removesuffix('.linear')}.{leaf}" for leaf in leaves}
    changed = {name: slot.get() for name, slot in parameter_slots(model).items() if name in names}
    return Folded(changed, tuple(sorted(changed.keys() - base)), requantised)


def _fold_norm(module: PromotedNorm) -> tuple[nn.Module, list[str]]:
    norm, leaves = module._norm, [leaf for leaf in ("weight", "bias") if leaf in module]
    for leaf in leaves:
        norm[leaf] = module[leaf]
    return norm, leaves


def _fold_bias(module: BiasedLinear) -> tuple[nn.Module, list[str]]:
    module.linear.bias = module.bias
    return module.linear, ["bias"]


def _fold_gain(module: GainedLinear) -> tuple[nn.Module, list[str]]:
    linear, gain = module.linear, module.gain
    leaves = ["weight"] if "scales" not in linear else ["scales", "biases"]
    if not all(leaf in linear and mx.issubdtype(linear[leaf].dtype, mx.floating) for leaf in leaves):
        raise ConfigError(
            "a trained gain cannot be folded into weights whose scales are powers of two",
            "export the run with --to journal",
        )
    leaves += ["bias"] if "bias" in linear else []
    for leaf in leaves:
        value = linear[leaf].astype(mx.float32)
        linear[leaf] = (value * gain.reshape(-1, *[1] * (value.ndim - 1))).astype(linear[leaf].dtype)
    return linear, leaves


def _fold_lora(module: LoRALinear) -> tuple[nn.Module, list[str]]:
    # The pair's layer may have been a wrapper that was folded before.
    layer = module.fuse()
    return layer, ["weight", *(leaf for leaf in ("scales", "biases") if leaf in layer)]


_FOLDS = {PromotedNorm: _fold_norm, BiasedLinear: _fold_bias, GainedLinear: _fold_gain, LoRALinear: _fold_lora}


def write_adapter(
    loaded: LoadedModel,
    config: RunConfig,
    trained: Iterable[str],
    base: Iterable[str],
    out: Path,
    texts: Mapping[str, str],
) -> Folded | None:
    """Writes an adapter directory for `mlx_lm.generate --adapter-path`; returns the folded model, None if not folded.

    A run whose scope is LoRA alone becomes a LoRA adapter, and nothing is folded. mlx-lm has no adapter type for the
    other scopes: their tensors are stored whole (`fine_tune_type: full`).

    Args:
        texts: further files, by name.

    Raises:
        ConfigError: `out` exists, or mlx-lm's architecture has no place for a parameter. DoesNotFit: the disk is full.
    """
    model, trained = loaded.model, list(trained)
    described: dict[str, Any] = {"model": config.model, "fine_tune_type": "full"}
    folded = None
    if config.parsed_scope.kinds == ("lora",):
        tensors = {name: slot_of(model, name).get() for name in trained}
        last = config.parsed_scope.last_layers
        keys = {name.split(".layers.", 1)[1].split(".", 1)[1].rpartition(".")[0] for name in trained}
        described["fine_tune_type"] = "lora"
        described["num_layers"] = len(decoder_layers(model)) if last is None else last
        described["lora_parameters"] = {
            "rank": config.lora_rank,
            "scale": config.lora_scale,
            "dropout": 0.0,
            "keys": sorted(keys),
        }
    else:
        folded = fold(model, trained, base)
        if folded.added:
            raise ConfigError(
                f"mlx-lm's adapters have no place for {len(folded.added)} parameters that this model lacks, such as "
                f"{folded.added[0]}",
                "use --to fused, or --to journal",
            )
        tensors = folded.changed
    with new_folder(out, sum(t.nbytes for t in tensors.values())) as folder:
        mx.save_safetensors(str(folder / ADAPTER_WEIGHTS), tensors, {"format": "mlx"})
        _write_texts(folder, {ADAPTER_CONFIG: json.dumps(described, indent=2) + "\n", **texts})
    return folded


def write_fused(
    loaded: LoadedModel,
    trained: Iterable[str],
    base: Iterable[str],
    out: Path,
    texts: Mapping[str, str],
    *,
    dequantise: bool = False,
) -> Folded:
    """Writes a whole model folder that mlx-lm loads like any other.

    Args:
        texts: further files, by name; the model card takes the place of the base model's.
        dequantise: store the weights of a quantised model as floating numbers, so that added LoRA products are not
            quantised.

    Raises:
        ConfigError: `out` exists, or the architecture has no place for a residual bias. DoesNotFit: the disk is full.
    """
    from mlx_lm.utils import dequantize_model, save

    model, config = loaded.model, dict(loaded.config)
    if dequantise:
        # Before the LoRA products are added: adding them quantises the sum.
        model = dequantize_model(model)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    folded = fold(model, trained, base)
    if folded.added:
        _make_room_for_biases(model, config, folded.added)
    size = sum(slot.get().nbytes for slot in parameter_slots(model).values())
    with new_folder(out, size) as folder:
        save(folder, loaded.path, model, loaded.tokenizer, config, donate_model=False)
        for code in folder.glob("*.py"):
            code.unlink()
        _write_texts(folder, texts)
    return folded


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _make_room_for_biases(model: nn.Module, config: dict[str, Any], added: tuple[str, ...]) -> None:
    """Declares MLP biases in config.json, and adds zeros where a layer has none.

    Raises:
        ConfigError: the architecture has no MLP biases.
    """
    arguments = getattr(decoder(model)[1], "args", None)
    if not hasattr(arguments, "mlp_bias") or not all(name.endswith(".mlp.down_proj.bias") for name in added):
        raise ConfigError(
            f"mlx-lm's {config.get('model_type')} has no place for residual biases such as {added[0]}",
            "export the run with --to journal",
        )
    config["mlp_bias"] = True
    for layer in decoder_layers(model):
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            if "bias" not in linear:
                linear.bias = mx.zeros(linear["weight"].shape[:1], linear.get("scales", linear["weight"]).dtype)


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder to fill, published as `out` when it is complete.

    Raises:
        ConfigError: `out` exists, or cannot be written. DoesNotFit: the disk has no room for `size` bytes.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists already", "name another folder with --out")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        need_free_space(out.parent, size, _purpose(out))
        prefix = f".{out.name}.part-"
        _remove_leftovers(out.parent, prefix)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent) as temporary, _held(Path(temporary)):
            folder = Path(temporary) / out.name
            folder.mkdir()
            yield folder
            publish_folder(folder, out)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a temporary folder (flock) for as long as its process lives.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Removes the temporary folders of exports to the same place whose processes were killed."""
    for path in parent.iterdir():
        if path.name.startswith(prefix) and path.is_dir() and not path.is_symlink():
            with suppress(BlockingIOError), _held(path):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns a failed write of `out` into an error that a user can act on (see `explained`)."""
    with explained(out, _purpose(out)):
        try:
            yield
        except RuntimeError as error:
            # MLX reports a failed write as a RuntimeError without the cause.
            if shutil.disk_usage(out.parent).free < 1 << 20:
                raise OSError(errno.ENOSPC, str(error)) from None
            if "Unable to write" in str(error):
                raise OSError(errno.EIO, str(error)) from None
            raise


def _purpose(out: Path) -> str:
    return f"the export {out.name}"
