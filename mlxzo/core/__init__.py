"""Shared by all processes: options, events, errors, files and the run directory. Imports no MLX."""
