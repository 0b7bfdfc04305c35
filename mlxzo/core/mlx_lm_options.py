"""Options of mlx-lm's `mlx_lm.lora` under the names that they have here, for people who bring its configurations."""

from __future__ import annotations

from typing import Any

_HERE = {
    "adapter_path": "the folder of the runs is `out`; `mlxzo export RUN --to adapter --out FOLDER` writes an adapter",
    "clear_cache_threshold": "leave it out; `memory_cap` holds a run to a size",
    "config": "leave it out",
    "fine_tune_type": "here it is a part of `scope`, such as lora/last-16 or full; mlx-lm's training is `method: bp`",
    "grad_accumulation_steps": "leave it out: `batch_size` examples make a step, `micro_batch` of them at a time",
    "grad_checkpoint": "here it is `checkpointing`: on, off or auto",
    "hf_dataset": "`data` is a folder of yours, and `task` may name a public dataset",
    "iters": "here it is `steps`",
    "learning_rate": "here it is `lr`",
    "lora_parameters": "here they are `lora_rank`, `lora_scale` and `lora_targets`",
    "lr_schedule": "here it is `schedule` and `warmup_steps`",
    "mask_prompt": "leave it out: prompts are never trained on",
    "max_seq_length": "here it is `max_tokens`",
    "num_layers": "here it is a part of `scope`: lora/last-16 for 16 layers, lora for all",
    "optimizer_config": "leave it out; there is `weight_decay`",
    "project_name": "leave it out; a run has a `name`",
    "report_to": "leave it out: a run reports to events.jsonl in its folder",
    "resume_adapter_file": "a run begins from a model: `mlxzo export RUN --to fused --out FOLDER` writes a tuned one, "
    "and `model: FOLDER` trains it further",
    "save_every": "leave it out: the best state and the last step are always kept",
    "steps_per_eval": "here it is `eval_every`",
    "steps_per_report": "leave it out: every step is reported",
    "test": "leave it out: a run ends with a measurement of its test rows",
    "test_batches": "here it is `test_examples`, and counts examples",
    "train": "leave it out: `mlxzo train` trains",
    "trust_remote_code": "leave it out: code that comes with a model is never run",
    "val_batches": "here it is `validation_examples`, and counts examples",
}


def name_here(name: Any) -> str:
    """The problem of naming an option as mlx-lm does, with its name here; empty for any other name."""
    advice = _HERE.get(name.replace("-", "_")) if isinstance(name, str) else None
    return f"{name}: an option of mlx-lm; {advice}" if advice else ""
