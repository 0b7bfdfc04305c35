"""GGUF files read and converted to mlx-lm folders."""
