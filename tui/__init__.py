"""The terminal app of mlxzo: set up, watch, race and try runs. Never imports MLX: it speaks to the supervisor."""
