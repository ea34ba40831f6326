"""A seccomp filter, which tells the kernel what system calls a program in a sandbox may make.

The filter denies what the sandboxes themselves leave open:
- memory that no limit counts (memfd, System V, vmsplice), so that a program cannot exhaust it;
- ways to gain rights (mounts, namespaces, bpf, io_uring);
- calls that affect other processes of the same user;
- sockets of all kinds, through which a program could reach the network or local services.

Calls added to Linux since 2019 have the same number on all architectures. They are denied unless
they are listed here, because nobody has checked yet what they allow.
"""

import platform
import struct

# Instructions: BPF_LD|W|ABS, BPF_JMP|JEQ, JGT, JSET, BPF_ALU|AND, BPF_RET
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
# Verdicts: make the call, kill the process, let the call fail with EPERM or ENOSYS
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Name, number on x86-64, number on arm64; 0 where the architecture does not have the call.
_DENIED = """
    # they change mounts and namespaces
    mount 165 40; umount2 166 39; pivot_root 155 41; chroot 161 51; unshare 272 97;
    setns 308 268; sethostname 170 161; setdomainname 171 162; sysfs 139 0;
    # they allocate memory that is not counted as a process's
    memfd_create 319 279; shmget 29 194; shmat 30 196; shmctl 31 195; msgget 68 186;
    msgsnd 69 189; msgctl 71 187; semget 64 190; semop 65 193; semtimedop 220 192;
    semctl 66 191; mq_open 240 180; mq_unlink 241 181; vmsplice 278 75; splice 275 76;
    tee 276 77; mlock 149 228; mlock2 325 284; mlockall 151 230; remap_file_pages 216 234;
    # they affect other processes
    ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; kcmp 312 272;
    move_pages 279 239; migrate_pages 256 238; setpriority 141 140; ioprio_set 251 30;
    sched_setattr 314 274; sched_setscheduler 144 119; sched_setparam 142 118;
    sched_setaffinity 203 122;
    # they affect the kernel itself
    bpf 321 280; userfaultfd 323 282; perf_event_open 298 241; keyctl 250 219;
    add_key 248 217; request_key 249 218; personality 135 92; seccomp 317 277; syslog 103 116;
    swapon 167 224; swapoff 168 225; reboot 169 142; kexec_load 246 104;
    kexec_file_load 320 294; init_module 175 105; finit_module 313 273; delete_module 176 106;
    acct 163 89; quotactl 179 60; settimeofday 164 170; clock_settime 227 112;
    adjtimex 159 171; clock_adjtime 305 266; iopl 172 0; ioperm 173 0; modify_ldt 154 0;
    lookup_dcookie 212 18; nfsservctl 180 42; uselib 134 0; vhangup 153 58;
    # they reach files without their path
    name_to_handle_at 303 264; open_by_handle_at 304 265; fanotify_init 300 262;
    fanotify_mark 301 263; inotify_init 253 0; inotify_init1 294 26; inotify_add_watch 254 27;
    # they use sockets
    socket 41 198; connect 42 203; bind 49 200; listen 50 201; accept 43 202; accept4 288 242;
"""
# Denied only where programs work on disk: these change attributes of files, which Landlock does not
# prevent, or occupy space without a write, which supervise.py would not count.
_DENIED_ON_DISK = """
    fallocate 285 47; chmod 90 0; fchmod 91 52; fchmodat 268 53; chown 92 0; lchown 94 0;
    fchown 93 55; fchownat 260 54; utime 132 0; utimes 235 0; utimensat 280 88;
    futimesat 261 0; setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14;
    lremovexattr 198 15; fremovexattr 199 16;
"""

# Calls that are denied for some arguments only: numbers on x86-64 and arm64
_CLONE, _SOCKETPAIR, _PRLIMIT = (56, 220), (53, 199), (302, 261)
_PRCTL, _IOCTL, _FCNTL, _MMAP = (157, 167), (16, 29), (72, 25), (9, 222)
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_FIRST_RECENT = 424  # the first number that is the same on all architectures
_FCHMODAT2 = 452
# pidfd_send_signal, pidfd_open, close_range, openat2, faccessat2, epoll_pwait2, futex_waitv,
# fchmodat2, cachestat and the futex calls of Linux 6.7. clone3 is not allowed: its flags could ask
# for new namespaces, and a filter cannot read them, because they are in memory. C libraries fall
# back to clone, whose flags are an argument.
_RECENT_ALLOWED = (424, 434, 436, 437, 439, 441, 449, _FCHMODAT2, 454, 455, 456)
_NAMESPACES = 0x7E020080  # all flags CLONE_NEW…
_X32 = 0x40000000  # set in the numbers of the x32 ABI, a second numbering of the same calls
_AF_UNIX, _SOCK_STREAM, _SOCKET_KIND_MASK = 1, 1, 0xF
_PR_SET_SECCOMP, _SET_PIPE_SIZE, _TIOCSTI, _TIOCLINUX = 22, 1031, 0x5412, 0x541C


