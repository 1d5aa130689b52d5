"""What Windows has where POSIX has other calls. Imported on Windows alone, by ``portable``."""

from __future__ import annotations

import ctypes
import msvcrt
import os
import sys
from ctypes import wintypes

assert sys.platform == "win32", "a module for Windows"

_GENERIC_READ, _GENERIC_WRITE = 0x80000000, 0x40000000
# Others may read, write, rename and delete a file that we have open, as POSIX lets them.
_SHARE_ALL = 0x7
_CREATE_NEW, _OPEN_EXISTING, _OPEN_ALWAYS = 1, 3, 4
_NORMAL, _BACKUP_SEMANTICS, _OPEN_REPARSE_POINT = 0x80, 0x02000000, 0x00200000
_INVALID_HANDLE = wintypes.HANDLE(-1).value

_LOCK_AT_ONCE, _LOCK_EXCLUSIVE = 1, 2
_HANDLE_EOF, _LOCK_VIOLATION, _NOT_LOCKED, _IO_PENDING = 38, 33, 158, 997

_QUERY_LIMITED, _SYNCHRONIZE = 0x1000, 0x00100000
_ACCESS_DENIED, _WAIT_TIMEOUT = 5, 258

_DRIVE_REMOTE = 4

NO_LINK = 1 << 28
"""A flag of ``open_file`` that the C library does not know."""


class _Overlapped(ctypes.Structure):
    """Where in a file a call begins."""

    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", wintypes.DWORD),
        ("offset_high", wintypes.DWORD),
        ("event", wintypes.HANDLE),
    )


_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel.CreateFileW.argtypes = (
    *(wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, ctypes.c_void_p, wintypes.DWORD),
    *(wintypes.DWORD, wintypes.HANDLE),
)
_kernel.CreateFileW.restype = wintypes.HANDLE
for _call in (_kernel.ReadFile, _kernel.WriteFile):
    _call.argtypes = (
        *(wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD, ctypes.POINTER(wintypes.DWORD)),
        ctypes.POINTER(_Overlapped),
    )
_range = (wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, ctypes.POINTER(_Overlapped))
_kernel.LockFileEx.argtypes = (wintypes.HANDLE, wintypes.DWORD, *_range)
_kernel.UnlockFileEx.argtypes = (wintypes.HANDLE, *_range)
_kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
_kernel.OpenProcess.restype = wintypes.HANDLE
_kernel.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
_kernel.GetProcessTimes.argtypes = (wintypes.HANDLE, *[ctypes.POINTER(wintypes.FILETIME)] * 4)
_kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
_kernel.GetDriveTypeW.argtypes = (wintypes.LPCWSTR,)


# ---- files ----------------------------------------------------------------------------------


def open_file(path: str, flags: int, _mode: int = 0o666) -> int:
    """Open a file as ``os.open`` does, but so that it can be renamed and deleted meanwhile."""
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    access = (_GENERIC_WRITE if writes else 0) | (0 if flags & os.O_WRONLY else _GENERIC_READ)
    disposition = _OPEN_EXISTING
    if flags & os.O_CREAT:
        disposition = _CREATE_NEW if flags & os.O_EXCL else _OPEN_ALWAYS
    how = _NORMAL
    if not writes:
        # A directory can be opened too, and be told from a file.
        how |= _BACKUP_SEMANTICS
    if flags & NO_LINK:
        # A link itself is no regular file, nor a directory, for those who look.
        how |= _OPEN_REPARSE_POINT
    handle = _kernel.CreateFileW(path, access, _SHARE_ALL, None, disposition, how, None)
    if handle == _INVALID_HANDLE:
        raise _error(path)
    known = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_NOINHERIT | os.O_BINARY
    try:
        return msvcrt.open_osfhandle(handle, flags & known)
    except OSError:
        _kernel.CloseHandle(handle)
        raise


def pread(descriptor: int, length: int, offset: int) -> bytes:
    """Read from a place of a file; less at its end."""
    buffer, done = bytearray(length), wintypes.DWORD()
    place = _place(offset)
    address = (ctypes.c_char * length).from_buffer(buffer) if length else None
    if not _kernel.ReadFile(_handle(descriptor), address, length, done, place):
        if ctypes.get_last_error() != _HANDLE_EOF:
            raise _error()
        return b""
    return bytes(memoryview(buffer)[: done.value])


def pwrite(descriptor: int, data: bytes, offset: int) -> int:
    """Write to a place of a file."""
    done = wintypes.DWORD()
    if not _kernel.WriteFile(_handle(descriptor), data, len(data), done, _place(offset)):
        raise _error()
    return done.value


def longest_path() -> int:
    """Give how many characters a path may have: many more where the user has said so."""
    enabled = getattr(ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)
    return 32_767 if enabled is not None and enabled() & 1 else 260


def is_remote(path: str) -> bool:
    """Tell whether a path is on another machine, which Windows knows by its drive."""
    return bool(_kernel.GetDriveTypeW(os.path.splitdrive(path)[0] + "\\") == _DRIVE_REMOTE)


# ---- locks ----------------------------------------------------------------------------------


def try_lock(descriptor: int, start: int, length: int, *, shared: bool) -> bool:
    """Lock a range of bytes for this opening, unless any opening has locked some of it.

    Nobody else can read or write them then, so that they should be bytes that nobody uses.
    """
    how = _LOCK_AT_ONCE if shared else _LOCK_AT_ONCE | _LOCK_EXCLUSIVE
    place = _place(start)
    if _kernel.LockFileEx(_handle(descriptor), how, 0, *_halves(length), place):
        return True
    if ctypes.get_last_error() in (_LOCK_VIOLATION, _IO_PENDING):
        return False
    raise _error()


def unlock(descriptor: int, start: int, length: int) -> None:
    """Give back a range that was locked as such; nothing happens if it was not."""
    if _kernel.UnlockFileEx(_handle(descriptor), 0, *_halves(length), _place(start)):
        return
    if ctypes.get_last_error() not in (_NOT_LOCKED, _LOCK_VIOLATION):
        raise _error()


# ---- processes ------------------------------------------------------------------------------


def process_started(pid: int) -> int | None:
    """When a process began, in units of 100 ns; None if it has ended, 0 if it is not for us."""
    process = _kernel.OpenProcess(_QUERY_LIMITED | _SYNCHRONIZE, False, pid)
    if not process:
        return 0 if ctypes.get_last_error() == _ACCESS_DENIED else None
    try:
        if _kernel.WaitForSingleObject(process, 0) != _WAIT_TIMEOUT:
            return None
        times = [wintypes.FILETIME() for _ in range(4)]
        if not _kernel.GetProcessTimes(process, *times):
            return 0
        return times[0].dwHighDateTime << 32 | times[0].dwLowDateTime
    finally:
        _kernel.CloseHandle(process)


# ---- helpers --------------------------------------------------------------------------------


def _handle(descriptor: int) -> int:
    return msvcrt.get_osfhandle(descriptor)


def _halves(number: int) -> tuple[int, int]:
    return number & 0xFFFFFFFF, number >> 32


def _place(offset: int) -> _Overlapped:
    low, high = _halves(offset)
    return _Overlapped(offset=low, offset_high=high)


def _error(path: str | None = None) -> OSError:
    error = ctypes.WinError(ctypes.get_last_error())
    error.filename = path
    return error
