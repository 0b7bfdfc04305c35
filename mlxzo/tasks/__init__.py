"""Tasks: from rows of data to prompts and candidates. Imports no MLX, so the UI may use it."""
