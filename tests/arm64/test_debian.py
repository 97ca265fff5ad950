"""What is said where arm64 cannot be emulated, and where Debian is taken from."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from tests.arm64.debian import CannotEmulate, make_root, mirror_in

LISTED = """\
Debian bookworm-security http://mirror.example/debian-security/
Somebody stable http://mirror.example/somebody/
Debian bookworm http://mirror.example/debian/
"""


def test_debian_is_taken_from_where_apt_has_it() -> None:
    """The archive of a release: neither that of its security updates, nor somebody else's."""
    assert mirror_in(LISTED) == "http://mirror.example/debian/"
    assert mirror_in(LISTED.replace("Debian bookworm ", "Ubuntu noble ")) == ""


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command to say, and nothing is made."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("tests.arm64.debian.NEEDS", {"debootstrap": "debootstrap", "/no/such/file": "qemu-user-static"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotEmulate) as caught:
        make_root(tmp_path / "debian")
    assert str(caught.value) == ("emulation of arm64 needs more programs: apt-get install debootstrap qemu-user-static")
    assert not list(tmp_path.iterdir())


def test_no_emulation_of_what_the_machine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an arm64 the light agent is tested as it is."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(CannotEmulate, match=re.escape("make light does it without emulation")):
        make_root(tmp_path / "debian")
