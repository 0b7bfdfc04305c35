"""A run over several processes ends with the weights of one process, and with a reason where one of them ends early."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil
import pytest

from mlxzo.cli import distributed as launching
from mlxzo.core import events
from mlxzo.core.child_process import worker_environment
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import JOURNAL, RunDirectory
from mlxzo.runtime.supervisor import Supervisor
from mlxzo.zo.journal import steps_in
from tests.command import ctrl_c, mlxzo, once
from tests.engine.test_nothing_lost import judged_task
from tests.engine.test_resume import told
from tests.variants import mostly_slow, slow
from tests.warm_workers import WORKER_NAME, warm_python

pytestmark = pytest.mark.device

STEPS = 16
# Small enough that four ranks have something to do; part of the configuration, as a run over ranks records it.
OPTIONS = {"scope": "norms", "lr": 0.01, "steps": STEPS, "batch_size": 8, "micro_batch": 2, "eval_every": 8}


def configuration(model: Path, data: Path, out: Path, **more) -> RunConfig:
    return RunConfig(
        **{"model": str(model), "task": "custom", "data": str(data), "out": str(out), **OPTIONS, **more}
    ).resolved()


def arguments(config: RunConfig, ranks: int) -> list[str]:
    """The arguments that train by a configuration."""
    path = Path(config.out) / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_yaml())
    return ["train", "--hosts", str(ranks), "--config", str(path)]


@pytest.fixture(autouse=True)
def _warm_ranks(monkeypatch):
    """Ranks are forked from a process that has imported MLX."""
    monkeypatch.setattr(launching, "rank_command", lambda words: [warm_python(), "-P", "-m", "mlxzo", "train", *words])


def finish(arguments: list[str]) -> dict:
    """The result of a command that trains to the end."""
    done = mlxzo(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def known(result: dict) -> dict:
    """What of a result is the same on any number of ranks."""
    return {key: value for key, value in told(result).items() if key not in ("ranks", "bytes_sent", "run")}


def alone(config: RunConfig) -> dict:
    supervisor = Supervisor(RunDirectory.create(config))
    supervisor.start()
    for _ in supervisor.events():
        pass
    assert isinstance(supervisor.outcome, events.Finished), supervisor.outcome
    return supervisor.outcome.result


@pytest.fixture(scope="module")
def one_process(model, data, tmp_path_factory):
    return alone(configuration(model, data, tmp_path_factory.mktemp("one"), name="one"))


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        # Two ranks, one of which is killed, go on to these weights in the default suite (below).
        slow(2, {}),
        slow(4, {}),
        slow(2, {"parallel": "directions"}),
        slow(3, {"shares": "1,4,1"}),
    ],
)
def test_any_number_of_ranks_ends_with_the_weights_of_one_process(ranks, more, model, data, tmp_path, one_process):
    config = configuration(model, data, tmp_path, name="run", **more)
    result = finish(arguments(config, ranks))
    assert known(result) == known(one_process)
    assert result["ranks"] == ranks


@pytest.mark.parametrize(
    "more",
    [
        {"scope": "norms/last-0", "batch_size": 1000},
        slow({"scope": "norms/last-1", "batch_size": 8}),
        slow({"scope": "norms/last-1", "batch_size": 8, "parallel": "directions"}),
    ],
)
def test_ranks_of_rsgn_end_with_the_weights_of_one_process(more, model, data, tmp_path):
    options = {"estimator": "rsgn", "queries": 4, "lr": None, "steps": 5, "eval_every": 5, **more}
    expected = alone(configuration(model, data, tmp_path, name="one", **options))
    found = finish(arguments(configuration(model, data, tmp_path, name="two", **options), 2))
    assert known(found) == known(expected) and found["ranks"] == 2


@pytest.mark.slow
@pytest.mark.variant
def test_ranks_of_es_share_the_population_and_end_with_the_weights_of_one_process(model, data, tmp_path):
    options = {"objective": "reward", "lr": None, "queries": 3, "batch_size": 40, "steps": 3, "eval_every": 3}
    options |= {"task": judged_task(tmp_path), "micro_batch": None}
    expected = alone(configuration(model, data, tmp_path, name="one", **options))
    found = finish(arguments(configuration(model, data, tmp_path, name="two", **options), 2))
    assert found["final_sha256"] == expected["final_sha256"] and found["ranks"] == 2
    assert found["best"]["step"] == expected["best"]["step"]


@pytest.mark.slow
@pytest.mark.variant
def test_ranks_of_backpropagation_have_the_same_weights_and_nearly_those_of_one_process(model, data, tmp_path):
    options = {"method": "bp", "scope": "last-2", "lr": 1e-3, "steps": 8, "eval_every": 8}
    expected = alone(configuration(model, data, tmp_path, name="one", **options))
    result = finish(arguments(configuration(model, data, tmp_path, name="two", **options), 2))
    assert result["training_loss"]["last"] == pytest.approx(expected["training_loss"]["last"], abs=1e-4)
    gradients = (
        4
        * next(
            e for e, _ in RunDirectory(tmp_path / "two").events() if isinstance(e, events.Loaded)
        ).trainable_parameters
    )
    assert result["bytes_sent"] > options["steps"] * gradients


def workers() -> list[psutil.Process]:
    """The workers of this process's runs that are alive, whichever rank each is."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == WORKER_NAME and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks by the name of forked workers")
