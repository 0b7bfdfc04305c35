"""Memory: what is used, what will be, and what fits."""
