"""mlxzo: fine-tune language models in the memory that running them takes."""

__version__ = "0.1.0"
