"""What the processor is called and can do, and what PyTorch uses of it: a time says little without.

.venv/bin/python benchmarks/processor.py
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

# As Linux spells them: x86-64, then ARM, the widest first.
_ABILITIES = {
    "amx_bf16": "AMX with bfloat16",
    "avx512_fp16": "AVX-512 with float16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "svebf16": "SVE with bfloat16",
    "sve": "SVE",
    "bf16": "bfloat16",
    "asimd": "NEON",
}
_MISSED = ("amx_bf16", "avx512_bf16", "avx512f")
"""of x86-64: what times differ most by"""


def name(cpuinfo: str) -> str:
    """What /proc/cpuinfo calls the processor; family and model tell apart what is sold under one name."""
    lines = [line.partition(":") for line in cpuinfo.splitlines()]
    said = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    called = said.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in said:
        return called
    return f"{called} (family {said['cpu family']}, model {said.get('model', '?')})"


def abilities(cpuinfo: str) -> str:
    """Its vector instructions, the widest first, and what an x86-64 one lacks."""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if flags is None:
        return "abilities unknown"
    there = flags[1].split()
    words = [text for flag, text in _ABILITIES.items() if flag in there]
    if "avx" in there or "sse2" in there:
        words += [f"no {_ABILITIES[flag]}" for flag in _MISSED if flag not in there]
    return ", ".join(words)


def describe() -> str:
    """Two lines: the processor and its abilities; PyTorch, what it uses of them, and its threads."""
    import torch

    file = Path("/proc/cpuinfo")
    cpuinfo = file.read_text() if file.is_file() else ""
    used = torch.backends.cpu.get_cpu_capability()
    return (
        f"{name(cpuinfo)}: {abilities(cpuinfo)}\n"
        f"torch {torch.__version__} with {used}, threads: {torch.get_num_threads()} on {os.cpu_count()} CPUs"
    )


def tell() -> None:
    """Print the same without importing PyTorch here: what this process holds, its children seem to hold at first."""
    subprocess.run([sys.executable, __file__], check=True)


if __name__ == "__main__":
    print(describe())
