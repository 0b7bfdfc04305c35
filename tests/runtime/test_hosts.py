"""What `--hosts` takes, who gets what work, and how launched ranks end, with processes that train nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from mlxzo.cli.distributed import _from_launcher
from mlxzo.cli.main import main
from mlxzo.core.child_process import worker_environment
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.engine.distributed.communicator import assign, check_ranks, rank_of_environment
from mlxzo.runtime.hosts import Host, Hosts, read_hosts
from mlxzo.runtime.launcher import STOP, Launcher


def file_of(folder, content) -> str:
    path = folder / "hosts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_hosts_file_of_mlx_launch_is_read_with_shares(tmp_path):
    entries = [
        {"ssh": "mac1.local", "ips": ["10.0.0.1"], "share": 1},
        {"ssh": "localhost", "ips": ["10.0.0.2"], "share": 2},
    ]
    hosts = read_hosts(file_of(tmp_path, {"hosts": entries, "envs": ["A=1"]}))
    assert hosts == Hosts((Host("mac1.local", "10.0.0.1"), Host("127.0.0.1", "10.0.0.2")), ("A=1",), "1,2")
    assert hosts.addresses(None) == ["10.0.0.1:32323", "10.0.0.2:32324"]
    assert read_hosts(file_of(tmp_path, entries)).hosts == hosts.hosts
    assert len(set(read_hosts("3").addresses(None))) == 3


def test_every_problem_of_a_hosts_file_is_told_at_once(tmp_path):
    entries = [
        {"ssh": "-oProxyCommand=x", "ips": ["10.0.0.1"]},
        {"ssh": "mac2"},
        {"ssh": "mac3", "ips": ["mac3.local"]},
        7,
    ]
    entries[0]["share"] = 0
    with pytest.raises(ConfigError) as error:
        read_hosts(file_of(tmp_path, {"backend": "mpi", "envs": "A", "hosts": entries}))
    told = error.value.details
    assert [text.split(":")[0] for text in told] == ["backend", "envs", "host 1", "host 2", "host 3", "host 4", "share"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{]", "line 1, column 3"),
        ("[]", "at least one host"),
        ("{}", "at least one host"),
        ("7", "at least one host"),
        (json.dumps([{"ssh": f"mac{i}", "ips": ["10.0.0.1"]} for i in range(257)]), "257 are given, and at most 256"),
        ("[" * 3000, "nested too deeply"),
        (json.dumps([["x" * 10_000]]), "expected an object, not .{200}…$"),
        ('[{"ssh": "a", "ips": ["10.0.0.1"], "share": Infinity}]', "positive number"),
        (" " * 2_000_000, "larger than 1,024 KB"),
    ],
)
def test_a_hosts_file_that_makes_no_sense(content, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        read_hosts(file_of(tmp_path, content))


def test_the_command_line_refuses_hosts_that_cannot_work(tmp_path, capsys):
    for words, said in (
        (["--hosts", str(tmp_path / "none.json")], "does not exist"),
        (["--hosts", "0"], "1 to 256"),
        (["--hosts", "4", "--batch-size", "3"], "3 examples: 1 would have nothing to do"),
        (
            ["--hosts", "4", "--parallel", "directions", "--estimator", "spsa"],
            "2 perturbed copies of the weights: 2 would",
        ),
        (["--hosts", "2", "--shares", "1,2,3"], "3 numbers were given for 2 ranks"),
        (["--hosts", "2", "--shares", "1,none"], "positive numbers"),
        (["--hosts", "2", "--method", "bp", "--parallel", "directions"], "only the method mezo has directions"),
    ):
        assert main(["train", *words]) == 2
        assert said in capsys.readouterr().err


def test_work_goes_to_whoever_is_done_first():
    assert assign([4.0, 3.0, 3.0], [1.0, 1.0]) == [0, 1, 1]
    # A rank three times as fast gets three quarters.
    owners = assign([1.0] * 8, [3.0, 1.0])
    assert owners.count(0) == 6
    assert assign([1.0], [1.0, 1.0]) == [0]


def test_the_environment_tells_the_rank(tmp_path):
    ring, empty = tmp_path / "ring.json", tmp_path / "empty.json"
    ring.write_text("[[], []]")
    empty.write_text("\n")
    assert rank_of_environment({}) is None
    assert rank_of_environment({"MLX_RANK": "1"}) is None
    assert rank_of_environment({"MLX_RANK": "1", "MLX_HOSTFILE": str(ring)}) == 1
    # What mlx.launch writes for a single machine.
    assert rank_of_environment({"MLX_RANK": "0", "MLX_HOSTFILE": str(empty)}) is None
    assert rank_of_environment({"OMPI_COMM_WORLD_RANK": "2"}) == 2


def test_as_many_directions_as_ranks_are_enough():
    config = RunConfig(parallel="directions", queries=2).resolved()
    check_ranks(config, 4)
    with pytest.raises(ConfigError):
        check_ranks(config, 5)


def end(launcher: Launcher):
    launcher.start()
    heard = []
    while launcher.running:
        heard += launcher.poll(0.25)
    return heard, launcher.error()


RANK = """
import json, os, sys, time
rank = os.environ["MLX_RANK"]
def tell(event, **fields): print(json.dumps({"event": event, "time": 0.0, **fields}), flush=True)
def fail(title, message, code):
    tell("failed", title=title, message=message, fix="", details=[], exit_code=code)
    sys.exit(code)
