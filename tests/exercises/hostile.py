"""Submissions that wish the grader ill: bodies of lora_product, exercise 3.2, whose other four answers are right.

Every one begins with `SHUT_IN`, which ends it where it is not in a root of its own: nothing below may run outside of
one. What a body reaches for stands in the test's own temporary folder; `{...}` are the names of these canaries.
"""

import textwrap

from lora_jax.exercises.low_rank import EXERCISES

SOLUTIONS = {exercise.name: exercise.solution for exercise in EXERCISES}
HEAD = """import ctypes, os, resource, shutil, signal, socket, subprocess, sys, threading, time
import jax
import jax.numpy as jnp
import numpy as np

"""
RIGHT = "return x @ w + alpha / a.shape[1] * (x @ a) @ b"
SHUT_IN = """
alone = os.getpid() < 1000 and os.getuid() == 1000 and os.path.ismount("/submission") and not os.access("/", os.W_OK)
if not alone or os.getcwd() != "/submission" or os.path.exists("/sys") or len(os.listdir("/dev")) != 5:
    raise SystemExit("it is not shut in, and does nothing")
"""
LIBC = "libc = ctypes.CDLL(None, use_errno=True)\n"

# Each must not reach what it reaches for: `reached` is then true, and 3.2 wrong. An error counts as not reached.
REACHES = {
    # Files
    "reads_a_file": "reached = bool(open({treasure!r}).read())",
    "writes_a_file": "open({treasure!r}, 'w').write('x'); reached = True",
    "deletes_a_file": "os.remove({treasure!r}); reached = True",
    "changes_a_mode": "os.chmod({treasure!r}, 0o777); reached = True",
    "links_to_a_file": "os.link({treasure!r}, 'x'); reached = True",
    "reads_the_users": "reached = bool(open('/etc/passwd').read())",
    # Folders on the way to Python may be seen there, and nothing else.
    "reads_homes": """
        homes = [home for home in ('/home', '/root/.ssh', {home!r}) if os.path.isdir(home)]
        reached = any(os.path.isfile(os.path.join(home, name)) for home in homes for name in os.listdir(home))
        """,
    "reads_other_submissions": "reached = os.path.exists({folder!r})",
    "reads_the_answers": """
        import lora_jax
        home = os.path.dirname(lora_jax.__file__)
        places = [home, *sys.path]
        reached = any('alpha / a.shape[' in open(os.path.join(d, f), errors='ignore').read()
                      for p in places for d, _, fs in os.walk(os.path.join(p, 'exercises'))
                      for f in fs if f.endswith('.py'))
        for place in sys.path:
            reached |= os.path.exists(os.path.join(place, 'lora_jax', 'exercises', 'low_rank.py'))
        """,
    "asks_for_the_answers": """
        from lora_jax.exercises import registry
        reached = bool(registry.find('3.2').solution)
        """,
    "changes_a_library": "open(np.__file__, 'a').close(); reached = True",
    "changes_the_package": "import lora_jax; open(lora_jax.__file__, 'a').close(); reached = True",
    "writes_above": "open('/it', 'w').close(); reached = True",
    "runs_a_program": "reached = subprocess.run(['/usr/bin/env'], capture_output=True).returncode == 0",
    "runs_a_shell": "reached = os.system('true') == 0",
    # Devices
    "finds_other_devices": "reached = sorted(os.listdir('/dev')) != ['full', 'null', 'random', 'urandom', 'zero']",
    "makes_a_disk": "os.mknod('disk', 0o60666, os.makedev(7, 0)); open('disk', 'rb').close(); reached = True",
    "makes_memory": "os.mknod('mem', 0o20666, os.makedev(1, 1)); open('mem', 'rb').close(); reached = True",
    "opens_a_disk": "open({disk!r}, 'r+b').close(); reached = True",
    "opens_the_terminal": "os.open('/dev/tty', os.O_RDWR); reached = True",
    "types_on_the_terminal": """
        import fcntl, termios
        reached = False
        for number in range(20):
            try: fcntl.ioctl(number, termios.TIOCSTI, b'x'); reached = True
            except OSError: pass
        """,
    "draws_on_the_terminal": "reached = any(os.isatty(number) for number in range(20))",
    # Sockets and pipes
    "connects_to_the_network": "socket.create_connection(('127.0.0.1', {port}), 2); reached = True",
    "sends_a_datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9)); reached = True",
    "connects_to_a_socket": "socket.socket(socket.AF_UNIX).connect({socket!r}); reached = True",
    "connects_to_an_abstract_socket": "socket.socket(socket.AF_UNIX).connect('\\0' + {abstract!r}); reached = True",
    "asks_the_kernel": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); reached = True",
    "asks_the_host": "socket.socket(40, socket.SOCK_STREAM).connect((2, 1024)); reached = True",
    "writes_into_a_pipe": "os.write(os.open({pipe!r}, os.O_WRONLY | os.O_NONBLOCK), b'x'); reached = True",
    # Other processes
    "sees_processes": "reached = sum(name.isdecimal() for name in os.listdir('/proc')) > 4",
    "reads_an_environment": "reached = b'CANARY' in open('/proc/1/environ', 'rb').read()",
    "finds_it_in_its_own": "reached = 'CANARY' in ' '.join(os.environ)",
    "looks_into_a_process": "os.listdir('/proc/1/root'); reached = True",
    "writes_into_a_process": "open('/proc/1/mem', 'r+b').close(); reached = True",
    "traces": LIBC + "reached = libc.ptrace(16, 1, 0, 0) == 0 or libc.ptrace(0, 0, 0, 0) == 0",
    "reads_memory": LIBC + """
one = ctypes.create_string_buffer(8)
pair = (ctypes.c_size_t * 2)(ctypes.addressof(one), 8)
reached = libc.process_vm_readv(1, pair, 1, pair, 1, 0) >= 0 or ctypes.get_errno() != 1
""",
    "kills_a_process": "os.kill({process}, 9); reached = True",
    "stops_its_first_process": "for number in (2, 9, 15, 19): os.kill(1, number)\ntime.sleep(0.1)",
    "finds_open_files": """
        links = [f'/proc/self/fd/{{number}}' for number in range(100)]
        reached = any('canar' in os.readlink(link) for link in links if os.path.lexists(link))
        """,
    # Rights
    "becomes_root": "os.setuid(0); reached = True",
    "becomes_another_group": "os.setgid(0); reached = True",
    "becomes_root_by_a_program": """
        shutil.copy(sys.executable, 'python'); os.chmod('python', 0o6755)
        reached = subprocess.run(['./python', '-c', '']).returncode == 0
        """,
    "has_capabilities": "reached = any(l[:3] == 'Cap' and int(l.split()[1], 16) for l in open('/proc/self/status'))",
    "makes_a_users_namespace": LIBC + "reached = libc.unshare(0x10000000) == 0",
    "makes_namespaces": LIBC + "reached = libc.unshare(0x10000000 | 0x20000 | 0x2000000) == 0",
    "makes_one_by_clone": LIBC + "reached = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) > 0",
    "makes_one_by_clone3": LIBC + """
given = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)
found = libc.syscall(435, given, 64)
if found == 0: os._exit(0)
reached = found > 0
""",
    "mounts": LIBC + "reached = libc.mount(b'none', b'/submission', b'tmpfs', 0, None) == 0",
    "mounts_control_groups": LIBC + "os.mkdir('c'); reached = libc.mount(b'none', b'c', b'cgroup2', 0, None) == 0",
    "mounts_anew": LIBC + "reached = libc.mount(None, b'/usr/lib', None, 32 | 4096, None) == 0",
    "unmounts": LIBC + "reached = libc.umount2(b'/submission', 2) == 0",
    "changes_its_root": "os.chroot('/submission'); reached = True",
    "sets_the_clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()); reached = True",
    "takes_precedence": "os.nice(-1); reached = True",
    "takes_all_precedence": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); reached = True",
    "raises_its_limits": """
        reached = False
        for name in ('RLIMIT_AS', 'RLIMIT_NPROC', 'RLIMIT_CORE', 'RLIMIT_NOFILE', 'RLIMIT_FSIZE'):
            most = resource.getrlimit(getattr(resource, name))[1]
            try: resource.setrlimit(getattr(resource, name), (most, most + 1)); reached = True
            except ValueError: pass
        """,
    "names_the_machine": "socket.sethostname('x'); reached = True",
    "changes_the_kernel": "reached = os.path.exists('/proc/sys') or os.path.exists('/proc/sysrq-trigger')",
    "writes_a_core": """
        if os.fork() == 0: os.abort()
        reached = os.WCOREDUMP(os.wait()[1])
        """,
    # Memory that no process owns
    "makes_memory_files": "reached = os.memfd_create('x') >= 0",
    "makes_shared_memory": LIBC + "reached = libc.shmget(0, 1 << 20, 0o1600) >= 0",
    "makes_a_message_queue": LIBC + "reached = libc.msgget(0, 0o1600) >= 0",
    "finds_a_folder_in_memory": "reached = os.path.exists('/dev/shm')",
    # Interfaces of the kernel, by number (x86-64)
    "adds_a_key": LIBC + "reached = libc.syscall(248, b'user', b'x', b'x', 1, -2) >= 0",
    "reads_keys": LIBC + "reached = libc.syscall(250, 0, -3, 1) >= 0",
    "uses_io_uring": LIBC + "reached = libc.syscall(425, 8, ctypes.create_string_buffer(512)) >= 0",
    "loads_bpf": LIBC + "reached = libc.syscall(321, 0, ctypes.create_string_buffer(256), 128) >= 0",
    "counts_events": LIBC + "reached = libc.syscall(298, ctypes.create_string_buffer(256), 0, -1, -1, 0) >= 0",
    "handles_faults": LIBC + "reached = libc.syscall(323, 1) >= 0",
    "opens_by_handle": LIBC + "libc.syscall(304, -100, bytes(64), 0); reached = ctypes.get_errno() != 1",
    "takes_a_descriptor": LIBC + "reached = libc.syscall(434, 1, 0) >= 0",
    "enters_a_namespace": LIBC + "libc.setns(0, 0); reached = ctypes.get_errno() != 1",
}  # fmt: skip
BY_NUMBER = (
    "adds_a_key", "reads_keys", "uses_io_uring", "loads_bpf", "counts_events", "handles_faults", "opens_by_handle",
    "takes_a_descriptor", "makes_one_by_clone", "makes_one_by_clone3",
)  # fmt: skip

