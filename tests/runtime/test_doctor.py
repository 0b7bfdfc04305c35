"""The doctor's report: valid, whole, and calm about what is broken."""

import json
import os

from mlxzo.cli.commands.doctor import rows
from mlxzo.cli.main import main
from mlxzo.runtime import doctor


def test_json_is_valid_and_names_what_was_measured(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mlx"]["gemm_float32_gflops"] > 0 and report["mlx"]["gemm_bfloat16_gflops"] > 0
    assert report["mlx"]["variables"]["MLX_ENABLE_TF32"] == "0"
    assert report["mlx"]["device"] in ("cpu", "gpu")
    assert report["system"]["memory_bytes"] > report["system"]["memory_available_bytes"] > 0
    assert report["versions"]["mlx"] and report["versions"]["mlxzo"]
    assert report["cache"]["bytes"] >= 0
    # The tests run with the hub switched off.
    assert report["hub"]["reachable"] is False and report["hub"]["why"]
    assert any("HF_ENDPOINT" in line for line in report["advice"])
    assert dict(rows(report))["matrix product"].startswith("float32")


def test_every_probe_that_fails_says_so_and_none_stops_the_report(monkeypatch):
    def broken():
        raise RuntimeError("no such thing")

    for probe in ("_system", "_mlx_in_child", "package_versions", "_compiler", "_cache", "_hub"):
        monkeypatch.setattr(doctor, probe, broken)
    report = doctor.examine()
    assert all(report[name] == {"error": "RuntimeError: no such thing"} for name in report if name != "advice")
    assert any("no such thing" in line for line in report["advice"])
    assert any("no such thing" in value for _, value in rows(report))


def test_an_mlx_that_crashes_is_reported(monkeypatch, tmp_path):
    package = tmp_path / "mlx"
    package.mkdir()
    (package / "core.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert doctor._mlx_in_child() == {"error": "it was ended by SIGABRT"}
    (package / "core.py").write_text("raise ImportError('broken wheel')")
    assert doctor._mlx_in_child() == {"error": "ImportError: broken wheel"}


def test_a_mac_is_told_how_it_stays_awake_and_what_its_gpu_can_hold(mac, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    system = doctor._system()
    assert system["caffeinate"] is None and system["gpu_working_set_bytes"] == int((16 << 30) * 2 / 3)
    report = {"system": system, "mlx": {}, "cache": {}, "compiler": {}, "hub": {"reachable": True}}
    assert any("There is no caffeinate" in line for line in doctor.advice(report))
    (tmp_path / "caffeinate").write_text("")
    (tmp_path / "caffeinate").chmod(0o755)
    assert doctor._system()["caffeinate"] == str(tmp_path / "caffeinate")


def test_a_cache_that_does_not_exist_is_empty(monkeypatch, tmp_path):
    monkeypatch.setenv("MLXZO_HOME", str(tmp_path / "none"))
    assert doctor._cache() == {"path": str(tmp_path / "none"), "bytes": 0, "files": 0}
