"""Lets `python -m cytomil` be the command line."""

from cytomil.app.cli.app import main

if __name__ == "__main__":
    main()
