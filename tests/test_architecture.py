"""The walls between the rooms: what each part of the house never loads, and what the pure cores never touch.

import-linter (see pyproject.toml) follows imports as they are written. These tests also look at what is loaded at run
time, where an import inside a function counts only once it is executed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("broker", "edge_agent", "coordinator")
CORES = ("broker.core", "edge_agent.core", "coordinator.core")
TALK = {"zmq", "asyncio", "socket", "select", "selectors"}
HEAVY = {"torch", "numpy", "onnxruntime", "sklearn"}

LOADS_NEVER = {
    "broker.protocol.messages": TALK | HEAVY | {"sqlite3", "structlog"},
    "broker.protocol.framing": TALK | HEAVY | {"sqlite3", "structlog"},
    "broker.protocol.tensors": TALK | HEAVY | {"sqlite3", "structlog"},
    "broker.core": TALK | HEAVY | {"sqlite3"},
    "broker.ledger.memory": {"zmq"} | HEAVY,
    "broker.ledger.sqlite": {"zmq"} | HEAVY,
    "broker.server": HEAVY,
    "broker.cli": HEAVY,
    "edge_agent": HEAVY | {"zmq"},
    "edge_agent.plan.checker": TALK | {"torch"},
    "edge_agent.core": TALK | HEAVY | {"sqlite3"},
    "edge_agent.store": {"zmq"} | HEAVY,
    "edge_agent.agent": HEAVY,
    "edge_agent.cli": HEAVY,
    "edge_agent.runtimes.torch": {"zmq"},
    "coordinator.capture": {"zmq"},
    "coordinator.core": {"zmq", "asyncio", "sqlite3"} | HEAVY,
    "coordinator.cli": {"torch", "sklearn"},
}
"""A module, and what must not be loaded once it has been imported in a fresh interpreter."""

IMPURE = {"time", "datetime", "random", "secrets", "uuid", "threading", "subprocess", "signal", "structlog", "torch"}
"""What no core imports, nor anything that it is made of: time, randomness and effects are the driver's. numpy is not
among them: the tensor codec imports it inside functions that a core does not call, which the test above shows."""

DISK = {"sqlite3", "os", "pathlib", "io", "tempfile", "shutil", "mmap"}


def source_of(module: str) -> Path:
    """The file of a module, or of a package."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def imports_of(module: str) -> set[str]:
    """What a module's source imports, anywhere in it but for type checking, by full name."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source_of(module).read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in submodules if name.startswith(PACKAGES) and source_of(name).exists()}
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def made_of(module: str) -> dict[str, list[str]]:
    """All that a module imports, directly or not, each with the way that leads there."""
    ways = {module: [module]}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for name in sorted(imports_of(current)):
            if name not in ways:
                ways[name] = [*ways[current], name]
                if name.startswith(tuple(f"{package}." for package in PACKAGES)):
                    waiting.append(name)
    return ways


@pytest.mark.parametrize("module", LOADS_NEVER)
def test_a_module_does_not_load_what_its_room_never_imports(module: str) -> None:
    """Imported alone in a fresh interpreter: an agent that loaded numpy would be half as large again."""
    code = "import json, sys; __import__(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, module], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert LOADS_NEVER[module] & set(json.loads(done.stdout)) == set()


@pytest.mark.parametrize("core", CORES)
def test_a_core_is_pure_all_the_way_down(core: str) -> None:
    """No clock, no randomness of its own, no thread, no socket, no disk, in anything that it is made of."""
    ways = made_of(core)
    broken = {name: way for name, way in ways.items() if name.partition(".")[0] in IMPURE | TALK | DISK}
    assert {name: " -> ".join(way) for name, way in broken.items() if not is_type_only(name, way)} == {}


def is_type_only(name: str, way: list[str]) -> bool:
    """`random.Random` is handed in: naming its type is no use of its own randomness."""
    if name != "random":
        return False
    tree = ast.parse(source_of(way[-2]).read_text(encoding="utf-8"))
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return all(use.attr == "Random" for use in uses if isinstance(use.value, ast.Name) and use.value.id == "random")


def test_the_agents_use_of_the_broker_is_its_language_alone() -> None:
    """Messages, frames, logs, settings, and what a full disk says: a device has no broker inside."""
    allowed = ("broker.protocol", "broker.logs", "broker.settings", "broker.sockets", "broker.disk_space")
    for path in (ROOT / "edge_agent").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        used = {name for name in imports_of(module) if name.partition(".")[0] == "broker" and name != "broker"}
        assert {name for name in used if not name.startswith(allowed)} == set(), module


def test_the_broker_and_the_agent_know_nothing_above_them() -> None:
    """An import only ever points down."""
    above = {"broker": ("edge_agent", "coordinator"), "edge_agent": ("coordinator",)}
    for package, forbidden in above.items():
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            assert {name for name in imports_of(module) if name.partition(".")[0] in forbidden} == set(), module
