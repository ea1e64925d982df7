import os
import signal

import pytest
import torch

from benchmarks.processor import describe

# A shell's background and nohup have signals ignored, which commands then leave so. Tests send them.
for _signal, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (getattr(signal, "SIGHUP", None), signal.SIG_DFL),
):
    if _signal is not None and signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _default)

# Small tensors: one thread is faster than two that wait for each other. OMP_NUM_THREADS may say otherwise.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)

# About files, tables, settings and commands: no processor computes another answer. All others are `numerical`.
WITHOUT_NUMBERS = {
    "tests/repo",
    "tests/pipelines",
    "tests/dgnet_gen/test_cli.py",
    "tests/dgnet_gen/test_plan.py",
    "tests/dgnet_gen/test_settings.py",
    "tests/reid_eval/test_cli_images.py",
    "tests/reid_eval/test_errors.py",
    "tests/reid_eval/test_features.py",
    "tests/reid_eval/test_files.py",
    "tests/reid_eval/test_foreign.py",
    "tests/reid_eval/test_locks.py",
    "tests/reid_eval/test_outputs.py",
    "tests/reid_eval/test_progress.py",
    "tests/reid_eval/test_reading.py",
    "tests/reid_eval/test_report.py",
    "tests/reid_eval/test_stopping.py",
    "tests/reid_eval/test_tables.py",
    "tests/reid_eval/test_weights.py",
    "tests/reid_models/data/test_check.py",
    "tests/reid_models/data/test_index.py",
    "tests/reid_models/data/test_prepare.py",
    "tests/reid_models/test_bad_input.py",
    "tests/reid_models/test_config.py",
    "tests/reid_models/test_inspect_export_commands.py",
    "tests/reid_models/test_runs.py",
    "tests/reid_models/test_train_extract_commands.py",
}


GPU = os.environ.get("REID_TEST_GPU", "cuda")
"""the device of tests marked `gpu`; another one, such as cpu, tries the tests themselves"""


@pytest.fixture
def gpu():
    """A device's name; products of float32 are exact on it, as cuDNN's are not by itself."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield GPU
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def pytest_report_header(config):
    return describe().splitlines()


def pytest_collection_modifyitems(config, items):
    # Files with slow tests first: of two processes neither is left alone with them at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        path = item.path.relative_to(config.rootpath)
        if WITHOUT_NUMBERS.isdisjoint(part.as_posix() for part in (path, *path.parents)):
            item.add_marker(pytest.mark.numerical)
        if item.get_closest_marker("gpu") and GPU == "cuda" and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("realdata") and not os.environ.get("REID_REALDATA"):
            item.add_marker(pytest.mark.skip(reason="needs a real dataset; name its folder in REID_REALDATA"))
