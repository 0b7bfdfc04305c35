"""What runs did, read from their events: curves, tables, figures, pages. Nothing here imports MLX."""
