"""Holds deploy/ to the tools that will read it: systemd, kubectl, Kubernetes' schemas, hadolint, HAProxy, promtool.

    python3 check.py HOOKWARD      from the top of the repository; HOOKWARD is the built binary

What gateway.toml files say is checked by the binary itself, in tests/it/deploy.rs.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

HERE = pathlib.Path(__file__).parent
DEPLOY = HERE.parent.parent / "deploy"
# Of 100: `systemd-analyze security` begins to complain at 50.
MOST_EXPOSURE = 15
# What the Dockerfile's last image has.
DISTROLESS_CC = {"linux-vdso.so.1", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libdl.so.2", "libpthread.so.0"}


def run(*command, **how):
    done = subprocess.run(command, capture_output=True, text=True, **how)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def promise(holds, what):
    if not holds:
        sys.exit(f"not so: {what}")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|min|m|h)?", text).groups()
    return int(number) * {"ms": 0.001, None: 1, "s": 1, "min": 60, "m": 60, "h": 3600}[unit]


def setting(toml, key):
    return seconds(re.search(rf'^{key} = "([^"]+)"', toml, re.MULTILINE).group(1))


def the_units(binary):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hookward.service", "hookward.socket"):
            text = (DEPLOY / "systemd" / name).read_text()
            (pathlib.Path(folder) / name).write_text(text.replace("/usr/local/bin/hookward", binary))
        said = run("systemd-analyze", "verify", "./hookward.service", "./hookward.socket", cwd=folder)
        promise(not said.strip(), f"systemd-analyze verify has nothing to say: {said}")
        run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", "./hookward.service", cwd=folder)

    unit = (DEPLOY / "systemd/hookward.service").read_text()
    toml = (DEPLOY / "systemd/gateway.toml").read_text()
    stop = seconds(re.search(r"^TimeoutStopSec=(.*)$", unit, re.MULTILINE).group(1))
    drain = setting(toml, "drain_delay") + setting(toml, "drain_timeout")
    promise(stop > drain + 10, f"TimeoutStopSec, {stop} s, leaves time after a drain of {drain} s")
    # Every credential that the configuration names is loaded by the unit, and the key of the listener too.
    loaded = set(re.findall(r"^LoadCredential=([^:]+):", unit, re.MULTILINE))
    named = set(re.findall(r'credential = "([^"]+)"', toml)) | set(re.findall(r"/run/credentials/hookward.service/([^\"]+)", toml))
    promise(named and loaded == named, f"LoadCredential= has {loaded}, gateway.toml names {named}")


def the_sandbox(binary):
    """The unit's system call rules let the gateway do all that the demonstration does, and others nothing beyond."""
    sandbox = ["/usr/bin/python3", str(HERE / "sandbox.py"), str(DEPLOY / "systemd/hookward.service")]
    with tempfile.TemporaryDirectory() as folder:
        run(*sandbox, binary, "demo", "--exit", cwd=folder)
        twin = subprocess.run([*sandbox, "/bin/chown", "0", folder], capture_output=True, text=True)
        promise(twin.returncode and "not permitted" in twin.stderr, f"the rules hold: {twin}")


