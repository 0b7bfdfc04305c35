"""Models: the list of known ones, where they come from, loading, and which of their weights train."""
