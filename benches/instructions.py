#!/usr/bin/env python3
"""Instructions of each case of `benches/micro.rs` and of whole requests, counted under callgrind, against the table
beside this file.

    python3 benches/instructions.py            compare; fails where a case takes over 5 % more than the table says
    python3 benches/instructions.py --write    the table anew, from this run
    python3 benches/instructions.py WORD ...   only cases whose names contain one of the words

Counts hold for one compiler, C library and valgrind: where the table is of others, this says so, compares all the
same and does not fail. Standard library alone.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import whole

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
TABLE = HERE / "instructions.tsv"
ALLOWED = 0.05
BUILD = ["cargo", "bench", "--locked", "--no-run", "--profile", "counts", "--bench", "micro", "--features", "measure"]


def build():
    """The paths of the benchmark and of hookward, in the profile that is counted."""
    command = [*BUILD, "--message-format", "json-render-diagnostics"]
    # With units of a build before, functions would lie and be inlined otherwise than in one from a clean checkout.
    environment = {**os.environ, "CARGO_INCREMENTAL": "0"}
    told = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    made = {}
    for line in told.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            made[message["target"]["kind"][0], message["target"]["name"]] = message["executable"]
    return made["bench", "micro"], made["bin", "hookward"]


def conditions():
    def first_line(*command):
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]

    told = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return {
        "rustc": told.splitlines()[0].removeprefix("rustc "),
        "target": re.search(r"^host: (.+)$", told, re.M)[1],
        "valgrind": first_line("valgrind", "--version").removeprefix("valgrind-"),
        "libc": " ".join(platform.libc_ver()),
        # valgrind shows a program one processor with AVX2 and one without, whatever the machine's is.
        "processor": "AVX2" if re.search(r"^flags.* avx2\b", flags, re.M) else "no AVX2",
    }


def count(bench, name, times):
    """Of one call."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out"
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=*counted_calls*", f"--callgrind-out-file={out}"]
        ran = subprocess.run(
            [*command, bench, "--count", name, str(times)],
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ran.returncode != 0:
            sys.exit(f"{name}: failed under valgrind\n{ran.stdout}")
        totals = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.M)
        if not totals or int(totals[1]) < times:
            sys.exit(f"{name}: nothing was counted; is `counted_calls` still a function of its own?")
        return round(int(totals[1]) / times)


def counts(bench, hookward, words):
    listed = subprocess.run([bench, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    named = [line.split("\t") for line in listed.splitlines()]
    is_meant = lambda name: not words or any(word in name for word in words)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # The long ones first.
        wholes = {name: pool.submit(whole.count, hookward, name) for name in whole.CASES if is_meant(name)}
        pieces = {name: pool.submit(count, bench, name, int(times)) for name, times in named if is_meant(name)}
        futures = {**pieces, **wholes}
        return {name: future.result() for name, future in futures.items()}


def read_table():
    known, counted = {}, {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("# "):
            name, _, value = line[2:].partition(": ")
            known[name] = value
        elif "\t" in line and not line.startswith("case\t"):
            name, number = line.split("\t")
            counted[name] = int(number)
    return known, counted


def write_table(found, counted):
    head = [f"# {name}: {value}" for name, value in found.items()]
    rows = [f"{name}\t{number}" for name, number in counted.items()]
    TABLE.write_text("\n".join([*head, "case\tinstructions of one call", *rows]) + "\n")


def compare(found, counted, words):
    known, before = read_table()
    others = [f"{name} {known.get(name)}, here {value}" for name, value in found.items() if known.get(name) != value]
    if others:
        print("!! THE TABLE IS OF OTHER CONDITIONS, and a difference says nothing of a regression:")
        print("".join(f"!!   {other}\n" for other in others), end="")
    print(f"{'case':<48} {'table':>11} {'now':>11}")
    slower, faster, unlisted = [], [], []
    for name, now in counted.items():
        if name not in before:
            unlisted.append(name)
            print(f"{name:<48} {'':>11} {now:>11,}  not in the table")
            continue
        change = now / before[name] - 1
        mark = ""
        if change > ALLOWED:
            slower.append(name)
            mark = "  SLOWER"
        elif change < -ALLOWED:
            faster.append(name)
            mark = "  faster"
        print(f"{name:<48} {before[name]:>11,} {now:>11,} {change:>+8.1%}{mark}")
    gone = [] if words else [name for name in before if name not in counted]
    again = "python3 benches/instructions.py --write"
    if faster:
        print(f"\nOver {ALLOWED:.0%} fewer than the table says, so that it no longer guards them: {', '.join(faster)}")
        print(f"Renew it with: {again}")
    wrong = [f"over {ALLOWED:.0%} more instructions than the table says: {', '.join(slower)}"] * bool(slower)
    wrong += [f"not in the table: {', '.join(unlisted)}"] * bool(unlisted)
    wrong += [f"in the table, and no case any more: {', '.join(gone)}"] * bool(gone)
    for what in wrong:
        print(f"\n{what[0].upper()}{what[1:]}")
    if wrong:
        print(f"Where that is meant, accept it with: {again}")
    if others and wrong:
        print("It does not count here, for the table is of other conditions (above).")
    return 1 if wrong and not others else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--write", action="store_true", help="write the table anew")
    arguments = parser.parse_args()
    bench, hookward = build()
    found = conditions()
    counted = counts(bench, hookward, arguments.words)
    if not arguments.write:
        sys.exit(compare(found, counted, arguments.words))
    if arguments.words:
        known, before = read_table()
        if known != found:
            sys.exit("the table is of other conditions: write all of it")
        counted = {**before, **counted}
    write_table(found, counted)
    print(f"wrote {len(counted)} counts to {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
