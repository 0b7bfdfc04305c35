"""The environment of a run: versions, device, and fingerprints of model and data."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.blas import load_fast_blas
from ..core.mlx_startup import variables

if TYPE_CHECKING:
    from ..engine.session import Session

_PACKAGES = ("mlxzo", "mlx", "mlx-lm", "numpy", "huggingface_hub", "transformers", "tokenizers")


def environment(session: Session) -> dict[str, Any]:
    """Facts beside the configuration that decide the bits of a run, or that its figures depend on."""
    import mlx.core as mx

    from ..zo.noise import NOISE_VERSION

    return {
        "mlxzo": __version__,
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "device_info": {key: value for key, value in mx.device_info().items() if isinstance(value, str | int)},
        "cpu_count": os.cpu_count(),
        "blas": load_fast_blas(),
        "variables": variables(),
        "noise_version": NOISE_VERSION,
        "seed": session.config.seed,
        "ranks": session.team.size,
        "model_source": session.resolved.source,
        "base_weights_sha256": session.weights_sha256,
        "data_source": session.data.source,
        "data_sha256": session.data.sha256,
    }


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that a run computes with; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
