"""What `pip install` brings: the three packages, the programs, and no torch unless it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, as pip would build it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (path,) = folder.glob("edgeplan-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """What the wheel says of itself."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No tests, no documents; type information for each package."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"broker", "edge_agent", "coordinator"}
    assert {name for name in wheel.namelist() if name.endswith("py.typed")} == {
        "broker/py.typed",
        "edge_agent/py.typed",
        "coordinator/py.typed",
    }


def test_the_base_install_has_no_torch(metadata: Message) -> None:
    """A broker and a light device are installed without it; each heavy thing is an extra."""
    required = metadata.get_all("Requires-Dist") or []
    base = {re.split(r"[<>=~!; ]", line)[0] for line in required if "extra ==" not in line}
    assert base.isdisjoint({"torch", "onnxruntime", "scikit-learn", "pytest"})
    assert {"pyzmq", "msgspec", "msgpack-numpy", "structlog", "click"} <= base
    assert set(metadata.get_all("Provides-Extra") or []) == {"torch", "onnx", "translation", "docs", "dev"}


def test_the_programs_are_installed(wheel: zipfile.ZipFile) -> None:
    """Each console script names a function that is in the wheel."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    scripts = dict(re.findall(r"^(\S+) = (\S+)$", wheel.read(name).decode(), flags=re.MULTILINE))
    assert scripts.keys() == {"edgeplan", "edgeplan-broker", "edgeplan-agent"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        source = wheel.read(module.replace(".", "/") + ".py").decode()
        assert re.search(rf"^def {function}\(", source, flags=re.MULTILINE)
        package = module.partition(".")[0]
        assert f"{package}/__main__.py" in wheel.namelist()


def test_every_dependency_is_pinned() -> None:
    """`make setup` installs the same packages everywhere: each that is named in pyproject.toml has its version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = text.partition("[project.scripts]")[0].partition("dependencies = [")[2]
    named = {normal(name) for name in re.findall(r'"([A-Za-z][\w-]*)(?:[<>=~][^"]*)"', project)}
    assert "torch" in named
    assert named - pinned == set()


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
