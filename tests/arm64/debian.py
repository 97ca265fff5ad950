"""A Debian for arm64 on a machine with another processor: debootstrap makes it, qemu runs its programs.

Wherever the kernel is told to execute a program for arm64 it starts qemu, so such a program starts others as it would
on a device. The kernel is told so (binfmt_misc) in a user namespace of our own, as it can be since Linux 6.7: the
machine knows nothing of it, and nothing has to be undone. Before 6.7 the machine itself must know it.

The processor is a Raspberry Pi 4's: what needs a newer one fails here as it would there.

Needs root, and what `NEEDS` lists.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

__all__ = ["NEEDS", "SUITE", "CannotEmulate", "inside", "make_root", "mirror_in"]

SUITE = "bookworm"
"""The release of Debian, which decides on the version of Python: 3.11."""

NEEDS = {
    "debootstrap": "debootstrap",
    "/usr/lib/binfmt.d/qemu-aarch64.conf": "qemu-user-static",
}
"""A program and a file, and the packages of Debian that have them."""

_TAIL = 8
"""How many lines of a log an error shows."""

_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

_QEMU = """
if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    if ! mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; then
        echo "this kernel (before Linux 6.7?) runs programs for arm64 only where the whole machine does:" \
            "systemctl restart systemd-binfmt" >&2
        exit 1
    fi
    cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register
fi
"""
"""Lets the kernel start qemu for arm64. The file's line has the flag F: qemu is opened now, and found in any root."""

_CONFIGURE = f"""
echo ready
read -r mapped
exec >&2
{_QEMU}
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for each in null zero full random urandom tty; do
    touch "$1/dev/$each"
    mount --bind "/dev/$each" "$1/dev/$each"
done
exec env --ignore-environment {_PATH} LC_ALL=C DEBIAN_FRONTEND=noninteractive container=lxc \
    chroot "$1" /debootstrap/debootstrap --second-stage
"""
"""debootstrap's second stage in the root $1: its packages' own scripts run. In a container (which is what debootstrap
must call it) no devices can be made: it has the machine's."""

_ENTER = f"""
{_QEMU}
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys"
mount --rbind /proc "$1/proc"
mount -t tmpfs tmpfs "$1/run"
printf %s "$3" > "$1/run/cpuinfo"
mount --bind "$1/run/cpuinfo" "$1/proc/cpuinfo"
mount --bind "$2" "$1/mnt"
root=$1
shift 3
exec env --ignore-environment {_PATH} LC_ALL=C.UTF-8 HOME=/root QEMU_CPU=cortex-a72 chroot "$root" "$@"
"""
"""Runs a command in the root $1, with the folder $2 at /mnt and $3 in /proc/cpuinfo; all of these are its own. The
machine's own file tells of another processor: onnxruntime, which reads there what it may use, dies of it."""

_PROCESSOR = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""Of a Cortex-A72, in /proc/cpuinfo."""


class CannotEmulate(RuntimeError):
    """The machine cannot make the root; it says why, and what to do about it."""


def make_root(root: Path, mirror: str = "") -> None:
    """Make the Debian in a folder that is not there yet, in some minutes. ``mirror``: a URL, else where apt has Debian
    from. What is said meanwhile is kept beside it, in ``debootstrap.log``. Raises `CannotEmulate`.
    """
    _check()
    mirror = mirror or _mirror()
    half = root.with_name(f"{root.name}.half")
    if half.exists():
        shutil.rmtree(half)
    half.parent.mkdir(parents=True, exist_ok=True)
    log = root.with_name("debootstrap.log")
    print(f"Making a Debian ({SUITE}) for arm64 in {root}: takes some minutes; {log} has what is done", flush=True)
    with log.open("w", encoding="utf-8") as file:
        packages = ("--variant=minbase", "--include=python3")
        fetched = subprocess.run(
            ["debootstrap", "--foreign", "--arch=arm64", *packages, SUITE, half, mirror],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        made = fetched.returncode == 0 and _configured(half, file.fileno())
    if not made:
        raise CannotEmulate("debootstrap failed; its last words:\n" + _tail(log))
    for package in (half / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    half.rename(root)


def inside(root: Path, share: Path) -> tuple[str, ...]:
    """What to put before a command that is to run in the root, under its own process id; the folder ``share`` is
    ``/mnt`` there. It has the machine's network, and neither its files nor its environment.
    """
    processors = "".join(_PROCESSOR.format(number=number) for number in range(os.cpu_count() or 1))
    namespaces = ("unshare", "--user", "--map-root-user", "--mount")
    return (*namespaces, "sh", "-euc", _ENTER, "sh", str(root.resolve()), str(share.resolve()), processors)


def mirror_in(listed: str) -> str:
    """The URL of Debian's archive in a list of apt's sources, each a line of origin, codename and URL; empty if none
    is. Security updates and the like have archives and codenames of their own.
    """
    for line in listed.splitlines():
        origin, _, where = line.partition(" ")
        codename, _, url = where.partition(" ")
        if origin == "Debian" and "-" not in codename:
            return url
    return ""


def _mirror() -> str:
    listed = ""
    if shutil.which("apt-get"):
        asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
        listed = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=60).stdout
    if not (found := mirror_in(listed)):
        raise CannotEmulate("apt knows no mirror of Debian: say apt-get update, or make arm64 MIRROR=URL")
    return found


def _check() -> None:
    if platform.machine() == "aarch64":
        raise CannotEmulate("this machine is an arm64 itself: make light does it without emulation")
    missing = [package for need, package in NEEDS.items() if not (shutil.which(need) or Path("/", need).is_file())]
    if missing:
        raise CannotEmulate(f"emulation of arm64 needs more programs: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise CannotEmulate("debootstrap makes files of many owners: run it as root")


def _configured(root: Path, log: int) -> bool:
    """Whether the second stage did what it should. Its user namespace has all the users that this one has, by the same
    numbers, since packages have files of many; only from outside can it be given them.
    """
    namespaces = ("unshare", "--user", "--mount", "--pid", "--fork", "--kill-child")
    command = [*namespaces, "sh", "-euc", _CONFIGURE, "sh", os.fspath(root.resolve())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() == "ready\n":
            for ids in ("uid_map", "gid_map"):
                ours = Path(f"/proc/self/{ids}").read_text(encoding="ascii").splitlines()
                try:
                    Path(f"/proc/{process.pid}/{ids}").write_text(_alike(ours), encoding="ascii")
                except OSError as error:
                    raise CannotEmulate(f"a user namespace cannot have this machine's users: {error}") from error
            process.stdin.write("mapped\n")
    return process.returncode == 0


def _alike(ids: Iterable[str]) -> str:
    """The same numbers inside as outside: of each range the first one here, and how many there are."""
    ranges = [line.split() for line in ids]
    return "".join(f"{first} {first} {count}\n" for first, _, count in ranges)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])
