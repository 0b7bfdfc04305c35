"""The size of the pieces in which weights are made and updated. Imports no MLX."""

from __future__ import annotations

# Weights are made effective and updated in chunks of rows of about this many bytes (as float32), so that a forward
# pass or an update never holds a second copy of a large matrix.
CHUNK_BYTES = 16 * 2**20
# Rounding to half precision holds some 16 arrays of a chunk's size at once, plain arithmetic about two.
HALF_PRECISION_CHUNK_BYTES = CHUNK_BYTES // 8
