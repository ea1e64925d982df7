"""Every benchmark runs, at sizes that measure nothing; they check themselves that two ways find the same."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.originals import MACHINE, ORIGINALS

ROOT = Path(__file__).parents[2]
TRIES = {
    "dgnet_step --tiny --exact": r"float64: total agrees to \d",
    "dgnet_step --tiny --repeats 1": r"ours, float32 .* x .* each term to",
    "generate --tiny": r"ours +[\d.]+ images/s",
    "plans --tiny": r"200 pictures, random +2,000 pairs",
    "mgn --tiny --no-compile --repeats 1 --batch-size 8": r"ours, --half",
    "rank --size tiny": r"re-ranked distances(.|\n)*ours is [\d.]+ x as fast",
    "images --size tiny --repeat 1 frechet ssim": r"values differ by",
    "start --repeats 1 --pictures 40 --pairs 100 plan": r"a plan, 100 of 40 +[\d.]+ s",
}


def run(*words, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, words)), cwd=ROOT, env=environment, capture_output=True, text=True, **options)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", TRIES)
def test_a_benchmark_runs_and_names_the_processor(line):
    name, *words = line.split()
    done = run(sys.executable, f"benchmarks/{name}.py", *words, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(TRIES[line], done.stdout), done.stdout
    processor, torch, *_ = done.stdout.splitlines()
    assert ": " in processor
    assert torch.startswith("torch ")


def test_every_benchmark_is_tried():
    tried = {line.split()[0] for line in TRIES} | {"gpu"}
    assert tried | {"processor", "originals"} == {file.stem for file in (ROOT / "benchmarks").glob("*.py")}


def test_the_results_page_shows_what_the_originals_took():
    page = (ROOT / "docs" / "results.md").read_text()
    assert MACHINE in " ".join(page.split())
    for original in ORIGINALS:
        assert f"| {original.work} | {original.took} | {original.ours} | {original.ratio} |" in page


def wheel(folder, name):
    """The smallest wheel there is."""
    info = f"{name}-9.0.dist-info"
    files = {
        f"{name}/__init__.py": "here = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-9.0-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="gpu.sh reads pyproject.toml with tomllib")
@pytest.mark.timeout(900)
def test_the_gpu_script_installs_what_is_missing_and_measures_part_by_part(tmp_path):
    wheel(tmp_path / "wheels", "lacked_package")
    wheel(tmp_path / "wheels", "torch")
    script = (
        "bash benchmarks/gpu.sh WHEELS OUT --tiny --device cpu --minutes 60 --parts machine,draw,mgn,generate,extract"
    )
    words = script.replace("WHEELS", str(tmp_path / "wheels")).replace("OUT", str(tmp_path / "out")).split()
    done = run("env", f"PYTHON={sys.executable}", *words, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: " in done.stderr  # PyTorch is never replaced
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [part["status"] for part in results["parts"]] == ["done"] * 5
    machine, _, mgn, generated, extracted = (part["rows"] for part in results["parts"])
    assert machine[0]["torch"]
    assert [row["way"] for row in mgn] == ["fp32", "bf16", "fp16"]
    assert all(row["images/s"] > 0 for row in [*mgn, *generated, *extracted])
    page = (tmp_path / "out" / "results.md").read_text()
    assert "## Ten training steps of MGN" in page
    assert "| fp16 |" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs", "results.json", "results.md"]


def test_a_folder_of_wheels_that_is_not_there_is_one_line(tmp_path):
    done = run("bash", "benchmarks/gpu.sh", tmp_path / "wheels", tmp_path / "out", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'wheels'}: no such folder; expected one of wheels, or '' for none\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path):
    # Nothing was drawn, so there is nothing to train on.
    done = run(
        sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cpu", "--out", tmp_path / "out",
        "--parts", "mgn,machine", "--minutes", "60", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    mgn, machine = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert mgn["status"].startswith("failed (")
    assert "toy" in mgn["status"]
    assert machine["status"] == "done"


@pytest.mark.slow
def test_whoever_stops_the_gpu_script_has_what_was_measured_until_then(tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cpu", "--out", str(out), "--minutes", "60"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline_s = time.monotonic() + 240
    while time.monotonic() < deadline_s and len(part_statuses(out)) < 3:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert part_statuses(out)[:2] == ["done", "done"]
    assert part_statuses(out)[2].startswith("stopped from outside")
    assert not (out / "work").exists()


def part_statuses(out):
    file = out / "results.json"
    return [part["status"] for part in json.loads(file.read_text())["parts"]] if file.is_file() else []