# What each costs: its own marks, with a remark that holds this.
COSTS = {
    "loops": ("while True: pass", "took more than"),
    "loops_stubbornly": (
        """
        for number in (1, 2, 13, 15):
            signal.signal(number, signal.SIG_IGN)
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        "took more than",
    ),
    "sleeps": ("time.sleep(10000)", "took more than"),
    "stops_itself": ("os.kill(os.getpid(), signal.SIGSTOP)", "took more than"),
    "waits_for_a_child_that_loops": ("if os.fork() == 0:\n    while True: pass\nos.wait()", "took more than"),
    "raises": ("raise ValueError('odd')", "raised ValueError: odd"),
    "raises_what_cannot_be_printed": (
        "class E(Exception):\n    def __str__(self): raise E()\nraise E()", "raised E: (no message)",
    ),
    "exits": ("sys.exit(0)", "raised SystemExit"),
    "exits_at_once": ("os._exit(0)", "ended the process"),
    "interrupts": ("raise KeyboardInterrupt", "ended the process"),
    "kills_itself": ("os.kill(os.getpid(), 9)", "ended the process"),
    "kills_its_parents": ("os.kill(os.getppid(), 9); os.killpg(0, 9)", "ended the process"),
    "kills_all": ("os.kill(-1, 9)", "No such process"),  # it is alone with the first, which it cannot
    "sets_a_timer": ("signal.setitimer(signal.ITIMER_REAL, 0.01)\nwhile True: pass", "ended the process"),
    "overflows_the_stack": ("ctypes.string_at(0)", "ended the process"),
    "recurses": ("sys.setrecursionlimit(10**9)\ndef f(): return [f()]\nreturn f()", "3.2 not yet"),
    "patches_the_checker": (
        """
        from lora_jax.exercises import outcomes, registry
        outcomes.verdict = outcomes.outcome = lambda *_: outcomes.Outcome("correct")
        registry.Exercise.judge = lambda *_: None
        return x
        """,
        "not yet",
    ),
    "forges_replies": (
        """
        import json
        text = json.dumps([{"answer": {"float": "nan"}}] * 5).encode()
        for number in range(3, 40):
            try: os.write(number, len(text).to_bytes(8, "big") + text)
            except OSError: pass
        os._exit(0)
        """,
        "not yet",
    ),
    "writes_garbage_for_replies": (
        "for number in range(3, 40):\n    try: os.write(number, b'\\xff' * 100)\n    except OSError: pass\nos._exit(0)",
        "could not be read",
    ),
    "writes_brackets_for_replies": (
        """
        text = b'[' * 1_000_000
        for number in range(3, 40):
            try: os.write(number, len(text).to_bytes(8, 'big') + text)
            except OSError: pass
        os._exit(0)
        """,
        "could not be read",
    ),
    "returns_an_object_that_equals_all": (
        """
        class Any:
            shape, dtype, size = (x.shape[0], w.shape[1]), np.dtype("float32"), 1
            __eq__ = __le__ = lambda *_: True
            __array__ = lambda self, *_, **__: np.zeros(self.shape, "float32")
        return Any()
        """,
        "not yet",
    ),
    "returns_a_huge_array": ("return np.broadcast_to(np.float32(0), (10**6, 10**6))", "more than 8 MB"),
    "returns_a_lot_in_parts": ("return ['\\\\' * 1_900_000]", "16 MB in all"),
    "returns_a_list_in_itself": ("found = []; found.append(found); return found", "nested more than"),
    "returns_a_huge_number": ("return 10 ** 5000", "300 digits"),
    "returns_a_function": ("return lambda: 1", "holds a function"),
    "takes_all_memory": ("return bytearray(40 * 10**9)", "raised MemoryError"),
    "takes_memory_in_many_processes": (
        """
        for _ in range(8):
            if os.fork() == 0:
                kept = np.ones(300_000_000, np.uint8)
                time.sleep(1000)
        time.sleep(1000)
        """,
        "GB of memory",
    ),
}  # fmt: skip

# What ends in the right answer: what it does besides must not matter.
HARMLESS = {
    "prints_megabytes": "print('x' * 30_000_000); os.write(1, b'y' * 1_000_000); os.write(2, b'\\x1b[2J')",
    "forks": "for _ in range(4):\n    if os.fork() == 0: time.sleep(1000)",
    "spawns_and_lets_go": "subprocess.Popen([sys.executable, '-c', 'while True: pass'])",
    "leaves_its_session": "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n    time.sleep(1000)",
    "forks_without_end": """
        children = []
        try:
            for _ in range(1000):
                if (child := os.fork()) == 0:
                    signal.pause(); os._exit(0)
                children.append(child)
        except OSError: pass
        for child in children: os.kill(child, 9)  # else nothing is left for JAX's own threads
        for child in children: os.waitpid(child, 0)
        if len(children) > 300: return x
        """,
    "fills_its_folder": """
        try:
            for number in range(1000): open(f'f{number}', 'wb').write(b'x' * 1_000_000)
        except OSError: pass
        if sum(os.path.getsize(n) for n in os.listdir()) > 100_000_000: return x
        """,
    "makes_files_without_end": """
        try:
            for number in range(100_000): open(f'f{number}', 'x').close()
        except OSError: pass
        if number > 20_000: return x
        """,
    "opens_files_without_end": "try: kept = [open('/dev/null') for _ in range(5000)]\nexcept OSError: pass",
    "deletes_all_it_can": "shutil.rmtree('/', ignore_errors=True)",
    "nests_folders": "for _ in range(1500): os.makedirs('d', exist_ok=True); os.chdir('d')\nos.chdir('/submission')",
    "closes_its_folder": "try: os.chmod('.', 0)\nexcept OSError: pass  # a second time",
    "leaves_a_link": "try: os.symlink({treasure!r}, 'link'); os.chmod('link', 0o777)\nexcept OSError: pass",
    "leaves_a_set_uid_program": "open('p', 'w').write('#!/bin/sh'); os.chmod('p', 0o6777); os.chmod('.', 0o777)",
    "changes_its_language": "import locale; locale.setlocale(locale.LC_ALL, 'C'); os.environ.clear()",
    "blocks_signals": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
    "is_kind": "os.nice(19)",
    "counts_in_a_thread": "threading.Thread(target=lambda: list(map(abs, range(10**7))), daemon=True).start()",
}  # fmt: skip


def program(body, end=""):
    return f"def lora_product(x, w, a, b, alpha):\n{textwrap.indent(textwrap.dedent(body).strip() + end, '    ')}\n"


def source(product):
    """A whole submission of notebook 3, with this for lora_product."""
    others = [code for name, code in SOLUTIONS.items() if name != "lora_product"]
    return HEAD + "\n\n".join([*others, product])


def hostile(body, end=""):
    return source(program(textwrap.dedent(SHUT_IN) + textwrap.dedent(body), end))


def reaching(named, canaries):
    """A submission that tries all of these, and whose remark names those that reached what they must not."""
    body = "all_reached = []\n"
    for name, code in named.items():
        tried = textwrap.indent(textwrap.dedent(code.format(**canaries)).strip(), "    ")
        body += (
            f"reached = False\ntry:\n{tried}\nexcept BaseException: pass\nif reached: all_reached.append({name!r})\n"
        )
    return hostile(body + "if all_reached: raise ValueError('reached: ' + ' '.join(all_reached))\n", "\n" + RIGHT)
