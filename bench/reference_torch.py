"""MeZO's reference algorithm in PyTorch, in a process of its own, for bench/engine.py.

After princeton-nlp/MeZO's `zo_step` and `zo_update`, with transformers' implementation of the model: every direction is
made again from `torch.manual_seed` and `torch.normal`, the weights are perturbed in place (+eps, -2 eps, +eps back), a
fourth pass updates them, and every forward pass makes the logits of all positions. In two things it is kinder than the
published code: the log-likelihoods are taken at the answer's positions only, and all candidates of an example are read
off one row.

A process of its own, because MLX on Linux needs an OpenBLAS in front of every other library, and PyTorch brings one of
its own. The two speak JSON lines: a command on stdin, its answer on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EPS = 1e-3
LEARNING_RATE = 1e-9


class Reference:
    """The other process, as bench/engine.py sees it; a context manager."""

    def __init__(self, folder: Path, threads: int):
        # -P: the modules beside this file are not to be found under their short names.
        command = [sys.executable, "-P", __file__, str(folder), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def ask(self, command: str, **values: Any) -> Any:
        """Has the other process do something and waits for its answer."""
        self._process.stdin.write(json.dumps({"command": command, **values}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the PyTorch process ended with exit code {self._process.wait()}; its message is above")
        return json.loads(line)

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class _Model:
    """The commands that the process obeys, each a method."""

    def __init__(self, folder: str):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        embedding = self.model.get_input_embeddings()
        if hasattr(embedding, "embed_scale"):
            # mlx-lm keeps Gemma's scale in bfloat16, as the model was trained with; a float32 one differs by 0.2 %.
            embedding.embed_scale = embedding.embed_scale.to(torch.bfloat16).to(torch.float32)

    def largest_difference(self, tokens: list[list[int]], logits: str) -> float:
        """Largest difference between our logits for `tokens` and those in the file `logits`, over their largest."""
        import numpy as np

        theirs = self.torch.from_numpy(np.load(logits))
        ours = self.model(input_ids=self.torch.tensor(tokens), use_cache=False).logits
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()

    def use(self, **batch: list) -> str:
        """Sets the batch (the arrays of a `MicroBatch`) and takes the faster attention for it; returns its name."""
        self.batch = {name: self.torch.tensor(values) for name, values in batch.items()}
        seconds = {}
        for _ in range(2):
            for attention in ("sdpa", "eager"):
                self.model.set_attn_implementation(attention)
                started = time.perf_counter()
                self.forward()
                seconds[attention] = time.perf_counter() - started
        fastest = min(seconds, key=seconds.get)
        self.model.set_attn_implementation(fastest)
        return fastest

    def forward(self) -> float:
        """A forward pass as a step makes it, with the logits of all positions; returns the mean loss."""
        batch = self.batch
        logits = self.model(input_ids=batch["tokens"], use_cache=False).logits
        rows = logits.reshape(-1, logits.shape[-1])[batch["positions"]].log_softmax(-1)
        scores = rows[batch["entry_position"], batch["entry_target"]].mean(-1)[batch["candidate"]]
        if scores.shape[1] == 1:
            return -scores.mean().item()
        return self.torch.nn.functional.cross_entropy(scores, batch["target"]).item()

    def forward_answers(self) -> None:
        """A forward pass with logits at the answer's positions only, as mlxzo's reads no others."""
        length = self.batch["tokens"].shape[1]
        answers = length - int(self.batch["positions"].min()) % length
        self.model(input_ids=self.batch["tokens"], use_cache=False, logits_to_keep=answers)

    def step(self, seed: int) -> float:
        """One MeZO step; returns the mean loss of the two sides."""
        self._add_noise(seed, EPS)
        plus = self.forward()
        self._add_noise(seed, -2 * EPS)
        minus = self.forward()
        self._add_noise(seed, EPS)
        self._add_noise(seed, -LEARNING_RATE * (plus - minus) / (2 * EPS))
        return (plus + minus) / 2

    def _add_noise(self, seed: int, scale: float) -> None:
        torch = self.torch
        torch.manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.data += scale * torch.normal(0.0, 1.0, size=parameter.size(), dtype=parameter.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    # Answers go to a stream of their own: a library that prints must not spoil them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    # Weights too: what is loaded in inference mode may be changed in place in it.
    with torch.inference_mode():
        model = _Model(arguments.folder)
        answer: Any = {"torch": torch.__version__, "transformers": transformers.__version__}
        print(json.dumps(answer), file=answers, flush=True)
        for line in sys.stdin:
            values = json.loads(line)
            print(json.dumps(getattr(model, values.pop("command"))(**values)), file=answers, flush=True)


if __name__ == "__main__":
    main()
