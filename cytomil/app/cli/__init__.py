"""The command line: parse, call, print. Only this room knows Typer and Rich."""
