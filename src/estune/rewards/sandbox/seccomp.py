"""Which system calls a program may make: a filter for the kernel, on top of what each sandbox
denies by itself.

It closes what no sandbox of Linux closes alone: memory that no limit counts (memfd, System V,
vmsplice), ways to gain rights (mounts, namespaces, bpf, io_uring), calls about processes that are
only checked by user, and sockets of all kinds. Calls that were added to Linux since 2019 have the
same number everywhere and are denied unless they are listed.
"""

import platform
import struct

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _AND, _RETURN = (
    0x20,
    0x15,
    0x25,
    0x45,
    0x54,
    0x06,
)  # BPF_LD|W|ABS, BPF_JMP…, BPF_RET
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# (x86-64, arm64); 0 where that architecture has no such call
_DENIED = {
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "sethostname": (170, 161), "setdomainname": (171, 162), "sysfs": (139, 0),
    # memory that belongs to no process
    "memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192),
    "semctl": (66, 191), "mq_open": (240, 180), "mq_unlink": (241, 181), "vmsplice": (278, 75), "splice": (275, 76),
    "tee": (276, 77), "mlock": (149, 228), "mlock2": (325, 284), "mlockall": (151, 230), "remap_file_pages": (216, 234),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setattr": (314, 274), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setaffinity": (203, 122),
    # the kernel itself
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "personality": (135, 92), "seccomp": (317, 277),
    "syslog": (103, 116), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "iopl": (172, 0), "ioperm": (173, 0), "modify_ldt": (154, 0),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "uselib": (134, 0), "vhangup": (153, 58),
    # files by another way than their path
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "inotify_init": (253, 0), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    # sockets
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
}  # fmt: skip
# What Landlock doesn't look at, the attributes of files, and what nothing counts: room that is taken without a write.
_ON_DISK = {
    "fallocate": (285, 47),
    "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, 0), "lchown": (94, 0),
    "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, 0), "utimes": (235, 0), "utimensat": (280, 88),
    "futimesat": (261, 0), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
_CLONE, _SOCKETPAIR, _PRLIMIT, _PRCTL, _IOCTL, _FCNTL = (
    (56, 220),
    (53, 199),
    (302, 261),
    (157, 167),
    (16, 29),
    (72, 25),
)
_MMAP, _MAP_SHARED, _MAP_ANONYMOUS = (9, 222), 0x01, 0x20
_RECENT = 424  # the first number that all architectures share
_FCHMODAT2 = 452
# pidfd_send_signal, pidfd_open, close_range, openat2, faccessat2, epoll_pwait2, futex_waitv, fchmodat2, cachestat and the
# futex calls of 6.7
_RECENT_ALLOWED = (424, 434, 436, 437, 439, 441, 449, _FCHMODAT2, 454, 455, 456)
_CLONE3 = 435  # refused as unknown, since its flags lie in memory that a filter can't read: C libraries then use clone
_NAMESPACES = 0x7E020080  # CLONE_NEW…
_X32 = 0x40000000  # bit of x86-64's other numbering
_UNIX, _STREAM, _SOCKET_KIND = 1, 1, 0xF
_PR_SET_SECCOMP, _SET_PIPE_SIZE, _TIOCSTI, _TIOCLINUX = 22, 1031, 0x5412, 0x541C


def program_filter(*, on_disk: bool) -> bytes:
    """The instructions (struct sock_filter) for this machine, or none where its architecture isn't
    known.

    on_disk: whether a program works in a folder on disk, among files that it may see but not
    change.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return b""
    column = list(_ARCHITECTURES).index(machine)
    denied = _DENIED | _ON_DISK if on_disk else _DENIED
    recent = [number for number in _RECENT_ALLOWED if not on_disk or number != _FCHMODAT2]
    parts = [
        _load(_ARCHITECTURE),
        _unless_equal(_ARCHITECTURES[machine], _KILL),
        _load(_NUMBER),
        *([_if(_GREATER, _X32 - 1, _KILL)] if machine == "x86_64" else []),
        *(_if(_EQUAL, number, _ALLOW) for number in recent),
        _if(_GREATER, _RECENT - 1, _ENOSYS),
        *(_if(_EQUAL, numbers[column], _EPERM) for numbers in denied.values() if numbers[column]),
        *([_when(_MMAP[column], _no_shared_files())] if on_disk else []),
        _when(_CLONE[column], [_load(_argument(0)), _if(_ANY_BIT, _NAMESPACES, _EPERM)]),
        _when(_SOCKETPAIR[column], _only_streams()),
        _when(_PRLIMIT[column], [_load(_argument(0)), _unless_equal(0, _EPERM)]),
        _when(_PRCTL[column], [_load(_argument(0)), _if(_EQUAL, _PR_SET_SECCOMP, _EPERM)]),
        _when(
            _IOCTL[column],
            [_load(_argument(1)), _if(_EQUAL, _TIOCSTI, _EPERM), _if(_EQUAL, _TIOCLINUX, _EPERM)],
        ),
        _when(_FCNTL[column], [_load(_argument(1)), _if(_EQUAL, _SET_PIPE_SIZE, _EPERM)]),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(parts)


def _no_shared_files() -> list[bytes]:
    """Shared maps of no file but memory: a file could be filled through one without a write."""
    return [
        _load(_argument(3)),
        _if(_ANY_BIT, _MAP_ANONYMOUS, _ALLOW),
        _if(_ANY_BIT, _MAP_SHARED, _EPERM),
    ]


def _only_streams() -> list[bytes]:
    """Pairs of connected stream sockets, which asyncio needs; other kinds could be turned on an
    address outside.
    """
    return [
        _load(_argument(0)),
        _unless_equal(_UNIX, _EPERM),
        _load(_argument(1)),
        _instruction(_AND, _SOCKET_KIND),
        _unless_equal(_STREAM, _EPERM),
    ]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(index: int) -> int:
    return _ARGUMENTS + 8 * index  # the low half


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _if(test: int, value: int, verdict: int) -> bytes:
    return _instruction(test, value, 0, 1) + _instruction(_RETURN, verdict)


def _unless_equal(value: int, verdict: int) -> bytes:
    return _instruction(_EQUAL, value, 1, 0) + _instruction(_RETURN, verdict)


def _when(number: int, checks: list[bytes]) -> bytes:
    """Make `checks` of a call's arguments, and allow what passes them."""
    body = b"".join(checks) + _instruction(_RETURN, _ALLOW)
    return _instruction(_EQUAL, number, 0, len(body) // 8) + body
