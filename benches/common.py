"""What the measurements share: a gateway on ports of its own, and reading /proc."""
import os, re, resource, shutil, signal, socket, subprocess, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.environ.get("HOOKWARD", os.path.join(ROOT, "target/release/hookward"))


def raise_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Gateway:
    """`hookward run` in a folder of its own; certificates lie in certs/."""

    def __init__(self, configuration, cpu=None):
        self.folder = tempfile.mkdtemp(prefix="hookward-bench-")
        subprocess.run([BINARY, "certs", os.path.join(self.folder, "certs")], check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(self.folder, "gateway.toml"), "w") as file:
            file.write(configuration)
        self.log = open(os.path.join(self.folder, "log"), "w+")
        self.started = time.monotonic()
        self.process = subprocess.Popen([BINARY, "run"], cwd=self.folder, stderr=self.log, stdin=subprocess.DEVNULL,
                                        preexec_fn=(lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None)

    def address(self, listener):
        pattern = re.compile(r"listening listener=\"?%s\"? address=([0-9.]+):(\d+)" % listener)
        for _ in range(3000):
            with open(self.log.name) as log:
                found = pattern.search(log.read())
            if found:
                return found.group(1), int(found.group(2))
            if self.process.poll() is not None:
                raise SystemExit("the gateway ended:\n" + open(self.log.name).read())
            time.sleep(0.001)
        raise SystemExit("the gateway announced no " + listener)

    def pss(self):
        with open(f"/proc/{self.process.pid}/smaps_rollup") as rollup:
            return int(re.search(r"^Pss:\s+(\d+)", rollup.read(), re.M).group(1)) * 1024

    def close(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder)


def cpu_seconds(pids):
    """User and system time of these processes, in seconds."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine():
    with open("/proc/cpuinfo") as info:
        model = re.search(r"model name\s*:\s*(.*)", info.read())
    return f"{os.cpu_count()} cores, {model.group(1) if model else 'unknown processor'}"