@pytest.mark.parametrize("trial", mostly_slow(range(5), [0]))
def test_when_a_rank_is_killed_all_end_with_the_reason_and_nothing_is_lost(trial, model, data, tmp_path, one_process):
    config = configuration(model, data, tmp_path, name="run")
    run, chance = RunDirectory(tmp_path / "run"), random.Random(trial)
    until, victim = chance.randrange(1, STEPS // 2), chance.randrange(2)
    ranks, killed_at = [], []

    def kill() -> None:
        ranks.extend(workers())
        leader = int(run.lock_path.read_text())
        killed = leader if victim == 0 else next(rank.pid for rank in ranks if rank.pid != leader)
        os.kill(killed, signal.SIGKILL)
        killed_at.append(time.monotonic())

    with once(lambda: reached(run) >= until, kill):
        done = mlxzo(*arguments(config, 2))
    print(f"rank {victim} killed after step {until}: all ended in {time.monotonic() - killed_at[0]:.1f} s")
    assert done.returncode == 3
    assert f"rank {victim}" in done.stderr and "ended by SIGKILL" in done.stderr
    assert len(ranks) == 2 and not any(rank.is_running() for rank in ranks) and workers() == []
    assert "SIGKILL" in run.outcome[0].message
    # As many ranks as before, or one more.
    resumed = finish(["train", "--resume", str(run.path), "--hosts", str(2 + trial % 2)])
    assert known(resumed) == known(one_process)
    assert resumed["ranks"] == 2 + trial % 2


def test_ctrl_c_ends_all_ranks_after_the_same_step_and_another_number_goes_on(model, data, tmp_path, one_process):
    config = configuration(model, data, tmp_path, name="run")
    run = RunDirectory(tmp_path / "run")
    with once(lambda: reached(run) >= 3, ctrl_c):
        stopped = mlxzo(*arguments(config, 2))
    assert stopped.returncode == 130 and "the run was stopped" in stopped.stderr
    done = reached(run)
    assert done < STEPS and steps_in(run.path / JOURNAL) == done
    assert known(finish(["train", "--resume", str(run.path), "--hosts", "1"])) == known(one_process)


@pytest.mark.slow
@pytest.mark.variant
def test_ranks_stop_when_their_launcher_is_killed(model, data, tmp_path, one_process):
    config = configuration(model, data, tmp_path, name="run", steps=2000)
    run = RunDirectory(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mlxzo", *arguments(config, 2)], env=worker_environment()
    ) as launcher:
        limit = time.monotonic() + 90
        while reached(run) < 3 and time.monotonic() < limit:
            time.sleep(0.05)
        launcher.kill()
    while run.worker_is_alive() and time.monotonic() < limit:
        time.sleep(0.05)
    assert run.status == "interrupted" and 3 <= reached(run) < 2000


def reached(run: RunDirectory) -> int:
    step = run.last_event(events.Step)
    return step.step if isinstance(step, events.Step) else 0


@contextlib.contextmanager
def addresses(count: int, folder: Path) -> Iterator[Path]:
    """A file of addresses that are free, as mlx.launch gives it to its ranks."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        found = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    path = folder / "addresses.json"
    path.write_text(json.dumps(found))
    yield path


def start_by_hand(run: RunDirectory, rank: int, file: Path) -> Supervisor:
    with mock.patch.dict(os.environ, {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)}):
        supervisor = Supervisor(run)
        supervisor.start()
    return supervisor


def outcomes(configs: list[RunConfig], folder: Path) -> list[events.Event]:
    """How workers end that were started by hand, a rank each."""
    runs = [RunDirectory.create(config) for config in configs]
    with addresses(len(runs), folder) as file:
        started = [start_by_hand(run, rank, file) for rank, run in enumerate(runs)]
    for supervisor in started:
        list(supervisor.events())
    return [run.outcome[0] for run in runs]


def test_ranks_with_other_options_are_refused_and_every_difference_is_named(model, data, tmp_path):
    config = configuration(model, data, tmp_path, name="rank0")
    other = replace(config, name="rank1", seed=7, eps=0.5)
    for failed in outcomes([config, other], tmp_path):
        assert failed.exit_code == 2
        said = " ".join([failed.message, *failed.details])
        assert "rank 1" in said and "seed: 0 on rank 0, 7 here" in said and "0.5 here" in said


def test_ranks_with_other_weights_are_refused(model, data, tmp_path):
    from tests.tiny import tiny_folder

    config = configuration(model, data, tmp_path, name="rank0")
    other = replace(config, name="rank1", model=str(tiny_folder(tmp_path / "other", seed=1)))
    for failed in outcomes([config, other], tmp_path):
        assert failed.exit_code == 2 and "base weights" in failed.message and "rank 1" in failed.message


def test_a_port_that_is_taken_is_told(model, data, tmp_path):
    run = RunDirectory.create(configuration(model, data, tmp_path, name="run"))
    with addresses(2, tmp_path) as file, socket.socket() as taken:
        port = int(json.loads(file.read_text())[0][0].split(":")[1])
        taken.bind(("127.0.0.1", port))
        taken.listen()
        list(start_by_hand(run, 0, file).events())
    failed = run.outcome[0]
    assert failed.exit_code == 4 and f"127.0.0.1:{port}" in failed.message and "in use" in failed.message


COMMUNICATOR = """
import json, sys
import numpy as np
from mlxzo.engine.distributed import mlx_communicator as distributed
from mlxzo.core.errors import RanksDisagree, RankLost
from mlxzo.engine.distributed.communicator import Piece, Request
rank = int(sys.argv[1])
communicator = distributed.join(rank, lambda: None)
communicator.synchronise()
told = {"size": communicator.size}
pieces = [Piece(cost, (2, n)) for n, cost in enumerate((5.0, 1.0, 3.0, 2.0, 1.0), 1)]
own = []
def compute(numbers):
    own.extend(numbers)
    return [np.full((2, i + 1), i / 3) for i in numbers]
found = communicator.scatter_gather(pieces, compute)
told["same"] = all(np.array_equal(values, np.full((2, i + 1), i / 3)) for i, values in enumerate(found))
told["own"] = own
before = communicator.bytes_sent
examples = [Piece(1.0, (2, 4))] * 3
communicator.scatter_gather(examples, lambda numbers: [np.zeros((2, 4)) for _ in numbers])
told["sent"] = communicator.bytes_sent - before
communicator.requests = lambda: Request.EVALUATE if rank == 1 else Request.NOTHING
communicator.synchronise()
communicator.requests = lambda: Request.NOTHING
communicator.synchronise()
told["evaluates"] = [communicator.consume(Request.EVALUATE), communicator.consume(Request.EVALUATE)]
told["broadcast"] = communicator.broadcast(b"from " + bytes([48 + rank])).decode()
communicator.same("colour", "red")
try:
    communicator.same("weights after step 3", "b" if rank == 2 else "a")
except RanksDisagree as error:
    told["odd"] = error.message
print(json.dumps(told), flush=True)
communicator.limit_seconds = 1.0
if rank == 2:
    sys.stdin.read()
try:
    communicator.synchronise()
except RankLost as error:
    print(error.message, flush=True)
import os
os._exit(0)
"""


def test_a_communicator_of_three(tmp_path):
    """Work is shared, requests reach all ranks, other weights are found, and nobody waits for ever."""
    with addresses(3, tmp_path) as file:
        started = []
        for rank in range(3):
            environment = {**worker_environment(), "MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)}
            words = [sys.executable, "-c", COMMUNICATOR, str(rank)]
            started.append(
                subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
    waited = [process.communicate(timeout=120)[0] for process in started[:2]]
    said = [*waited, started[2].communicate(timeout=120)[0]]
    told = [json.loads(text.splitlines()[0]) for text in said]
    assert sorted(number for each in told for number in each["own"]) == [0, 1, 2, 3, 4]
    for each in told:
        assert each["size"] == 3 and each["same"] and each["own"]
        # Both sides of its four examples, and a header, go to each of the others: at most 16 bytes an example.
        assert each["sent"] == 2 * (4 + 4 * 16) <= 16 * 12
        assert each["evaluates"] == [True, False]
        assert each["broadcast"] == "from 0"
        assert "rank 2" in each["odd"] and "rank 1" not in each["odd"] and "after step 3" in each["odd"]
    for text in waited:
        assert "waited 1 s for another rank" in text or "lost another rank" in text
    assert any("waited 1 s" in text for text in waited)
