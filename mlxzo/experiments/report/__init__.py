"""Results of runs, read from their events: summaries, tables, figures, pages. Imports no MLX."""
