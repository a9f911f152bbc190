"""Runs a command under the system call rules of a systemd unit: what the unit forbids, the command cannot do here either.

    python3 sandbox.py UNIT COMMAND...

systemd itself is not needed for it, but its list of groups (systemd-analyze) is. Of the unit it takes SystemCallFilter=,
SystemCallErrorNumber=, RestrictAddressFamilies=, MemoryDenyWriteExecute= and NoNewPrivileges=.
"""

import errno
import mmap
import os
import socket
import subprocess
import sys

import seccomp

SHM_EXEC = 0o100000


def settings(unit):
    found = {}
    for line in open(unit, encoding="utf-8"):
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def calls_of(name, known):
    """A group's system calls, or the one call that is named."""
    if not name.startswith("@"):
        return {name}
    if name not in known:
        text = subprocess.run(
            ["systemd-analyze", "syscall-filter", "--no-pager", name], check=True, capture_output=True, text=True
        ).stdout
        members = [line.strip() for line in text.splitlines()[1:]]
        known[name] = set()
        for member in members:
            if member and not member.startswith("#"):
                known[name] |= calls_of(member, known)
    return known[name]


def allowed_calls(filters):
    known = {}
    # What systemd always lets through, so that the command can be executed at all.
    allowed = set(calls_of("@default", known)) | {"execve"}
    for line in filters:
        refuses = line.startswith("~")
        for name in line.lstrip("~").split():
            members = calls_of(name, known)
            allowed = allowed - members if refuses else allowed | members
    return allowed | {"execve"}


def restrict(unit):
    found = settings(unit)
    refusal = getattr(errno, found.get("SystemCallErrorNumber", ["EPERM"])[-1])
    allowed = allowed_calls(found["SystemCallFilter"])
    rules = seccomp.SyscallFilter(seccomp.ERRNO(refusal))
    narrowed = set()
    if found.get("MemoryDenyWriteExecute") == ["yes"]:
        both = mmap.PROT_WRITE | mmap.PROT_EXEC
        none, executable = seccomp.MASKED_EQ, mmap.PROT_EXEC
        for protection in (0, mmap.PROT_WRITE, mmap.PROT_EXEC):
            rules.add_rule(seccomp.ALLOW, "mmap", seccomp.Arg(2, none, both, protection))
        for call in ("mprotect", "pkey_mprotect"):
            rules.add_rule(seccomp.ALLOW, call, seccomp.Arg(2, none, executable, 0))
        rules.add_rule(seccomp.ALLOW, "shmat", seccomp.Arg(2, none, SHM_EXEC, 0))
        narrowed |= {"mmap", "mprotect", "pkey_mprotect", "shmat"}
    if "RestrictAddressFamilies" in found:
        for family in found["RestrictAddressFamilies"][-1].split():
            rules.add_rule(seccomp.ALLOW, "socket", seccomp.Arg(0, seccomp.EQ, int(getattr(socket, family))))
        narrowed.add("socket")
    for call in sorted(allowed - narrowed):
        try:
            rules.add_rule(seccomp.ALLOW, call)
        except (OSError, RuntimeError, ValueError):
            # Of another machine's architecture, or newer than this library.
            continue
    rules.set_attr(seccomp.Attr.CTL_NNP, 1)
    rules.load()


if __name__ == "__main__":
    restrict(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])
