"""What every process agrees on: options, events, errors, files and the run directory. Imports no MLX."""
