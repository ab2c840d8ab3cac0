"""A lower package never imports a higher one, and heavy things wait until they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import cytomil
from cytomil.encoders.engines.registry import ENGINES

PACKAGE = Path(cytomil.__file__).parent

# What each package may import, besides itself. "base" are the modules of cytomil itself.
BASE = {"base"}
WORKERS = SLIDES = MORPHOLOGY = BASE
BAGS = BASE | {"slides", "workers"}
ENCODERS = BAGS | {"bags"}
PRETRAIN = ENCODERS | {"encoders"}
FEATURES = PRETRAIN | {"morphology"}
MIL = FEATURES | {"features", "training"}
EVALUATE = MIL | {"mil"}
EXPERIMENTS = EVALUATE | {"evaluation"}
TRIAGE = EXPERIMENTS
REVIEW = TRIAGE | {"triage"}
VALIDATION = REVIEW
VERIFICATION = REVIEW | {"review", "validation"}
API = VERIFICATION
APP = API | {"api", "experiments", "review", "validation", "verification"}
MAY_IMPORT = {
    "base": set(),
    "workers": WORKERS,
    "slides": SLIDES,
    "morphology": MORPHOLOGY,
    "bags": BAGS,
    "encoders": ENCODERS,
    "training": PRETRAIN,
    "features": FEATURES,
    "mil": MIL,
    "evaluation": EVALUATE,
    "experiments": EXPERIMENTS,
    "triage": TRIAGE,
    "review": REVIEW,
    "validation": VALIDATION,
    "verification": VERIFICATION,
    "api": API,
    "app": APP,
}
READERS_OF_INSTANCE_LABELS = {"bags", "evaluation"}
# The only way of instance labels into training: for the ceiling, which must be asked for.
INSTANCE_LABEL_ACCESS = "cytomil.training.instance_label_access"


@dataclass(frozen=True)
class Import:
    """One imported name: ``of`` the module that imports, ``name`` in full, ``lazy`` if inside a function."""

    of: str
    name: str
    lazy: bool


def module_name(file: Path) -> str:
    parts = ("cytomil", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """``cytomil.bags.make`` → bags; ``cytomil.files`` → base; ``cytomil.__main__`` starts the command line."""
    parts = module.split(".")
    if parts[1:2] == ["__main__"]:
        return "app"
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "base"


def imports_in(module: str, tree: ast.AST, package: str) -> list[Import]:
    found = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found.extend(Import(module, f"{origin}.{alias.name}", lazy) for alias in node.names)
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree, False)
    return found


@cache
def all_imports() -> tuple[Import, ...]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        module = module_name(file)
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found += imports_in(module, ast.parse(file.read_text(encoding="utf-8")), package)
    return tuple(found)


def importers_of(*libraries: str, only_eager: bool = False) -> set[str]:
    return {one.of for one in all_imports() if one.name.split(".")[0] in libraries and not (only_eager and one.lazy)}


def own_imports() -> list[Import]:
    return [one for one in all_imports() if one.name.split(".")[0] == "cytomil"]


def test_the_reader_of_imports_sees_every_form():
    code = "import a.b\nfrom c import d as e\nfrom . import f\nfrom ..g import h\ndef i():\n    import j\n"
    found = imports_in("cytomil.x.y", ast.parse(code), "cytomil.x")
    names = [(one.name, one.lazy) for one in found]
    assert names == [
        ("a.b", False),
        ("c.d", False),
        ("cytomil.x.f", False),
        ("cytomil.g.h", False),
        ("j", True),
    ]


def test_every_package_has_its_place_in_the_order():
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages == set(MAY_IMPORT) - {"base"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_lower_package_never_imports_a_higher_one(package):
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{one.of} imports {one.name}"
        for one in own_imports()
        if package_of(one.of) == package and package_of(one.name) not in allowed
    ]
    assert wrong == []


def test_only_the_command_line_knows_typer_and_rich():
    assert {package_of(module) for module in importers_of("typer", "rich", "click")} == {"app"}


def test_only_the_application_knows_the_settings_and_yaml():
    modules = {one.of for one in own_imports() if one.name.startswith("cytomil.app")}
    assert {package_of(module) for module in modules} <= {"app"}
    # A grid is a YAML file too.
    assert {package_of(module) for module in importers_of("yaml")} == {"app", "experiments"}


def test_training_cannot_see_instance_labels():
    imports = [one for one in own_imports() if "instance_labels" in one.name.split(".")]
    readers = {one.of for one in imports if package_of(one.of) not in READERS_OF_INSTANCE_LABELS}
    assert readers == {INSTANCE_LABEL_ACCESS}
    assert all(one.lazy for one in imports if one.of == INSTANCE_LABEL_ACCESS)
    assert "cytomil.bags" not in {one.of for one in imports}


def test_the_access_to_instance_labels_is_used_in_one_place_under_its_condition():
    access = "read_training_instance_labels"
    assert {one.of for one in own_imports() if one.name.startswith(f"{INSTANCE_LABEL_ACCESS}.")} == {
        "cytomil.training.loop"
    }
    loop = ast.parse((PACKAGE / "training" / "loop.py").read_text(encoding="utf-8"))
    guarded = [
        node
        for branch in ast.walk(loop)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "method.uses_instance_labels"
        for node in branch.body
    ]
    calls = [node for node in ast.walk(loop) if isinstance(node, ast.Call) and ast.unparse(node.func) == access]
    assert len(calls) == 1
    assert any(calls[0] in list(ast.walk(node)) for node in guarded)


def test_no_other_package_reads_the_instance_labels_past_their_module():
    hidden = {"instance_label", "instance_source"}
    readers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in hidden
    }
    assert readers == {"bags/bag_file.py", "bags/instance_labels.py"}


def test_every_hdf5_file_is_read_apart_first():
    openers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "h5py.File"
    }
    assert openers == {"hdf5.py"}
    assert {one.of for one in own_imports() if one.name == "cytomil.hdf5.open_hdf5"} == {"cytomil.workers.apart"}


def test_only_the_workers_know_ray_and_it_waits_until_it_is_used():
    assert importers_of("ray", only_eager=True) == set()
    assert {package_of(module) for module in importers_of("ray")} == {"workers"}


def test_timm_waits_until_one_of_its_models_is_asked_for():
    assert importers_of("timm", only_eager=True) == set()
    assert importers_of("timm") == {f"cytomil.encoders.{name}" for name in ("architecture", "obtain", "published")}


def test_dvc_waits_until_it_is_used():
    assert importers_of("dvc", "dvclive", only_eager=True) == set()
    assert importers_of("dvclive") == {"cytomil.app.cli.pretrain"}


def test_no_file_but_a_backends_own_asks_which_backend_it_has():
    own = {f"{entry.module.replace('.', '/').removeprefix('cytomil/')}.py" for entry in ENGINES.values()}
    asking = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in ENGINES
    }
    assert asking <= own


def test_backends_wait_until_one_is_chosen():
    loaded = loaded_by("import cytomil.encoders.engines.registry")
    assert "cytomil.encoders.engines.registry" in loaded
    assert {"cytomil.encoders.engines.engine", "cytomil.encoders.engines.openvino", "torch"} & loaded == set()


def loaded_by(code: str) -> set[str]:
    """Every module in memory after a fresh interpreter has run ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_help_does_not_wait_for_heavy_libraries():
    heavy = {"torch", "torchvision", "h5py", "sklearn", "skimage", "scipy", "matplotlib", "dvc", "dvclive", "openslide"}
    heavy |= {"openvino", "nncf", "ray", "timm"}
    loaded = loaded_by("import cytomil.app.cli.app")
    assert "cytomil.app.cli.app" in loaded
    assert heavy & loaded == set()


def test_the_package_itself_loads_nothing_heavy_and_is_quick():
    code = "import sys, time; start = time.perf_counter(); import cytomil; dir(cytomil); end = time.perf_counter()"
    loaded = loaded_by(f"{code}; assert end - start < 0.3, end - start")
    assert {"torch", "numpy", "h5py", "pydantic", "cytomil.api"} & loaded == set()


def test_what_trains_and_ranks_never_loads_the_reader_of_instance_labels():
    loaded = loaded_by(
        "import cytomil.training.loop, cytomil.features.embed, cytomil.mil.fit, cytomil.triage.rank, cytomil.bags.make"
    )
    assert "cytomil.bags.bag_file" in loaded
    assert "cytomil.bags.instance_labels" not in loaded
    assert {"dvc", "dvclive"} & loaded == set()
