"""Linux namespaces, mounts and privileges, by the C library's own calls.

bubblewrap builds the outer wall. What is here divides what runs inside it: each run gets walls of
its own without paying for a new Python process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 0x4000, 0x40000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones.

    Raises:
        OSError: it is not allowed here.
    """
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount, as mount(2) does.

    Raises:
        OSError: it is not allowed, or `target` is no folder.
    """
    words = [word.encode() or None for word in (source, target, kind)]
    status = _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None)
    _check(status, f"mount {kind} at {target}")


def raise_loopback() -> None:
    """Bring `lo` up: in a new network namespace it is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sH14x", answer)[1] | _IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def become(user: int) -> None:
    """Enter a user namespace of one's own, as `user`, in which no further one can be made.

    Raises:
        OSError: it is not allowed here.
    """
    outside, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {outside} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{user} {group} 1", encoding="ascii")
    for kind in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup"):
        Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0", encoding="ascii")


def drop_privileges() -> None:
    """Give up every capability for good, here and in whatever is started from here."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability) != 0:
            break
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, nothing), "capset")


def set_dumpable(value: bool) -> None:
    """Whether processes of the same user may trace this one and read its memory."""
    _check(_prctl(_PR_SET_DUMPABLE, int(value)), "dumpable")


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send this signal when the parent ends."""
    _check(_prctl(_PR_SET_PDEATHSIG, signal_number), "parent death signal")


def _prctl(option: int, argument: int) -> int:
    zero = ctypes.c_ulong(0)
    result: int = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero)
    return result


def _check(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
