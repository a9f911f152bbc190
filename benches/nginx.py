"""CPU per request beside nginx + Lua, in one run: 1 KiB bodies, TLS 1.3, keep-alive, HMAC-SHA256 checked, forwarded.

nginx checks the signature through libcrypto and forwards; it remembers nothing. hookward does all it always does: limits,
the claim, metrics, the audit line. Each is pinned to one core, wrk and the upstream to the other. Every answer must be a
200, or the run is void.
"""
import hashlib, hmac, os, re, shutil, statistics, subprocess, sys, tempfile, time
from common import Gateway, cpu_seconds, free_port, machine

SECONDS, ROUNDS, CONNECTIONS, BODIES = 6, 3, 32, 1_000_000
SECRET = b"0123456789abcdef"
FILLER = b"x" * (1024 - 16)

LUA = """
local ffi = require "ffi"
ffi.cdef[[
typedef struct env_md_st EVP_MD;
const EVP_MD *EVP_sha256(void);
unsigned char *HMAC(const EVP_MD *evp_md, const void *key, int key_len, const unsigned char *d, size_t n, unsigned char *md, unsigned int *md_len);
int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]]
local crypto = ffi.load("crypto.so.3")
local md, out, hex = crypto.EVP_sha256(), ffi.new("unsigned char[32]"), {}
for i = 0, 255 do hex[i] = string.format("%02x", i) end
local parts = {}
return function()
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  local sent = ngx.var.http_x_hub_signature_256
  if not body or not sent or #sent ~= 71 then return ngx.exit(401) end
  crypto.HMAC(md, "SECRET", 16, body, #body, out, nil)
  for i = 0, 31 do parts[i + 1] = hex[out[i]] end
  local made = "sha256=" .. table.concat(parts)
  if crypto.CRYPTO_memcmp(made, sent, 71) ~= 0 then return ngx.exit(401) end
end
""".replace("SECRET", SECRET.decode())

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log error;
{modules}
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 100000000; client_body_buffer_size 64k;
  lua_package_path "{folder}/?.lua;;";
  init_by_lua_block {{ check = require "check" }}
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certs}/server.pem; ssl_certificate_key {certs}/server.key; ssl_protocols TLSv1.3;
    location / {{ access_by_lua_block {{ check() }} proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""

UPSTREAM = """
daemon off; worker_processes 1; pid {folder}/upstream.pid; error_log {folder}/upstream.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/ub; proxy_temp_path {folder}/up; fastcgi_temp_path {folder}/uf;
  uwsgi_temp_path {folder}/uu; scgi_temp_path {folder}/us; keepalive_requests 100000000;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok"; }} }}
}}
"""

GATEWAY = """
[listeners.public]
address = "127.0.0.1:0"
tls.certificate = "certs/server.pem"
tls.private_key = "certs/server.key"
[limits]
max_connections_per_client = 1000
max_requests_per_client = 1000
[log]
level = "info"
audit = "audit.log"
[state]
max_claims = 20000000
[upstreams.app]
urls = ["http://127.0.0.1:{upstream}"]
idle_timeout = "60s"
[sources.github]
path = "/github"
provider = "github"
secrets = [{{ value = "{secret}" }}]
upstream = "app"
rate_limit = {{ rate = "1000000/s", burst = 1000000 }}
"""

# Each body is sent once: a second copy would be a replay. Every run reads on where the last one ended.
WRK = """
local first = tonumber(os.getenv("FIRST"))
local file = io.open(os.getenv("SIGNATURES"), "rb")
file:seek("set", first * 64)
local filler, number = string.rep("x", 1008), first
local headers = {}
request = function()
  local signature = file:read(64)
  headers["X-Hub-Signature-256"] = "sha256=" .. signature
  local body = string.format("%016d", number) .. filler
  number = number + 1
  return wrk.format("POST", "/github", headers, body)
end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, e.status, e.connect + e.read + e.write + e.timeout, latency:percentile(50)))
end
"""


def main():
    folder = tempfile.mkdtemp(prefix="hookward-nginx-")
    os.chmod(folder, 0o755)
    started = []
    gateway = None
    try:
        print(f"{machine()}; signing {BODIES} bodies", flush=True)
        with open(f"{folder}/signatures", "wb") as file:
            for number in range(BODIES):
                file.write(hmac.new(SECRET, b"%016d" % number + FILLER, hashlib.sha256).hexdigest().encode())
        upstream, port = free_port(), free_port()
        modules = "".join(open(path).read() for path in sorted(
            os.path.join("/etc/nginx/modules-enabled", name) for name in os.listdir("/etc/nginx/modules-enabled")))
        gateway = Gateway(GATEWAY.format(upstream=upstream, secret=SECRET.decode()), cpu=0)
        files = {"check.lua": LUA, "wrk.lua": WRK, "upstream.conf": UPSTREAM.format(folder=folder, port=upstream),
                 "nginx.conf": NGINX.format(folder=folder, modules=modules, upstream=upstream, port=port, certs=gateway.folder + "/certs")}
        for name, text in files.items():
            with open(f"{folder}/{name}", "w") as file:
                file.write(text)
        for name, cpu in (("upstream.conf", "1"), ("nginx.conf", "0")):
            started.append(subprocess.Popen(["taskset", "-c", cpu, "nginx", "-c", f"{folder}/{name}", "-e", f"{folder}/start.log", "-g", "user root;"]))
        time.sleep(1)
        workers = subprocess.run(["pgrep", "-P", str(started[1].pid)], capture_output=True, text=True).stdout.split()
        targets = {"nginx + Lua": (port, workers), "hookward": (gateway.address("public")[1], [gateway.process.pid])}
        first, results = {name: 0 for name in targets}, {name: [] for name in targets}
        for round_number in range(ROUNDS):
            for name, (at, pids) in targets.items():
                before = cpu_seconds(pids)
                environment = dict(os.environ, FIRST=str(first[name]), SIGNATURES=f"{folder}/signatures")
                out = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", f"{folder}/wrk.lua",
                                      f"https://127.0.0.1:{at}/github"], capture_output=True, text=True, env=environment).stdout
                found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", out)
                requests, bad, broken, median = map(int, found.groups())
                used = cpu_seconds(pids) - before
                if bad or broken:
                    raise SystemExit(f"void: {name}: {bad} answers were not 200, {broken} were broken\n{out}")
                first[name] += requests + CONNECTIONS * 2
                if first[name] + requests > BODIES:
                    print(f"note: {name} is running out of signed bodies", flush=True)
                results[name].append(used / requests * 1e6)
                print(f"round {round_number + 1}: {name}: {requests / SECONDS:.0f}/s, {used / requests * 1e6:.1f} us CPU a request, p50 {median} us", flush=True)
        ours, theirs = (statistics.median(results[name]) for name in ("hookward", "nginx + Lua"))
        print(f"median: hookward {ours:.1f} us, nginx + Lua {theirs:.1f} us, ratio {ours / theirs:.2f}")
    finally:
        for process in started:
            process.terminate()
            process.wait()
        if gateway:
            gateway.close()
        shutil.rmtree(folder)


main()
