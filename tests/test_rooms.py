"""The rooms of CONTRIBUTING.md: a room imports only from rooms below it, and no module imports itself by way of others.

Lazy imports and those for types alone count like all others.
"""

import ast
import re
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
    {"uda.adaptation", "uda.generalization"},
    {"uda.hardness.scoring"},
    {"uda.hardness.people"},
    {"uda.hardness.dynamics"},
    {"uda.hardness.probes"},
    {"uda.hardness.study"},
    {"uda.kinds"},
    {"uda.trained_run"},
    {"uda.api"},
    {"uda"},
    {"uda.device_check"},
    {"uda.cli"},
    {"uda.__main__"},
    {"benchmarks", "tools"},
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path.relative_to(CHECKOUT)): path
    for folder in ("uda", "benchmarks", "tools")
    for path in sorted((CHECKOUT / folder).rglob("*.py"))
}


def imported(code: str) -> set[str]:
    """The modules of ours that some code imports. `from a.b import c` is of `a.b.c` where that is a module."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = within & MODULES.keys()
            names |= modules if len(modules) == len(within) else modules | {node.module}
    return names & MODULES.keys()


IMPORTS = {module: imported(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def room_of(module: str) -> str | None:
    """The room that a module lies in. A package of rooms alone, such as `uda.hardness`, lies in none."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS and (name != "uda" or module == "uda")), None)


def test_lazy_imports_and_modules_of_a_package_are_found():
    code = (
        "import torch\ndef late():\n    from uda.core import errors, files\n    from uda.core.registry import Registry"
    )
    assert imported(code) == {"uda.core.errors", "uda.core.files", "uda.core.registry"}
    assert imported("from uda.adaptation.methods import ADAPTATION_METHODS, mcd") == {
        "uda.adaptation.methods",
        "uda.adaptation.methods.mcd",
    }


def test_every_module_lies_in_a_room():
    roomless = {module for module in MODULES if room_of(module) is None}
    assert all(any(room.startswith(f"{package}.") for room in ROOMS) for package in roomless), roomless
    assert not any(IMPORTS[package] for package in roomless)


def test_a_room_imports_only_from_below():
    upwards = []
    for module, others in IMPORTS.items():
        own = room_of(module)
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


def test_only_the_command_line_reads_arguments_and_ends_the_process():
    others = [module for module in MODULES if module.startswith("uda.") and room_of(module) != "uda.cli"]
    found = set()
    for module in set(others) - {"uda.__main__"}:
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and "argparse" in {alias.name for alias in node.names}:
                found.add(f"{module} imports argparse")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.exit", "exit", "quit"}:
                found.add(f"{module} ends the process")
    assert not found


def test_only_evaluation_and_reports_read_target_labels():
    readers = {module for module, path in MODULES.items() if ".reveal(" in path.read_text(encoding="utf-8")}
    readers -= {"uda.data.domains"}  # which defines it
    assert readers and all(room_of(name) == "uda.evaluation" or name.endswith(".report") for name in readers), readers


def test_contributing_lists_the_rooms():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    named = set(re.findall(r"`([\w/.]+)`", "\n".join(table)))
    rooms = {re.sub(r"^(uda\.hardness)\..*", r"\1", room).replace(".", "/") for room in ROOMS}
    for room in rooms - {"uda", "uda/__main__"}:
        assert {room, f"{room}/", f"{room}.py"} & named, room
