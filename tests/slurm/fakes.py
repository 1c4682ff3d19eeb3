"""Commands in front of Slurm's own, and system calls that fail: what a cluster answers on bad days."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def put_in_front(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Shell scripts that are found before the commands of their names; REAL stands for the command itself."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script.replace('REAL', shutil.which(name) or f'/nothing/{name}')}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def forbidding_requeue(folder: Path) -> None:
    """A scontrol, to be put in front, that answers as where a site forbids requeueing."""
    refusal = 'echo "Requested operation is presently disabled for job $2" >&2; exit 1'
    folder.mkdir(parents=True, exist_ok=True)
    real = shutil.which("scontrol")
    (folder / "scontrol").write_text(f'#!/bin/sh\n[ "$1" = requeue ] && {{ {refusal}; }}\nexec {real} "$@"\n')
    (folder / "scontrol").chmod(0o755)


FAILING_CALLS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* While the file $FAULT_FLAG is there, calls on paths that hold its second word, in processes whose command line holds
   its third, fail with the errno that is its first; no space left (28) is for calls that write. */
static int fails(const char *path, int writes) {
    const char *flag = getenv("FAULT_FLAG");
    char text[600], command[4096], part[400], who[100];
    int number, file, length;
    if (!flag || !path || (file = syscall(SYS_openat, AT_FDCWD, flag, O_RDONLY)) < 0) return 0;
    length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (length <= 0) return 0;
    text[length] = 0;
    if (sscanf(text, "%d %399s %99s", &number, part, who) != 3 || !strstr(path, part)) return 0;
    if (number == ENOSPC && !writes) return 0;
    file = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
    length = syscall(SYS_read, file, command, sizeof command - 1);
    syscall(SYS_close, file);
    for (int i = 0; i < length; i++) if (!command[i]) command[i] = ' ';
    command[length > 0 ? length : 0] = 0;
    if (!strstr(command, who)) return 0;
    errno = number;
    return 1;
}
#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)
int open(const char *path, int flags, ...) {
    NEXT(open); va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list);
    return fails(path, flags & O_CREAT) ? -1 : next(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    NEXT(open64); va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list);
    return fails(path, flags & O_CREAT) ? -1 : next(path, flags, mode);
}
int stat(const char *path, struct stat *to) { NEXT(stat); return fails(path, 0) ? -1 : next(path, to); }
int stat64(const char *path, struct stat64 *to) { NEXT(stat64); return fails(path, 0) ? -1 : next(path, to); }
int mkdir(const char *path, mode_t mode) { NEXT(mkdir); return fails(path, 1) ? -1 : next(path, mode); }
ssize_t write(int to, const void *bytes, size_t count) {
    NEXT(write);
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", to);
    int length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    return fails(path, 1) ? -1 : next(to, bytes, count);
}
/* A file system without locks. */
int flock(int file, int operation) {
    NEXT(flock);
    if (!getenv("NO_FLOCK")) return next(file, operation);
    errno = ENOSYS;
    return -1;
}
"""


def failing_calls(folder: Path) -> Path:
    """A library for LD_PRELOAD that lets calls on files fail, compiled here."""
    source, library = folder / "failing.c", folder / "failing.so"
    source.write_text(FAILING_CALLS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    return library
