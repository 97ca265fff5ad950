"""What is in deploy/: units that systemd accepts, settings that load, a container file that names what exists."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.processes import started

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a unit whose program exists on this machine: systemd looks for it."""
    path: Path = request.param
    text = path.read_text(encoding="utf-8")
    copied = tmp_path / path.name
    copied.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE))
    return copied


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, indirect=True, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit: Path) -> None:
    """Without a word: an unknown key is only a warning to systemd, and a setting that does nothing to us."""
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, indirect=True, ids=lambda path: path.name)
def test_the_unit_is_hardened(unit: Path) -> None:
    """systemd's own measure of exposure: 0 is none, 10 is a unit with no restriction at all; ours stay below 2."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) < 2.0


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_unit_runs_a_program_of_ours_with_settings_that_are_there(path: Path) -> None:
    """ExecStart names a console script, its command, and an example of its settings file."""
    (program, settings) = re.findall(
        r"^ExecStart=/opt/edgeplan/bin/(\S+) run --config /etc/edgeplan/(\S+)$", path.read_text(), flags=re.MULTILINE
    )[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert program in project["scripts"]
    assert (DEPLOY / settings).is_file()


def test_the_broker_starts_with_its_example_settings(tmp_path: Path) -> None:
    """All keys are known and of the right type; it listens, and ends cleanly."""
    command = [sys.executable, "-m", "broker", "run", "--config", str(DEPLOY / "broker.toml"), "--data", str(tmp_path)]
    anywhere = [f"--{name}=tcp://127.0.0.1:*" for name in ("listen", "logs", "blobs")]
    with started(*command, *anywhere, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            events = []
            for line in process.stderr:
                events.append(json.loads(line)["event"])
                if events[-1] == "broker_listening":
                    break
            assert "broker_listening" in events
            assert "encryption_missing" not in events
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
        assert process.wait(30) == 0


@pytest.mark.parametrize(("package", "settings"), [("broker", "broker.toml"), ("edge_agent", "agent.toml")])
def test_the_example_settings_are_settings(package: str, settings: str) -> None:
    """Every key is one that the program's commands have."""
    command = [sys.executable, "-m", package, "run", "--config", str(DEPLOY / settings), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for key in tomllib.loads((DEPLOY / settings).read_text(encoding="utf-8")):
        assert f"--{key}" in done.stdout


def test_the_container_file_copies_what_exists() -> None:
    """Everything that the build copies is in the repository."""
    sources = [
        source for line in re.findall(r"^COPY (.+)$", CONTAINERFILE, re.MULTILINE) for source in line.split()[:-1]
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_container_file_has_a_stage_for_each_program() -> None:
    """Each runs a console script of ours, and no stage runs as root in the end."""
    assert re.findall(r"^FROM \S+ AS (\w+)$", CONTAINERFILE, re.MULTILINE) == ["base", "broker", "agent"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for name, stage in zip(("broker", "agent"), CONTAINERFILE.split("FROM base AS ")[1:], strict=True):
        (program,) = re.findall(r'^ENTRYPOINT \["([\w-]+)", "run"\]$', stage, re.MULTILINE)
        assert program == f"edgeplan-{name}"
        assert program in scripts
        assert re.findall(r"^USER (\w+)$", stage, re.MULTILINE)[-1:] in ([], ["edgeplan"])


def test_the_container_files_extras_exist() -> None:
    """The default runtime is an extra of the package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert re.findall(r"^ARG RUNTIME=(\w+)$", CONTAINERFILE, re.MULTILINE)[0] in extras
