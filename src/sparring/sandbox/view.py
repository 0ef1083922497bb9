"""What a program in bubblewrap sees and is: an interpreter, libraries, a small /tmp; nobody, with no rights.

All is mounted read-only but /tmp and /dev, which are small and its own. There is no device: /dev/null is a plain file.

A user's program is in a user namespace of its own, where the kernel counts its processes alone (Linux 5.14). Root would
be root to the kernel there too, whatever its uid inside: owner of root's files and sysctls, with no limit of processes.
So root's sandbox has no user namespace, and judge and program become a user that nobody else is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sparring.sandbox import inside
from sparring.sandbox.base import Limits

NOBODY = "65534"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/harness",
    "PYTHONHASHSEED": "0",  # the same program, the same outcome
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # an arena a thread would eat the address space
}
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")

_AS_USER = ("--unshare-all", "--uid", NOBODY, "--gid", NOBODY, "--cap-drop", "ALL")
_AS_ROOT = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),  # gone with the change of user
)


def is_root() -> bool:
    """Whether this is root to the kernel, not in a user namespace alone (a rootless container's)."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]


def options(limits: Limits, folders: Sequence[Path], root: bool) -> list[str]:
    """bwrap's options; folders: what the interpreter needs, parents first."""
    given = [*(_AS_ROOT if root else _AS_USER), "--die-with-parent", "--as-pid-1", "--new-session"]
    given += ["--hostname", "sandbox", "--clearenv", "--chdir", "/tmp"]  # noqa: S108
    for name, value in ENVIRONMENT.items():
        given += ["--setenv", name, value]
    given += ["--proc", "/proc", "--remount-ro", "/proc"]
    for folder in ("/tmp", "/dev"):  # noqa: S108
        given += ["--perms", "1777", "--size", str(limits.file_size), "--tmpfs", folder]
    given += ["--perms", "1777", "--dir", "/dev/shm"]  # noqa: S108
    given += _shown(Path(inside.__file__).parent, Path("/harness/inside"))
    for place in (*map(Path, LIBRARIES), *folders):
        given += _shown(place, place)
    return [*given, "--remount-ro", "/"]


def _shown(source: Path, place: Path) -> list[str]:
    """A file, folder or link of this machine, and the way to it (which bwrap would close to all but its owner)."""
    way = [option for parent in reversed(place.parents[:-1]) for option in ("--dir", str(parent))]
    if source.is_symlink():
        return [*way, "--symlink", str(source.readlink()), str(place)]
    return [*way, "--ro-bind", str(source), str(place)] if source.exists() else []
