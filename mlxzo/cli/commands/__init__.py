"""The commands, a module each: its docstring is the command's help, `add_arguments` its flags, `run` its work."""
