"""Programs that attack a sandbox: each prints GOT if it gets what it wants.

Each starts with `PRELUDE` and reads as JSON where the baits lie (`estune.rewards.sandbox.baits`).
"""

from amounts import AMOUNTS

PRELUDE = """
import ctypes, json, mmap, os, resource, signal, socket, struct, sys, threading, time
bait = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return libc.syscall(number, *arguments)
def got(what=""):
    os.write(1, f"GOT {what}".encode())
def tries(*attempts):
    for attempt in attempts:
        try:
            result = attempt()
        except (OSError, ValueError, AttributeError, MemoryError, OverflowError):
            continue
        if not (isinstance(result, int) and not isinstance(result, bool) and result < 0):
            got(str(result)[:80])
def on_x86(number, elsewhere):
    return number if os.uname().machine == "x86_64" else elsewhere
"""

FILES = {
    "writes a file outside": """
tries(lambda: open(bait["file"], "w"), lambda: open(bait["new"], "w"))
""",
    "truncates a file outside": 'tries(lambda: os.truncate(bait["file"], 0) or "truncated")',
    "writes through a symbolic link": """
os.symlink(bait["file"], "link")
tries(lambda: open("link", "a"))
""",
    "links a file outside into its folder": """
tries(lambda: os.link(bait["file"], "mine") or "linked")
""",
    "renames its file over one outside": """
open("mine", "w").close()
tries(lambda: os.rename("mine", bait["file"]) or "renamed")
""",
    "removes a file outside": 'tries(lambda: os.unlink(bait["file"]) or "removed")',
    "climbs out of its folder": """
tries(lambda: open("../" * 20 + bait["file"]), lambda: open("../" * 20 + bait["new"], "w"))
""",
    "changes modes, times and owners outside": """
path = bait["file"]
tries(lambda: os.chmod(path, 0o777) or "mode", lambda: os.utime(path, (1, 1)) or "time",
      lambda: os.setxattr(path, "user.x", b"x") or "attribute",
      lambda: os.chown(path, os.getuid(), os.getgid()) or "owner",
      lambda: call(452, -100, path.encode(), 0o777, 0))
""",
    "changes its interpreter": """
folder = os.path.dirname(os.__file__)
tries(lambda: open(os.__file__, "a"), lambda: open(folder + "/sitecustomize.py", "w"),
      lambda: os.mkdir(folder + "/x") or "made",
      lambda: os.chmod(os.__file__, 0) or "mode", lambda: os.utime(os.__file__, (1, 1)) or "time",
      lambda: os.fchmod(os.open(os.__file__, os.O_RDONLY), 0) or "mode",
      lambda: open(sys.executable, "r+b"))
""",
    "reads files that are none of its business": """
home = os.path.expanduser("~")
files = [bait["file"], *bait["home"], "/etc/passwd", "/etc/shadow", "/etc/machine-id",
         "/root/.netrc",
         "/root/.ssh/id_rsa", "/var/log/dpkg.log", "/run/docker.sock", "/usr/bin/env"]
tries(*[lambda name=name: open(name, "rb").read(1) for name in files])
""",
    "lists folders outside": """
expected = (".pyenv", "ld.so.cache", "lib", "bin", "tmp")
folders = ("/root", "/home", "/etc", "/var", "/work", "/usr/bin", os.path.dirname(bait["file"]))
for name in folders:
    if name == "/work" and os.getcwd() == "/work":
        continue
    tries(lambda: [each for each in os.listdir(name) if each not in expected][0])
""",
    "opens devices": """
names = "mem kmsg kvm fuse port sda vda nvme0n1 loop-control loop0 net/tun userfaultfd ptmx tty"
tries(*[lambda name=name: open("/dev/" + name, "rb") for name in [*names.split(), "console"]])
tries(lambda: os.mknod("disk", 0o60600, os.makedev(254, 0)) or open("disk", "rb"))
tries(lambda: os.mknod("memory", 0o20600, os.makedev(1, 1)) or open("memory", "rb"))
""",
    "opens files by handle": """
handle = struct.pack("Ii", 128, 0) + bytes(128)
mount = ctypes.byref(ctypes.c_int())
tries(lambda: call(on_x86(303, 264), -100, os.__file__.encode(), handle, mount, 0))
tries(lambda: call(on_x86(304, 265), -100, struct.pack("IiII", 8, 1, 2, 0), 0))
""",
    "watches the user's files": """
tries(lambda: libc.inotify_init1(0), lambda: libc.fanotify_init(0, 0))
""",
    "uses a descriptor of the trainer": """
tries(*[lambda number=number: os.fstat(number) for number in range(3, 1024)])
""",
    "reads secrets of the environment": """
values = " ".join(os.environ.values())
if "hunter2" in values or len(os.environ) > 12:
    got(values)
tries(lambda: open("/proc/self/environ").read(),
      lambda: open(f"/proc/{os.getppid()}/environ").read())
""",
}

