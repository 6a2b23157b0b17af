"""A filter of system calls for code that nobody has read, compiled and loaded by libseccomp.

Refused is what reaches past files, memory and the process's own children: namespaces and mounts, sockets that lead
anywhere, tracing, keys, memory that no limit counts, and the interfaces in which the kernel's faults were found most
often. A refused call gives EPERM, as if the right to it were lacking. With the standard library alone, as `sandbox.py`.
"""

from __future__ import annotations

import ctypes
import errno

ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NAMESPACES = 0x7E020080  # the bits of clone(2) that make namespaces: time, mount, cgroup, uts, ipc, user, pid, net
MASKED_EQUAL = 7  # libseccomp's SCMP_CMP_MASKED_EQ: the argument's bits of a mask are those given
REFUSED = (
    "unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree",
    "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount",
    "swapon", "swapoff", "quotactl", "quotactl_fd", "name_to_handle_at", "open_by_handle_at",
    "socket", "connect", "bind", "listen", "accept", "accept4",
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_open", "pidfd_getfd",
    "add_key", "request_key", "keyctl",
    "memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv", "msgctl",
    "semget", "semop", "semctl", "semtimedop", "mq_open", "mq_unlink", "remap_file_pages", "userfaultfd",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit",
    "bpf", "perf_event_open", "fanotify_init", "fanotify_mark", "inotify_init", "inotify_init1",
    "landlock_create_ruleset", "seccomp",
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog", "acct",
    "vhangup",
    "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "stime", "sethostname", "setdomainname",
    "iopl", "ioperm", "modify_ldt", "personality", "lookup_dcookie", "nfsservctl", "uselib", "ustat", "sysfs",
    "_sysctl",
    "mbind", "set_mempolicy", "migrate_pages", "move_pages", "sched_setattr", "sched_setscheduler",
    "sched_setparam", "ioprio_set", "mknod", "mknodat",
)  # fmt: skip


class _Compare(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def library() -> ctypes.CDLL | None:
    """libseccomp, or None where this machine has none."""
    try:
        found = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return None
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_init.argtypes = [ctypes.c_uint32]
    found.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    found.seccomp_load.argtypes = [ctypes.c_void_p]
    return found


def refuse(seccomp: ctypes.CDLL) -> None:
    """Refuse those calls to this process and to all that it starts, for good. Raises OSError where that fails.

    The process must have given up gaining rights (PR_SET_NO_NEW_PRIVS). A call that this machine or library does not
    know is left out.
    """
    rules = seccomp.seccomp_init(ALLOW)
    if not rules:
        raise OSError(errno.ENOMEM, "no filter of system calls")

    def add(name: str, action: int, *compared: _Compare) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # unknown to this library
            return
        given = (_Compare * len(compared))(*compared) if compared else None
        result = seccomp.seccomp_rule_add_array(rules, action, number, len(compared), given)
        if result not in (0, -errno.EDOM):  # not of this machine's kind
            raise OSError(-result, f"no filter of {name}")

    for name in REFUSED:
        add(name, REFUSE)
    add("clone3", ABSENT)  # its flags lie in memory, where a filter cannot look: the C library then uses clone
    for bit in (1 << n for n in range(32) if NAMESPACES >> n & 1):
        add("clone", REFUSE, _Compare(0, MASKED_EQUAL, bit, bit))
    if (result := seccomp.seccomp_load(rules)) != 0:
        raise OSError(-result, "the filter of system calls was refused")
