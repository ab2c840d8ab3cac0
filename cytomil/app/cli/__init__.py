"""The command line: parse, call, print. Only this package knows Typer and Rich."""
