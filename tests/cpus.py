"""Run the numerical tests as other processors would, and print which ran as what.

    python -m tests.cpus                        # every setting: an hour on two cores
    python -m tests.cpus --quick                # few tests in three settings: under a minute
    python -m tests.cpus tests/reid_eval -x     # what is not an option here goes to pytest

Libraries choose their kernels by the processor, and variables tell them to take those of a lesser one. None can be
told to use instructions that are not there: it falls back to what is, the table says to what, and a setting that comes
to the same as an earlier one is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.processor import describe

QUICK = (
    "tests/dgnet_gen/networks/test_doubling.py",
    "tests/dgnet_gen/networks/test_painting.py",
    "tests/dgnet_gen/test_losses.py",
    "tests/reid_eval/test_neighbours.py",
    "tests/reid_eval/test_places.py",
    "tests/reid_models/networks/test_pooling.py",
    "tests/reid_models/test_losses.py",
)


@dataclass(frozen=True)
class Setting:
    """Variables of the libraries, beside those that this process was started with."""

    name: str
    variables: dict[str, str]
    threads: int


LEAST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
if platform.machine() in ("x86_64", "AMD64"):
    LEAST["OPENBLAS_CORETYPE"] = "Prescott"
KINDS: dict[str, dict[str, str]] = {
    "as it is": {},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "oneDNN DEFAULT": {"ONEDNN_MAX_CPU_ISA": "DEFAULT"},
    "the least of all": LEAST,
}
SETTINGS = [Setting(name, variables, threads) for name, variables in KINDS.items() for threads in (1, 2)]
QUICK_SETTINGS = [Setting(name, KINDS[name], 1) for name in ("as it is", "oneDNN AVX2", "the least of all")]


class Used(NamedTuple):
    """What the libraries really take."""

    aten: str
    onednn: str
    openblas: str
    threads: int


_PROBE = """
import json
import torch
from threadpoolctl import threadpool_info
torch.nn.functional.conv2d(torch.ones(2, 16, 32, 32), torch.ones(16, 16, 3, 3))  # oneDNN tells itself in its first work
blas = {found.get("architecture", "?") for found in threadpool_info() if found["internal_api"] == "openblas"}
print(json.dumps([torch.backends.cpu.get_cpu_capability(), ", ".join(sorted(blas)), torch.get_num_threads()]))
"""


def environment(setting: Setting) -> dict[str, str]:
    number = str(setting.threads)
    return os.environ | {"OMP_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number} | setting.variables


def probe(setting: Setting) -> Used:
    """Ask the libraries, in a process of its own."""
    told = environment(setting) | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", _PROBE], env=told, capture_output=True, text=True, check=True)
    isa = re.search(r"^onednn_verbose.*cpu,isa:(.*)$", done.stdout, re.MULTILINE)
    aten, blas, threads = json.loads(done.stdout.splitlines()[-1])
    return Used(aten, isa[1] if isa else "not used", blas or "none", threads)


def run_tests(setting: Setting, arguments: list[str]) -> tuple[int, str]:
    """Pytest's exit code and its last line; what it says goes to the terminal."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    if "-m" not in arguments:
        words += ["-m", "numerical"]
    process = subprocess.Popen(words, env=environment(setting), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    return process.wait(), last.strip("= ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tests in three settings")
    parser.add_argument("--every", action="store_true", help="run also what comes to the same as an earlier setting")
    options, arguments = parser.parse_known_args()
    if options.quick:
        arguments = [*QUICK, *arguments]
    rows: list[tuple[Setting, Used, str]] = []
    code = 0
    for setting in QUICK_SETTINGS if options.quick else SETTINGS:
        used = probe(setting)
        same = next((number for number, row in enumerate(rows, 1) if row[1] == used), None)
        if same is not None and not options.every:
            rows.append((setting, used, f"as line {same}, not run again"))
            continue
        words = " ".join(f"{key}={value}" for key, value in setting.variables.items())
        print(f"\n{setting.name}, threads: {setting.threads}  {words}", flush=True)
        start_s = time.monotonic()
        failed, last = run_tests(setting, arguments)
        code = max(code, failed)
        rows.append((setting, used, re.sub(r" in [\d.]+s.*", f" in {time.monotonic() - start_s:.0f} s", last)))
    print(f"\n{describe()}\n")
    print(f"{'':>2} {'setting':<20}{'threads':>7}  {'ATen':<9}{'oneDNN':<32}{'OpenBLAS':<12}result")
    for number, (setting, used, result) in enumerate(rows, 1):
        print(
            f"{number:>2} {setting.name:<20}{used.threads:>7}  {used.aten:<9}{used.onednn[:31]:<32}"
            f"{used.openblas:<12}{result}"
        )
    print("\nWhere a column says less than the setting asked for, this processor has no more.")
    return code


if __name__ == "__main__":
    sys.exit(main())