if rank == "0": tell("note", text="here")
"""


def test_the_rank_that_failed_first_gives_the_reason_and_the_others_end(tmp_path):
    script = (
        RANK
        + """
if rank == "1": fail("Does not fit", "too large", 3)
if rank == "0": time.sleep(1); fail("Rank lost", "rank 0 lost another rank", 3)
time.sleep(600)
"""
    )
    heard, error = end(Launcher(read_hosts("3"), [sys.executable, "-c", script]))
    assert [event.text for event in heard[:1]] == ["here"]
    assert (error.title, error.exit_code) == ("Does not fit", 3)
    assert error.message == "rank 1 (127.0.0.1): too large"


def test_a_rank_that_ends_without_a_word_is_told_with_its_last_complaint():
    script = (
        RANK
        + """
if rank == "1": sys.exit("No module named mlxzo")
time.sleep(600)
"""
    )
    _, error = end(Launcher(read_hosts("2"), [sys.executable, "-c", script]))
    assert error.exit_code == 4
    assert "rank 1 (127.0.0.1) ended with code 1: No module named mlxzo" in error.message


def test_a_rank_that_was_killed_is_told_from_one_that_could_not_start():
    script = (
        RANK
        + """
if rank == "1": os.kill(os.getpid(), 9)
time.sleep(600)
"""
    )
    _, error = end(Launcher(read_hosts("2"), [sys.executable, "-c", script]))
    assert error.exit_code == 3 and "rank 1 (127.0.0.1) was ended by SIGKILL" in error.message


def test_a_host_that_ssh_does_not_know_is_told():
    hosts = Hosts((Host("127.0.0.1", "127.0.0.1"), Host("no-such-host.invalid", "127.0.0.1")))
    _, error = end(Launcher(hosts, [sys.executable, "-c", RANK + "time.sleep(600)"]))
    assert error.exit_code == 4
    assert "rank 1 (no-such-host.invalid) ended with code" in error.message and "ssh no-such-host.invalid" in error.fix


def test_all_ranks_take_stop_and_a_result_is_that_of_rank_0():
    script = (
        RANK
        + """
sys.stdin.readline()
if rank == "0": tell("finished", result={"steps": 3})
"""
    )
    launcher = Launcher(read_hosts("2"), [sys.executable, "-c", script])
    launcher.start()
    heard = []
    while launcher.running:
        heard += launcher.poll(0.25)
        if heard and not launcher.result:
            launcher.stop()
    assert launcher.error() is None and launcher.result == {"steps": 3}


def test_what_the_launcher_says_and_that_it_is_gone(monkeypatch):
    read, write = os.pipe()
    os.set_blocking(read, False)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert _from_launcher() == b""
        os.write(write, STOP)
        assert _from_launcher() == STOP
        os.close(write)
        assert _from_launcher() is None


@pytest.mark.parametrize("stopped", [True, False])
def test_a_rank_that_nobody_joins_can_be_stopped_and_gives_up(stopped, tmp_path):
    """MLX holds the interpreter while it waits for a connection."""
    (tmp_path / "ring.json").write_text(json.dumps([["127.0.0.1:0"], ["127.0.0.1:1"]]))
    program = """if True:
        from mlxzo.core.mlx_startup import prepare_mlx
        prepare_mlx()
        from mlxzo.engine.distributed import mlx_communicator
        mlx_communicator.JOIN_SECONDS, mlx_communicator._ALARM_SECONDS = 1.0, 0.5
        print("ready", flush=True)
        mlx_communicator.join(0, lambda: None)
    """
    environment = {**worker_environment(), "MLX_HOSTFILE": str(tmp_path / "ring.json"), "MLX_RANK": "0"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as rank:
        assert rank.stdout is not None and rank.stdout.readline() == b"ready\n"
        if stopped:
            rank.send_signal(signal.SIGINT)
        assert rank.wait(60) == (-signal.SIGINT if stopped else -signal.SIGALRM)
