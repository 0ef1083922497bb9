"""The system calls a sandboxed program is refused: those that reach around its namespaces and limits.

A list of what is denied, not of what is allowed: namespaces and mounts, other processes' memory, the kernel's keyrings,
BPF, io_uring, memory that no limit counts (memfd, System V), and other processes' limits and priorities.
"""

from __future__ import annotations

import struct

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NEW_NAMESPACES = 0x7E020000
"""Every CLONE_NEW* flag of clone."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
"""Offsets in seccomp_data; the argument is the first one's low half (both machines are little-endian)."""

_CLONE3 = 435
_COMMON = (
    *(425, 426, 427),  # io_uring_setup, _enter, _register
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    *(438, 447),  # pidfd_getfd, memfd_secret
)
_X86_64 = (
    *(272, 308, 165, 166, 155, 304),  # unshare, setns, mount, umount2, pivot_root, open_by_handle_at
    *(101, 310, 311),  # ptrace, process_vm_readv, process_vm_writev
    *(248, 249, 250),  # add_key, request_key, keyctl
    *(321, 298, 323),  # bpf, perf_event_open, userfaultfd
    *(319, 29, 64, 68),  # memfd_create, shmget, semget, msgget
    *(141, 142, 144, 314, 203, 251),  # setpriority, sched_setparam, _setscheduler, _setattr, _setaffinity, ioprio_set
)
_AARCH64 = (
    *(97, 268, 40, 39, 41, 265),
    *(117, 270, 271),
    *(217, 218, 219),
    *(280, 241, 282),
    *(279, 194, 190, 186),
    *(140, 118, 119, 274, 122, 30),
)
_MACHINES = {"x86_64": (0xC000003E, 56, 302, _X86_64), "aarch64": (0xC00000B7, 220, 261, _AARCH64)}
"""Architecture, clone, prlimit64, and what is denied there."""


def filter_for(machine: str) -> bytes | None:
    """The BPF program for `platform.machine()`, as bwrap --seccomp reads it; None where its numbers aren't known."""
    if machine not in _MACHINES:
        return None
    arch, clone, prlimit, denied = _MACHINES[machine]
    code = [
        _step(_LOAD, _ARCH),
        *_if(_EQUAL, arch, None, KILL),
        _step(_LOAD, _NUMBER),
        *_if(_AT_LEAST, 0x40000000, KILL, None),  # the x32 calls have numbers of their own
        *_if(_EQUAL, _CLONE3, ERRNO | ENOSYS, None),  # its flags are in memory; libraries fall back to clone
    ]
    for number in (*_COMMON, *denied):
        code += _if(_EQUAL, number, ERRNO | EPERM, None)
    code += [
        _step(_EQUAL, clone, 0, 4),
        _step(_LOAD, _ARGUMENT),
        *_if(_ANY_BIT, NEW_NAMESPACES, ERRNO | EPERM, None),
        _step(_RETURN, ALLOW),
        _step(_EQUAL, prlimit, 0, 3),
        _step(_LOAD, _ARGUMENT),
        *_if(_EQUAL, 0, None, ERRNO | EPERM),  # 0 is the caller itself
        _step(_RETURN, ALLOW),
    ]
    return b"".join(code)


def _if(test: int, value: int, then: int | None, otherwise: int | None) -> list[bytes]:
    """Return at once where a test holds (or where it doesn't), else go on."""
    result = then if otherwise is None else otherwise
    assert result is not None
    return [_step(test, value, 0 if otherwise is None else 1, 1 if otherwise is None else 0), _step(_RETURN, result)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
