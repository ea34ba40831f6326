"""Programs that exceed an amount; each prints GOT once it has held it for a while."""

HOLD = "\ntime.sleep(0.5)\ngot('held')\n"  # longer than from one look to the next
BLOCK = "block = b'x' * (16 << 20)\n"
AMOUNTS = {
    "takes memory alone": f"{BLOCK}kept = [block + bytes([n]) for n in range(40)]{HOLD}",
    "takes memory in children": """
for n in range(8):
    if os.fork() == 0:
        kept = bytes(96 << 20).replace(b"\\0", b"x")
        time.sleep(60)
time.sleep(1.5)
alive = 8 - sum(os.waitpid(-1, os.WNOHANG)[0] > 0 for n in range(8))
if alive > 3:
    got(alive)
""",
    "takes memory in a file system of its own": f"""
{BLOCK}os.mkdir("m")
if libc.mount(b"none", b"m", b"tmpfs", 0, b"size=10g") < 0:
    sys.exit(1)
for n in range(64):
    open(f"m/{{n}}", "wb").write(block){HOLD}
""",
    "takes memory in memfds of children": f"""
{BLOCK}
for n in range(6):
    if os.fork() == 0:
        for k in range(50):
            os.write(os.memfd_create("x"), block)
        got("child")
        time.sleep(5)
time.sleep(0.5)
""",
    "takes memory by System V": """
number = libc.shmget(0, ctypes.c_size_t(200 << 20), 0o1600)
if number >= 0:
    got("segment")
tries(lambda: libc.msgget(0, 0o1600), lambda: libc.semget(0, 100, 0o1600))
""",
    "takes memory in shared maps that it lets go": """
held = []
for n in range(8):
    shared = mmap.mmap(-1, 96 << 20)
    if os.fork() == 0:
        for at in range(0, 96 << 20, 4096):
            shared[at] = 1
        time.sleep(60)
    shared.close()
time.sleep(1.5)
alive = 8 - sum(os.waitpid(-1, os.WNOHANG)[0] > 0 for n in range(8))
if alive > 3:
    got(alive)
""",
    "takes memory in pipes": """
import fcntl
count = 0
ends = []
try:
    while True:
        end = os.pipe()
        ends.append(end)
        fcntl.fcntl(end[1], 1031, 1 << 20)
        count += 1
except OSError:
    pass
if count:
    got(count)
""",
    "takes memory by gifts to pipes": """
reader, writer = os.pipe()
page = mmap.mmap(-1, 4096)
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096)
tries(lambda: libc.vmsplice(writer, vector, 1, 0), lambda: libc.tee(reader, writer, 1, 2))
""",
    "takes memory by empty files": """
count = 0
try:
    while count < 30000:
        open(f"f{count}", "w").close()
        count += 1
except OSError:
    pass
time.sleep(0.2)
if count > 10000:
    got(count)
""",
    "takes disk in many files": f"""
{BLOCK}
for n in range(32):
    open(str(n), "wb").write(block){HOLD}
""",
    "takes disk in removed files": f"""
kept = []
for n in range(32):
    kept.append(open("f", "w+b"))
    os.unlink("f")
for file in kept:
    file.write(b"x" * (6 << 20))
    file.flush(){HOLD}
""",
    "takes disk in unnamed files": f"""
{BLOCK}
kept = [os.open(".", os.O_TMPFILE | os.O_RDWR) for n in range(16)]
for file in kept:
    os.write(file, block){HOLD}
""",
    "takes disk without writing": """
files = [open(str(n), "w+b") for n in range(16)]
for file in files:
    os.posix_fallocate(file.fileno(), 0, 15 << 20)
time.sleep(0.5)
got("held")
""",
    "takes disk through maps": """
files = [open(str(n), "w+b") for n in range(16)]
for n, file in enumerate(files):
    os.ftruncate(file.fileno(), 15 << 20)
    os.unlink(str(n))
    shared = mmap.mmap(file.fileno(), 15 << 20)
    for at in range(0, 15 << 20, 4096):
        shared[at] = 1
    shared.close()
time.sleep(0.5)
got("held")
""",
    "prints without end": "while True: os.write(1, b'x' * 65536)",
    "nests folders without end": """
while True:
    os.mkdir("d")
    os.chdir("d")
""",
    "locks its folders": """
os.mkdir("closed", 0o333)
os.mkdir("closed/inner", 0o333)
open("closed/inner/file", "w").close()
os.mkdir("none", 0)
""",
}