def the_image(binary):
    docker = DEPLOY / "docker"
    run("hadolint", "--strict-labels", docker / "Dockerfile")
    # What the last image must have: nothing that distroless/cc lacks.
    wanted = set(re.findall(r"^\s*(\S+\.so\S*)(?= )", run("ldd", binary), re.MULTILINE))
    wanted = {name for name in wanted if not name.startswith("/lib64/ld-linux")}
    promise(wanted <= DISTROLESS_CC, f"the binary asks for {wanted}")
    # The context that the .dockerignore leaves is one that cargo takes, and it holds no secret and no build.
    kept = [line[1:] for line in (docker / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    top = DEPLOY.parent
    with tempfile.TemporaryDirectory() as folder:
        for name in kept:
            target = pathlib.Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (top / name).is_dir() else shutil.copy)(top / name, target)
        metadata = json.loads(run("cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version=1", cwd=folder).split("\n")[0])
        promise(any("bin" in target["kind"] for target in metadata["packages"][0]["targets"]), "cargo finds the binary")
        # What the sources take in at compile time is there too; what only tests take in need not be.
        for source in (pathlib.Path(folder) / "src").rglob("*.rs"):
            before_tests = source.read_text().split("#[cfg(test)]")[0]
            for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', before_tests):
                if source.name not in ("properties.rs", "tests.rs"):
                    promise((source.parent / name).exists(), f"{source.name} takes in {name}, and the context has it")


def rendered(name):
    return list(yaml.safe_load_all(run("kubectl", "kustomize", DEPLOY / "kubernetes" / name)))


def the_manifests():
    run("yamllint", "--strict", "--config-file", HERE / "yamllint.yaml", DEPLOY)
    for name in ("stateless", "inbox"):
        objects = rendered(name)
        secret_free = [thing for thing in objects if thing["kind"] == "Secret"]
        promise(not secret_free, f"{name}: no Secret is rendered")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(objects, file)
            file.flush()
            run("kubernetes-validate", "--strict", "--no-warn", file.name)
        by_kind = {}
        for thing in objects:
            by_kind.setdefault(thing["kind"], []).append(thing)
        workload = (by_kind.get("Deployment") or by_kind["StatefulSet"])[0]["spec"]
        pod = workload["template"]["spec"]
        container = pod["containers"][0]
        toml = by_kind["ConfigMap"][0]["data"]["gateway.toml"]
        promise(workload["replicas"] >= 2, f"{name}: two gateways at least")
        drain = setting(toml, "drain_delay") + setting(toml, "drain_timeout")
        promise(pod["terminationGracePeriodSeconds"] > drain + 10, f"{name}: the grace period outlasts a drain of {drain} s")
        probe = container["readinessProbe"]
        noticed = probe["periodSeconds"] * probe["failureThreshold"]
        promise(setting(toml, "drain_delay") > noticed, f"{name}: drain_delay outlasts the {noticed} s until a pod is not ready")
        promise(probe["httpGet"]["path"] == "/readyz", f"{name}: ready is /readyz")
        promise(container["livenessProbe"]["httpGet"]["path"] == "/healthz", f"{name}: alive is /healthz")
        restricted(name, pod, container)
        # Each selector finds the pods, each named port is one of theirs.
        labels = workload["template"]["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for number in re.findall(r'^address = "[^"]*:(\d+)"', toml, re.MULTILINE):
            promise(int(number) in ports.values(), f"{name}: port {number} is one of the container's")
        for service in by_kind["Service"]:
            promise(service["spec"]["selector"].items() <= labels.items(), f"{name}: the service finds its pods")
            promise(all(port["targetPort"] in ports for port in service["spec"]["ports"]), f"{name}: the service's ports")
        for kind, selector in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
            chosen = by_kind[kind][0]["spec"][selector]["matchLabels"]
            promise(chosen.items() <= labels.items(), f"{name}: the {kind} is about these pods")
        # What the configuration takes from the environment is in the command that makes the Secret.
        made = (DEPLOY / "kubernetes" / name / "kustomization.yaml").read_text()
        for variable in re.findall(r'env = "([^"]+)"', toml):
            promise(f"--from-literal={variable}=" in made, f"{name}: {variable} is among the secrets that are made")


def restricted(name, pod, container):
    """Kubernetes' restricted profile, as its page has it."""
    outer, inner = pod["securityContext"], container["securityContext"]
    promise(outer["runAsNonRoot"] and outer["runAsUser"] > 0, f"{name}: not as root")
    promise(outer["seccompProfile"]["type"] == "RuntimeDefault", f"{name}: the runtime's seccomp profile")
    promise(inner["allowPrivilegeEscalation"] is False, f"{name}: no privilege escalation")
    promise(inner["capabilities"] == {"drop": ["ALL"]}, f"{name}: no capabilities")
    promise(inner["readOnlyRootFilesystem"], f"{name}: nothing is written beside its volumes")
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in pod["volumes"]:
        promise(set(volume) - {"name"} <= allowed, f"{name}: a volume of a kind that is allowed")


def the_monitoring():
    objects = rendered("monitoring")
    operator = ["node", str(HERE / "operator.mjs"), str(pathlib.Path(sys.prefix) / "node_modules")]
    run(*operator, input=json.dumps(objects))
    objects = {thing["kind"]: thing for thing in objects}
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    promise(objects["PrometheusRule"]["spec"]["groups"] == groups, "prometheusrule.yaml has the rules of alerts.yml, all and no other")
    monitor = objects["ServiceMonitor"]["spec"]
    for name in ("stateless", "inbox"):
        services = [thing for thing in rendered(name) if thing["kind"] == "Service"]
        watched = [s for s in services if monitor["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()]
        promise(len(watched) == 1, f"{name}: one service is watched")
        ports = [port["name"] for port in watched[0]["spec"]["ports"]]
        promise(monitor["endpoints"][0]["port"] in ports, f"{name}: the port that is watched is there")


def the_dashboard():
    """Every expression is PromQL; the metrics' names are held to the code by tests/it/deploy.rs."""
    board = json.loads((DEPLOY / "grafana/hookward.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    expressions += [note["expr"] for note in board["annotations"]["list"]]
    promise(len(expressions) > 30, f"{len(expressions)} expressions")
    variables = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    rules = []
    for number, expression in enumerate(expressions):
        used = set(re.findall(r"\$\{?(\w+)", expression))
        promise(used <= variables, f"{used - variables} of {expression} is a variable of the dashboard")
        shown = expression.replace("$__rate_interval", "5m")
        shown = re.sub(r"\$\w+", ".*", shown)
        rules.append({"record": f"panel:{number}", "expr": shown})
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        run("promtool", "check", "rules", file.name)
    # Panels neither overlap nor leave the grid, and none is there twice.
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        promise(not cells & taken and at["x"] + at["w"] <= 24, f"{panel['title']} has a place of its own")
        taken |= cells
    numbers = [panel["id"] for panel in board["panels"]]
    promise(len(numbers) == len(set(numbers)), "panels have numbers of their own")


def the_balancer():
    run("haproxy", "-c", "-f", DEPLOY / "haproxy/haproxy.cfg")


if __name__ == "__main__":
    binary = os.path.abspath(sys.argv[1])
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    the_units(binary)
    the_sandbox(binary)
    the_image(binary)
    the_manifests()
    the_monitoring()
    the_dashboard()
    the_balancer()
    print("deploy/ is as the tools want it")
