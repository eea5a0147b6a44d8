"""The rooms of CONTRIBUTING.md: a room imports only from rooms below it, and no module imports itself by way of others.

Lazy imports and those for types alone count like all others.
"""

import ast
import re
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

from uda.core.resources import CHECKOUT

#: From the ground up. Rooms of one floor do not import one another.
FLOORS = (
    {"uda.core"},
    {"uda.selection"},
    {"uda.data"},
    {"uda.models"},
    {"uda.evaluation"},
    {"uda.training"},
    {"uda.report"},
    {"uda.tables"},
    {"uda.adaptation", "uda.generalization", "uda.segmentation"},
    {"uda.hardness.scoring"},
    {"uda.hardness.people"},
    {"uda.hardness.dynamics"},
    {"uda.hardness.probes"},
    {"uda.hardness.study"},
    {"uda.kinds"},
    {"uda.searches"},
    {"uda.trained_run", "uda.run_pages"},
    {"uda.exported_run", "uda.feature_bank"},
    {"uda.api"},
    {"uda"},
    {"uda.device_check"},
    {"uda.cli"},
    {"uda.__main__"},
    {"benchmarks", "tools"},
)
#: `uda bench` starts a program that lies beside the package, and tables start one that carries out their commands.
NAMED_UPWARDS = {
    "uda.cli.commands.bench": {"benchmarks.run_bench"},
    "uda.tables.launchers.launcher": {"uda.cli.worker"},
}
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path.relative_to(CHECKOUT)): path
    for folder in ("uda", "benchmarks", "tools")
    for path in sorted((CHECKOUT / folder).rglob("*.py"))
}


def imported(tree: ast.AST) -> set[str]:
    """The modules of ours that code imports. `from a.b import c` is of `a.b.c` where that is a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = within & MODULES.keys()
            names |= modules if len(modules) == len(within) else modules | {node.module}
    return names & MODULES.keys()


def named(tree: ast.AST) -> set[str]:
    """The modules of ours that a text names, as in `import_module("uda.cli.main")`. Docstrings do not count."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements)
    return {node.value for node in texts if isinstance(node.value, str)} & (MODULES.keys() - ROOMS.keys())


TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
IMPORTS = {module: imported(tree) for module, tree in TREES.items()}


def room_of(module: str) -> str | None:
    """The room that a module lies in. A package of rooms alone, such as `uda.hardness`, lies in none."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS and (name != "uda" or module == "uda")), None)


def test_lazy_imports_and_modules_of_a_package_are_found():
    code = (
        "import torch\ndef late():\n    from uda.core import errors, files\n    from uda.core.registry import Registry"
    )
    assert imported(ast.parse(code)) == {"uda.core.errors", "uda.core.files", "uda.core.registry"}
    assert imported(ast.parse("from uda.adaptation.methods import ADAPTATION_METHODS, mcd")) == {
        "uda.adaptation.methods",
        "uda.adaptation.methods.mcd",
    }


def test_every_module_lies_in_a_room():
    roomless = {module for module in MODULES if room_of(module) is None}
    assert all(any(room.startswith(f"{package}.") for room in ROOMS) for package in roomless), roomless
    assert not any(IMPORTS[package] for package in roomless)


def test_a_room_imports_only_from_below():
    upwards = []
    for module, tree in TREES.items():
        own = room_of(module)
        others = IMPORTS[module] | (named(tree) - NAMED_UPWARDS.get(module, set()))
        rooms = {other: room_of(other) for other in others}
        upwards += [
            f"{module} ({own}) imports {other} ({room})"
            for other, room in rooms.items()
            if room != own and ROOMS[room] >= ROOMS[own]
        ]
    assert not upwards


def test_no_module_imports_itself_by_way_of_others():
    """A package imports its own modules to register them, and is no part of what they import."""
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the modules


def found(kind: type[ast.AST], where: Callable[[str], bool], what: Callable[[ast.AST], bool]) -> set[str]:
    """The modules of some rooms whose code has such a node."""
    return {
        module
        for module, tree in TREES.items()
        if (room := room_of(module)) is not None and where(room)
        for node in ast.walk(tree)
        if isinstance(node, kind) and what(node)
    }


def of_the_library(room: str) -> bool:
    return room.startswith("uda") and room not in ("uda.cli", "uda.__main__")


def test_only_the_command_line_reads_arguments():
    assert not found(ast.Import, of_the_library, lambda node: "argparse" in {alias.name for alias in node.names})
    assert not found(ast.ImportFrom, of_the_library, lambda node: node.module == "argparse")
    assert not found(ast.Attribute, of_the_library, lambda node: ast.unparse(node) == "sys.argv")


def test_only_the_command_line_ends_the_process():
    """...but for the thread that ends it when a signal was not obeyed in time, which the command line starts."""
    ends = {"sys.exit", "exit", "quit", "os._exit"}
    assert found(ast.Call, of_the_library, lambda node: ast.unparse(node.func) in ends) == {"uda.core.interruption"}
    assert not found(ast.Raise, of_the_library, lambda node: "SystemExit" in ast.unparse(node))


def test_only_programs_make_settings_of_the_whole_process():
    """Threads, malloc, TF32 and cuDNN: a call from Python leaves them as they are."""
    setters = {"set_up_process", "set_num_threads", "keep_memory"}

    def sets(node: ast.Call) -> bool:
        return ast.unparse(node.func).rpartition(".")[2] in setters

    programs = {"uda.cli", "uda.device_check", "benchmarks"}
    assert found(ast.Call, lambda room: room not in programs, sets) == {"uda.training.device"}


def test_only_evaluation_and_reports_read_target_labels():
    readers = found(ast.Attribute, lambda room: True, lambda node: node.attr == "reveal")
    readers -= {"uda.data.domains"}  # which defines it
    reports = {"uda.adaptation.report", "uda.generalization.report"}
    assert readers == {"uda.evaluation.accuracy", "uda.segmentation.evaluation", *reports}


def test_contributing_lists_the_rooms_from_top_to_bottom():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`([\w/.]+)`", cell) for cell in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)]
    names = [name.removesuffix(".py").strip("/").replace("/", ".") for row in rows for name in row]
    listed = [name for name in names if name in ROOMS or name == "uda.hardness"]
    rooms = {re.sub(r"^(uda\.hardness)\..*", r"\1", room) for room in ROOMS} - {"uda", "uda.__main__"}
    assert sorted(listed) == sorted(rooms)
    floors = [ROOMS.get(name, ROOMS["uda.hardness.study"]) for name in listed]
    assert floors == sorted(floors, reverse=True)
