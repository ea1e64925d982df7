"""What is said of a processor, and how one is made to do as a lesser one would."""

import pytest

from benchmarks.processor import abilities, describe, name
from tests import cpus

ZEN3 = "cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 fma\n"
XEON = (
    "cpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R)\n"
    "flags\t\t: sse2 avx avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile\n"
)
ARM = "BogoMIPS\t: 50.00\nFeatures\t: fp asimd sve bf16 svebf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("cpuinfo", "called", "can"),
    [
        (ZEN3 * 2, "AMD EPYC (family 25, model 1)", "AVX2, no AMX with bfloat16, no AVX-512 with bfloat16, no AVX-512"),
        (XEON, "Intel(R) Xeon(R) (family 6, model 143)",
         "AMX with bfloat16, AVX-512 with float16, AVX-512 with bfloat16, AVX-512, AVX2"),
        (ARM, None, "SVE with bfloat16, SVE, bfloat16, NEON"),
        ("", None, "abilities unknown"),
    ],
    ids=["zen 3", "xeon", "arm", "another system"],
)  # fmt: skip
def test_a_processor_is_told_by_name_and_by_what_it_can(cpuinfo, called, can):
    assert name(cpuinfo) == called or called is None
    assert name(cpuinfo)
    assert abilities(cpuinfo) == can


def test_this_machine_is_told_in_two_lines():
    processor, torch = describe().splitlines()
    assert ": " in processor
    assert torch.startswith("torch ")
    assert "threads: " in torch


def test_a_library_that_is_told_to_do_with_little_says_so():
    used = cpus.probe(cpus.Setting("the least of all", cpus.LEAST, 2))
    assert (used.aten, used.threads) == ("DEFAULT", 2)


def test_each_kind_of_kernel_runs_with_one_thread_and_with_two():
    for variables in cpus.KINDS.values():
        assert {setting.threads for setting in cpus.SETTINGS if setting.variables == variables} == {1, 2}
    wanted = {("ATEN_CPU_CAPABILITY", "default"), ("ATEN_CPU_CAPABILITY", "avx2")}
    wanted |= {("ONEDNN_MAX_CPU_ISA", isa) for isa in ("AVX2", "AVX512_CORE", "DEFAULT")}
    assert wanted <= {item for setting in cpus.SETTINGS for item in setting.variables.items()}


def test_what_fails_is_told_by_the_exit_code(tmp_path, capfd):
    (tmp_path / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    code, last = cpus.run_tests(
        cpus.QUICK_SETTINGS[0], [str(tmp_path), "-m", "", "-n", "0", "--rootdir", str(tmp_path)]
    )
    assert code == 1
    assert "1 failed" in last
