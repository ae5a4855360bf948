"""The command line: one module a command, one row an option."""
