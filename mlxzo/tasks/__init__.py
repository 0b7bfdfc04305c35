"""Tasks: from rows of data to prompts and candidates. Nothing here imports MLX, so the UI may use it."""