RIGHTS = {
    "makes / writable again": """
clear = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
tries(lambda: call(442, -100, b"/", 0, clear, 32), lambda: call(442, -100, b"/", 0x8000, clear, 32))
""",
    "mounts by the old call": """
os.mkdir("m")
tries(lambda: libc.mount(b"none", b"m", b"tmpfs", 0, None),
      lambda: libc.mount(b"/", b"m", None, 4096, None),
      lambda: libc.mount(None, b"/", None, 32, None),
      lambda: libc.mount(b"proc", b"m", b"proc", 0, None))
""",
    "mounts by the new calls": """
tries(lambda: call(428, -100, b"/", 1), lambda: call(430, b"tmpfs", 0),
      lambda: call(433, -100, b"/", 0),
      lambda: call(429, -100, b"/", -100, b".", 0), lambda: call(467, -100, b"/", 1, 0, 0))
""",
    "uncovers what lies beneath": """
tries(lambda: libc.umount2(b"/proc", 2), lambda: libc.umount2(b"/", 2),
      lambda: libc.umount2(b".", 2),
      lambda: call(on_x86(155, 41), b".", b"."), lambda: os.chroot(".") or "chroot")
""",
    "makes namespaces": """
flags = (0x10000000, 0x20000, 0x40000000, 0x08000000, 0x20000000, 0x02000000)
tries(*[lambda flag=flag: libc.unshare(flag) for flag in flags])
""",
    "makes namespaces by clone": """
for flag in (0x10000000, 0x20000, 0x20000000):
    child = call(on_x86(56, 220), flag | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    if child > 0:
        got("clone")
arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
child = call(435, arguments, 88)
if child == 0:
    os._exit(0)
if child > 0:
    got("clone3")
""",
    "enters namespaces of others": """
def enter(pid):
    return libc.setns(os.pidfd_open(pid), 0x20000)
tries(lambda: enter(1), lambda: enter(os.getppid()), lambda: enter(bait["process"]))
kinds = ("mnt", "user", "net")
tries(*[lambda kind=kind: libc.setns(os.open(f"/proc/1/ns/{kind}", 0), 0) for kind in kinds])
""",
    "takes rights back": """
def everything():
    rights = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 4, 0, 0)
    return libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), rights)
tries(everything, lambda: libc.prctl(47, 2, 21, 0, 0))
if os.getuid():
    tries(lambda: os.setuid(0) or "root", lambda: os.setresuid(0, 0, 0) or "root",
          lambda: os.setgid(0) or "root")
tries(lambda: os.setgroups([0]) or "groups")
""",
    "lifts its limits": """
for name in ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_MEMLOCK"):
    hard = resource.getrlimit(getattr(resource, name))[1]
    tries(lambda: resource.setrlimit(getattr(resource, name), (hard + 1, hard + 1)) or name)
""",
    "takes the kernel's settings": """
names = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
         "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs",
         "/sys/fs/cgroup/memory/tasks", "/proc/1/oom_score_adj"]
tries(*[lambda name=name: os.open(name, os.O_WRONLY) for name in names])
""",
    "uses io_uring": "tries(lambda: call(425, 4, (ctypes.c_uint8 * 120)()))",
    "uses bpf, perf, keys and userfaultfd": """
tries(lambda: call(on_x86(321, 280), 0, (ctypes.c_uint32 * 32)(1, 4, 4, 1), 128),
      lambda: call(on_x86(298, 241), (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0),
      lambda: call(on_x86(248, 217), b"user", b"x", b"y", 1, -3),
      lambda: call(on_x86(250, 219), 0, -3, 1),
      lambda: call(on_x86(323, 282), 1))
""",
    "goes around the filter by 32-bit calls": """
if os.uname().machine == "x86_64":
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))  # getpid
    where = ctypes.addressof(ctypes.c_char.from_buffer(code))
    if ctypes.CFUNCTYPE(ctypes.c_int)(where)() > 0:
        got("int 0x80")
""",
    "goes around the filter by x32 calls": """
if os.uname().machine == "x86_64":
    tries(lambda: call(0x40000000 + 41, 2, 1, 0))
""",
    "replaces the filter": """
allow = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
tries(lambda: libc.prctl(22, 2, ctypes.byref(Program(1, allow)), 0, 0),
      lambda: call(on_x86(317, 277), 1, 8, Program(1, allow)))
""",
    "types into a terminal": """
import fcntl
tries(*[lambda number=number: fcntl.ioctl(number, 0x5412, b"x") for number in range(3)])
tries(lambda: fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), 0x5412, b"x"))
""",
}

