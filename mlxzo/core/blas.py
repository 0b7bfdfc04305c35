"""A fast BLAS for MLX on Linux: the mlx-cpu wheel links netlib's reference BLAS, some 70 times slower than OpenBLAS.

The dynamic linker resolves a symbol to the first library in the global scope that defines it. An OpenBLAS that is
loaded with RTLD_GLOBAL before `mlx.core` therefore takes the place of the BLAS that MLX was linked with.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ConfigError
from .files import mlxzo_home

_FORTRAN = "libgfortran.so.5"
_OPENBLAS = "libopenblas.so.0"

# Micro-batches that a CPU computes at once, each with its share of the threads.
SIDE_BY_SIDE = 2

_loaded: list[ctypes.CDLL] = []


@functools.cache
def load_fast_blas() -> str | None:
    """Loads an OpenBLAS in front of MLX's own, once per process. Entry points that import MLX call it first.

    Candidates, in order: the environment's MLXZO_BLAS (a path; `none` keeps MLX's own), the ngsolve-openblas
    package, the system's libopenblas. OpenBLAS itself reads OPENBLAS_NUM_THREADS.

    Returns:
        The path or name of the library in use; None where MLX keeps its own BLAS (macOS, whose BLAS is Accelerate,
        or a machine with no candidate).

    Raises:
        ConfigError: MLXZO_BLAS names a library that cannot be loaded.
        RuntimeError: `mlx.core` is already imported, so a BLAS can no longer come before it.
    """
    chosen = os.environ.get("MLXZO_BLAS", "")
    if sys.platform != "linux" or chosen == "none":
        return None
    if "mlx.core" in sys.modules:
        raise RuntimeError("mlxzo.core.blas.load_fast_blas() must be called before mlx.core is imported")
    if chosen:
        if not _load(chosen):
            raise ConfigError(
                f"MLXZO_BLAS: {chosen} cannot be loaded as a shared library",
                "name an OpenBLAS .so file, `none` for MLX's own BLAS, or unset MLXZO_BLAS",
            )
        return chosen
    for path in sorted(file for root in _package_folders("ngsolve_openblas") for file in root.glob("libopenblas*.so*")):
        if _load(str(path)) or _load_beside_fortran(path):
            return str(path)
    system = ctypes.util.find_library("openblas")
    return system if system and _load(system) else None


def _load(library: str) -> bool:
    try:
        _loaded.append(ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL))
    except OSError:
        return False
    return True


def blas_threads() -> int:
    """Threads of a matrix product by the OpenBLAS that was loaded; 1 if there is none."""
    try:
        return _loaded[-1].openblas_get_num_threads() if _loaded else 1
    except AttributeError:
        return 1


@contextlib.contextmanager
def divided_threads(count: int) -> Iterator[None]:
    """Gives each of `count` matrix products that run at once its share of the threads."""
    threads = blas_threads()
    if threads == 1:
        yield
        return
    set_threads = _loaded[-1].openblas_set_num_threads
    set_threads(max(1, threads // count))
    try:
        yield
    finally:
        set_threads(threads)


def _package_folders(package: str) -> list[Path]:
    """Folders of an installed package, found without importing it (ngsolve_openblas prints when it is imported)."""
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]


def _load_beside_fortran(openblas: Path) -> bool:
    """Loads an OpenBLAS that needs libgfortran.so.5 on a machine without it.

    The mlx-cpu wheel bundles that library under another name, and this OpenBLAS searches the folder that it was loaded
    from ($ORIGIN) for its dependencies. So this makes a folder of links under the expected names.
    """
    carried = sorted(
        file for folder in _package_folders("mlx") for file in (folder.parent / "mlx_cpu.libs").glob("*.so*")
    )
    fortran = [file.resolve() for file in carried if file.name.startswith("libgfortran")]
    if not fortran:
        return False
    links = {_OPENBLAS: openblas.resolve(), _FORTRAN: fortran[0]}
    links |= {file.name: file.resolve() for file in carried if file.name.startswith("libquadmath")}
    text = "\n".join(f"{link}={links[link]}" for link in sorted(links))
    folder = mlxzo_home() / "blas" / hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        _make_links(folder, links)
    except OSError:
        # The home cannot be written. The links are needed only until the library is loaded.
        with tempfile.TemporaryDirectory(prefix="mlxzo-blas-") as private:
            _make_links(Path(private), links)
            return _load(f"{private}/{_OPENBLAS}")
    return _load(str(folder / _OPENBLAS))


def _make_links(folder: Path, links: dict[str, Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for link, target in links.items():
        _link(folder / link, target)


def _link(link: Path, target: Path) -> None:
    """Makes `link` point at `target` in one step, safe against other processes that do the same."""
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    fresh.replace(link)
