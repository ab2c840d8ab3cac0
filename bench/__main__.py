"""Run benchmarks: the most important ones (`python -m bench`), one (`python -m bench NAME`), or all (`... all`)."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.tables import SkippedError, document
from cytomil.threads import let_waiting_threads_sleep

HERE = Path(__file__).parent
PAGE = (
    ("speed", ()),
    ("bag_size", ("--sizes", "1000", "10000")),
    ("cohort", ("--slides", "0")),
    ("pretrain", ("--repeats", "1")),
    ("morphology", ()),
)
"""The most important benchmarks with their options. They take less than fifteen minutes on two cores."""


def benches() -> dict[str, str]:
    """Name → first line of the docstring. Modules are parsed, not imported, because most import PyTorch."""
    found = {}
    for file in sorted(HERE.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def main(line: list[str]) -> int:
    let_waiting_threads_sleep()
    known = benches()
    if not line:
        return run_several([(name, list(options)) for name, options in PAGE])
    if line[0] in ("-h", "--help"):
        print("python -m bench                    the most important ones: " + ", ".join(name for name, _ in PAGE))
        print("python -m bench NAME [--json FILE] [--markdown [FILE]] [options of NAME, listed by --help]")
        print("python -m bench all [--json FOLDER] [--markdown FOLDER]", "", sep="\n")
        print("\n".join(f"{name:<{max(map(len, known))}}  {what}" for name, what in known.items()))
        return 0
    name, *rest = line
    if name == "all":
        return run_all(list(known), rest)
    if name not in known:
        print(f"there is no bench '{name}'. Available: {', '.join(known)}, all.", file=sys.stderr)
        return 2
    return run_one(name, rest)


def run_one(name: str, line: list[str]) -> int:
    module = importlib.import_module(f"bench.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and a description of the machine")
    parser.add_argument("--markdown", nargs="?", default="-", const="-", metavar="FILE", help="default: print it")
    if hasattr(module, "add_options"):
        module.add_options(parser)
    options = parser.parse_args(line)
    try:
        measured = module.measure(options)
    except SkippedError as reason:
        print(f"{name} skipped: {reason}", file=sys.stderr)
        return 0
    if options.json:
        text = json.dumps(document(name, measured, vars(options)), indent=2, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.markdown == "-":
        print(measured.markdown(), end="")
    else:
        Path(options.markdown).write_text(measured.markdown(), encoding="utf-8")
    return 0


def run_all(names: list[str], line: list[str]) -> int:
    """Run every bench with its defaults. Files are named after the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench all", description="Run every bench, one after another.")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write NAME.json for each bench")
    parser.add_argument("--markdown", type=Path, metavar="FOLDER", help="write NAME.md for each; default: print it")
    options = parser.parse_args(line)
    commands = []
    for name in names:
        written: list[str] = []
        for folder, flag, ending in ((options.json, "--json", "json"), (options.markdown, "--markdown", "md")):
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                written += [flag, str(folder / f"{name}.{ending}")]
        commands.append((name, written))
    return run_several(commands)


def run_several(commands: Sequence[tuple[str, list[str]]]) -> int:
    """Run benches with their options, each in a separate process."""
    failed = []
    for name, options in commands:
        print(f"bench {name}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", "bench", name, *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
