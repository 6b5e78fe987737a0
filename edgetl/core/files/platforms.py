"""Differences between Linux, macOS and Windows.

Linux is tested. macOS and Windows are supported but not tested; tests remove the functions that they do not have.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import ctypes
    import msvcrt
else:
    import fcntl
    import resource

WINDOWS = os.name == "nt"
# Error codes of file systems without locks, such as some network and FUSE file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_BLOCK = bytes(1 << 20)


def flush_file(path: Path) -> None:
    """Flush the content of ``path`` to the disk. Windows needs a writable descriptor."""
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the entries of ``folder`` to the disk. Windows and some network file systems do not support it."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def reserve_space(file: BinaryIO, size_bytes: int) -> None:
    """Allocate ``size_bytes`` on the disk for ``file``. A full disk is then an error here, not when a mapped page is written.

    macOS and Windows have no ``posix_fallocate``. There the function overwrites the file with zeros.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        return
    file.seek(0)
    for start in range(0, size_bytes, len(_BLOCK)):
        file.write(_BLOCK[: min(len(_BLOCK), size_bytes - start)])
    file.flush()


def process_runs(pid: int) -> bool:
    """Return true if a process ``pid`` exists. Always false on Windows, where signal 0 would end the process."""
    if WINDOWS:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def try_lock(descriptor: int) -> bool:
    """Try to lock an open, writable file exclusively, without waiting. Return false if another process holds the lock.

    The system releases the lock when the process ends. POSIX record locks are used: a forked child does not inherit them. On a file system
    without locks the result is always true.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def allow_open_files(count: int) -> None:
    """Raise the soft limit of this process on open files by ``count``, up to its hard limit. Windows has no such limit."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, bytes; 0 if the system does not report it."""
    if sys.platform == "win32":
        return _windows_peak_bytes()
    # VmHWM of Linux belongs to the address space. ``ru_maxrss`` includes the parent that this process was forked from.
    with suppress(OSError, StopIteration), open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if sys.platform == "win32":

    def _windows_peak_bytes() -> int:
        """Return ``PeakWorkingSetSize`` of the process status API (learn.microsoft.com, ``PROCESS_MEMORY_COUNTERS``)."""
        quotas = ("QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage", "QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage")
        sizes = ("PeakWorkingSetSize", "WorkingSetSize", *quotas, "PagefileUsage", "PeakPagefileUsage")

        class Counters(ctypes.Structure):
            _fields_ = [("cb", ctypes.c_uint32), ("PageFaultCount", ctypes.c_uint32), *((name, ctypes.c_size_t) for name in sizes)]

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        found = kernel.K32GetProcessMemoryInfo(ctypes.c_void_p(kernel.GetCurrentProcess()), ctypes.byref(counters), counters.cb)
        return int(counters.PeakWorkingSetSize) if found else 0
