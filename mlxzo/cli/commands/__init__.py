"""One module per command: its docstring is the help text, `add_arguments` adds the flags, `run` does the work."""
