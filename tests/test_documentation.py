"""What the documents show runs, what they name exists, and they build without a warning."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from broker.settings import ExitCode

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_AND_SHOWN = re.compile(r"^```python\n(.+?)^```\n\n```text\n(.+?)^```", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(code, output, id=f"{path.name}-{k}")
    for path in DOCUMENTS
    for k, (code, output) in enumerate(RUN_AND_SHOWN.findall(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_an_example_prints_what_is_shown_below_it(code: str, output: str, tmp_path: Path) -> None:
    """As a program of its own, run by whoever copies it."""
    program = tmp_path / "example.py"
    program.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_readme_and_tutorial_have_examples() -> None:
    """The pattern above still finds them."""
    assert {str(example.id).partition("-")[0] for example in EXAMPLES} >= {"README.md", "getting"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """Files of the repository; other places are not asked."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_that_are_named_exist(path: Path) -> None:
    """``make demo`` in a document is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z0-9]+)", text, flags=re.MULTILINE))
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_the_exit_codes_are_listed() -> None:
    """Number and name of each, and no other."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d) \| `(\w+)` \|", text, flags=re.MULTILINE)
    assert [(int(number), name) for number, name in listed] == [(code.value, code.name) for code in ExitCode]


@pytest.mark.parametrize("module", ["broker.cli", "edge_agent.cli"])
def test_every_setting_of_a_service_is_listed(module: str) -> None:
    """Each flag of its ``run`` command has a row, and each row of its table is a flag."""
    program = importlib.import_module(module).cli
    common = {"--log-level", "--log-format", "--insecure", "--config"}
    flags = {option.opts[0] for option in program.commands["run"].params if isinstance(option, click.Option)}
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    name = {"broker.cli": "edgeplan-broker", "edge_agent.cli": "edgeplan-agent"}[module]
    table = text.partition(f"| setting of `{name} run` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(--[\w-]+)` \|", table, flags=re.MULTILINE)) == flags - common
    assert all(re.search(rf"`{flag}\b", text) for flag in common)


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """A broken link between its pages, or a page that no menu leads to, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "protocol.html").is_file()