PROCESSES = {
    "signals everybody": """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tries(lambda: os.kill(bait["process"], 15) or ("signalled" if bait["process"] > 99 else -1))
os.kill(-1, 15)
""",
    "signals by a descriptor": """
process = bait["process"]
outside = "signalled" if process > 99 else -1
tries(lambda: signal.pidfd_send_signal(os.pidfd_open(process), 15) or outside)
""",
    "stops its supervisor": """
for process in {os.getppid(), os.getpgrp(), 1}:
    outside = "stopped" if process > 9 and process != os.getpgrp() else -1
    tries(lambda: os.kill(process, signal.SIGSTOP) or outside)
""",
    "traces others": """
for process in {bait["process"], os.getppid(), 1}:
    tries(lambda: libc.ptrace(16, process, None, None),
          lambda: libc.ptrace(0x4206, process, None, None))
""",
    "reads the memory of others": """
space = ctypes.create_string_buffer(64)
local = (ctypes.c_uint64 * 2)(ctypes.addressof(space), 64)
for process in {bait["process"], os.getppid(), 1}:
    tries(lambda: libc.process_vm_readv(process, local, 1, local, 1, 0),
          lambda: open(f"/proc/{process}/mem", "rb"),
          lambda: call(438, os.pidfd_open(process), 0, 0),
          lambda: open(f"/proc/{process}/environ", "rb"))
""",
    "limits others": """
for process in {bait["process"], os.getppid(), 1}:
    tries(lambda: resource.prlimit(process, resource.RLIMIT_NOFILE, (9, 9)),
          lambda: libc.setpriority(0, process, 19),
          lambda: libc.sched_setaffinity(process, 8, (ctypes.c_uint64 * 1)(1)),
          lambda: call(on_x86(251, 30), 1, process, 0x6007))
tries(lambda: libc.setpriority(2, os.getuid(), 19))
""",
    "leaves a daemon behind": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(987654)
    os._exit(0)
""",
    "leaves daemons that breed": """
def breed():
    while True:
        if os.fork() == 0:
            os.setsid()
            continue
        time.sleep(0.001)
        os._exit(0)
for n in range(4):
    if os.fork() == 0:
        breed()
time.sleep(0.2)
""",
    "ignores every signal": """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(1)
""",
    "starts processes without end": """
count = 0
while count < 500:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        break
    count += 1
if count > 64:
    time.sleep(0.1)
    got(count)
""",
    "starts threads without end": """
threading.stack_size(32768)
count = 0
while count < 2000:
    try: threading.Thread(target=time.sleep, args=[60], daemon=True).start()
    except (RuntimeError, MemoryError): break
    count += 1
if count > 64:
    time.sleep(0.1)
    got(count)
os._exit(0)
""",
    "spins in many processes": """
for n in range(16):
    if os.fork() == 0:
        while True: pass
time.sleep(60)
""",
}

NETWORK = {
    "connects by TCP": """
tries(lambda: socket.create_connection(("127.0.0.1", bait["tcp"]), 0.3),
      lambda: socket.create_connection(("::1", bait["tcp"]), 0.3))
""",
    "sends by UDP": """
udp = socket.SOCK_DGRAM
tries(lambda: socket.socket(socket.AF_INET, udp).sendto(b"x", ("127.0.0.1", bait["udp"])))
""",
    "connects to a unix socket": """
tries(lambda: socket.socket(socket.AF_UNIX).connect(bait["unix"]) or "connected")
""",
    "connects to an abstract socket": """
tries(lambda: socket.socket(socket.AF_UNIX).connect(bait["abstract"]) or "connected")
""",
    "turns a pair on an address": """
def pair(kind):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    for address in (bait["unix"], bait["abstract"]):
        tries(lambda: one.sendto(b"x", address), lambda: one.connect(address) or "connected",
              lambda: one.sendmsg([b"x"], [], 0, address))
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try: pair(kind)
    except OSError: pass
""",
    "opens other sockets": """
for family in range(1, 46):
    for kind in (1, 2, 3, 5):
        tries(lambda: socket.socket(family, kind))
""",
    "listens": """
tries(lambda: socket.create_server(("127.0.0.1", 0)), lambda: socket.create_server(("0.0.0.0", 0)))
""",
}

ATTACKS = FILES | RIGHTS | PROCESSES | NETWORK | AMOUNTS