def program_filter(*, on_disk: bool) -> bytes:
    """Return the filter as struct sock_filter[], or b"" if the machine's architecture is unknown.

    on_disk: whether programs work on disk. There, other files are visible to them, and must not be
        changed.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return b""
    column = list(_ARCHITECTURES).index(machine)
    denied = _numbers(_DENIED + _DENIED_ON_DISK if on_disk else _DENIED, column)
    recent = [number for number in _RECENT_ALLOWED if not on_disk or number != _FCHMODAT2]
    parts = [
        # A call through another ABI, such as 32-bit, would have other numbers than the filter's.
        _load(_ARCHITECTURE),
        _unless_equal(_ARCHITECTURES[machine], _KILL),
        _load(_NUMBER),
        *([_if(_GREATER, _X32 - 1, _KILL)] if machine == "x86_64" else []),
        *(_if(_EQUAL, number, _ALLOW) for number in recent),
        _if(_GREATER, _FIRST_RECENT - 1, _ENOSYS),
        *(_if(_EQUAL, number, _EPERM) for number in denied),
        *([_when(_MMAP[column], _no_shared_maps_of_files())] if on_disk else []),
        _when(_CLONE[column], _deny(0, _ANY_BIT, _NAMESPACES)),
        _when(_SOCKETPAIR[column], _only_stream_sockets()),
        _when(_PRLIMIT[column], [_load(_argument(0)), _unless_equal(0, _EPERM)]),
        _when(_PRCTL[column], _deny(0, _EQUAL, _PR_SET_SECCOMP)),
        _when(_IOCTL[column], _deny(1, _EQUAL, _TIOCSTI, _TIOCLINUX)),
        _when(_FCNTL[column], _deny(1, _EQUAL, _SET_PIPE_SIZE)),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(parts)


def _numbers(table: str, column: int) -> list[int]:
    lines = (line for line in table.splitlines() if "#" not in line)
    calls = (call.split() for line in lines for call in line.split(";") if call.strip())
    numbers = (int(call[1 + column]) for call in calls)
    return [number for number in numbers if number]


def _no_shared_maps_of_files() -> list[bytes]:
    """For mmap: deny shared maps of files, through which a program could fill the disk unseen."""
    return [
        _load(_argument(3)),
        _if(_ANY_BIT, _MAP_ANONYMOUS, _ALLOW),
        _if(_ANY_BIT, _MAP_SHARED, _EPERM),
    ]


def _only_stream_sockets() -> list[bytes]:
    """For socketpair: allow stream sockets, which asyncio needs.

    Datagram sockets are denied, because each of a pair could still send to other addresses.
    """
    return [
        _load(_argument(0)),
        _unless_equal(_AF_UNIX, _EPERM),
        _load(_argument(1)),
        _instruction(_AND, _SOCKET_KIND_MASK),
        _unless_equal(_SOCK_STREAM, _EPERM),
    ]


def _deny(argument: int, test: int, *values: int) -> list[bytes]:
    """Deny a call for which `test` holds between the argument and one of `values`."""
    return [_load(_argument(argument)), *(_if(test, value, _EPERM) for value in values)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(index: int) -> int:
    return _ARGUMENTS + 8 * index  # the offset of its lower 32 bits


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _if(test: int, value: int, verdict: int) -> bytes:
    """Return `verdict` if `test` holds for the loaded number and `value`; else continue."""
    return _instruction(test, value, 0, 1) + _instruction(_RETURN, verdict)


def _unless_equal(value: int, verdict: int) -> bytes:
    return _instruction(_EQUAL, value, 1, 0) + _instruction(_RETURN, verdict)


def _when(number: int, checks: list[bytes]) -> bytes:
    """If the loaded number is `number`, run `checks` of the arguments, then allow the call."""
    body = b"".join(checks) + _instruction(_RETURN, _ALLOW)
    return _instruction(_EQUAL, number, 0, len(body) // 8) + body
