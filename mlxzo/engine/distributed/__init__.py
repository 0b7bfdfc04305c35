"""A run shared by several ranks."""
