#!/usr/bin/env python3
"""Which functions run when hookward starts and serves: `order.ld` beside this file, by which `build.rs` has them laid side
by side in a release.

    python3 benches/order.py            order.ld anew: builds a release and runs it under callgrind, about ten minutes

Without it what runs is strewn over the whole of the program, and every page that holds a little of it is in memory. What
the file names and a program has not is passed over, so one that is out of date does less, and no harm. The hash that ends a
Rust function's name changes with compiler, versions and types: where all functions of a name make little more than those
that ran, the file names all. Standard library alone; wants valgrind and binutils.
"""

import collections
import os
import pathlib
import re
import subprocess

import whole

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
ORDER = HERE / "order.ld"
TARGET = ROOT / "target" / "order"
# Of each kind; what a request takes then stands in front of what starting takes.
REQUESTS = 400
# All functions of one name are named where they are no more than this much of those that ran.
MOST_OF_A_NAME, AND_BYTES = 1.5, 512


def build():
    """A release with its symbols, apart from others."""
    environment = {**os.environ, "CARGO_PROFILE_RELEASE_STRIP": "none", "CARGO_TARGET_DIR": str(TARGET)}
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "hookward"], cwd=ROOT, env=environment, check=True)
    return str(TARGET / "release" / "hookward")


def sizes(hookward):
    told = subprocess.run(["nm", "-S", "--defined-only", hookward], stdout=subprocess.PIPE, text=True, check=True).stdout
    fields = (line.split() for line in told.splitlines())
    return {field[3]: int(field[1], 16) for field in fields if len(field) == 4 and field[2] in "tTwW"}


def costs(hookward, listener, expected):
    """Of each function of the program's own that ran."""

    def read(out):
        command = ["callgrind_annotate", "--threshold=100", out]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = re.findall(rf"^ *([\d,]+) \(.*?\)  \S*?:(\S+) \[{re.escape(hookward)}\]$", told, re.M)
        return {name.split("'")[0]: int(cost.replace(",", "")) for cost, name in lines}

    return whole.profile(hookward, listener, REQUESTS, expected, read, "--demangle=no")


def name_of(symbol):
    """Without its hash; None: it has none."""
    found = re.match(r"(_ZN.+17h)[0-9a-f]{16}E", symbol)
    return found and found[1]


def main():
    hookward = build()
    size, cost = sizes(hookward), collections.Counter()
    for listener, expected in whole.CASES.values():
        for symbol, taken in costs(hookward, listener, expected).items():
            if symbol in size:
                cost[symbol] = max(cost[symbol], taken)
    named, ran = collections.Counter(), collections.Counter()
    for symbol, bytes_ in size.items():
        named[name_of(symbol)] += bytes_
        ran[name_of(symbol)] += bytes_ if symbol in cost else 0
    patterns = {}
    for symbol, _ in cost.most_common():
        name = name_of(symbol)
        takes_all = name and named[name] <= MOST_OF_A_NAME * ran[name] + AND_BYTES
        patterns[f"{name}*" if takes_all else re.sub(r"\.llvm\..*", "*", symbol)] = None
    # What a compiler takes for seldom run lies in sections of another name.
    lines = "".join(f"    *(.text.{pattern} .text.unlikely.{pattern})\n" for pattern in patterns)
    ORDER.write_text(
        "/* Written by benches/order.py: what runs when hookward starts and serves, side by side. */\n"
        f"SECTIONS\n{{\n  .text.run :\n  {{\n{lines}  }}\n}}\nINSERT BEFORE .text;\n"
    )
    print(f"{len(patterns)} names of {len(cost)} functions, {sum(size[symbol] for symbol in cost) >> 10} KiB")


if __name__ == "__main__":
    main()
