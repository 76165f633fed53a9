"""The command line: `prompt-tune COMMAND`. Each command is a thin shell over one function that anybody can import."""

from prompt_tune.cli.entry import COMMANDS, command, main

__all__ = ["COMMANDS", "command", "main"]
