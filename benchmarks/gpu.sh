#!/usr/bin/env bash
# Measure on an NVIDIA GPU, in a clone, with the PyTorch that is there and no network:
#
#     bash benchmarks/gpu.sh [WHEELS] [OUT] [OPTIONS of benchmarks/gpu.py]
#
# WHEELS is a folder of the packages that this Python lacks, OUT a new folder for results.md and results.json (default:
# runs/gpu). The wheels go into a folder of their own; those of PyTorch and what it stands on are left out, so what is
# there is never replaced. PYTHON names the interpreter (default: python3). Whoever has nothing to install: '' for WHEELS.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels= out=runs/gpu
if [[ $# -gt 0 && $1 != -* ]]; then wheels=$1 && shift; fi
if [[ $# -gt 0 && $1 != -* ]]; then out=$1 && shift; fi

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
for package in reid-eval reid-models dgnet-gen; do
    PYTHONPATH="$PWD/packages/$package/src:$PYTHONPATH"
done
if [[ -n $wheels ]]; then
    [[ -d $wheels ]] || { echo "$wheels: no such folder; expected one of wheels, or '' for none" >&2; exit 1; }
    files=()
    shopt -s nullglob
    for file in "$wheels"/*.whl; do
        case $(basename "$file") in
            torch-* | torchvision-* | torchaudio-* | triton-* | nvidia_* | cuda_*) echo "left out: $file" >&2 ;;
            *) files+=("$file") ;;
        esac
    done
    if [[ ${#files[@]} -gt 0 ]]; then
        "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-deps --no-compile --target "$site" "${files[@]}"
    fi
fi
# What installing the packages would tell about them: one asks for another by its entry points.
"$python" - "$site" << 'END'
import sys
import tomllib
from pathlib import Path

for file in Path("packages").glob("*/pyproject.toml"):
    project = tomllib.loads(file.read_text())["project"]
    folder = Path(sys.argv[1]) / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project.get("entry-points", {}).items()
    text = "".join(f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in offers.items()) for group, offers in groups)
    (folder / "entry_points.txt").write_text(text)
END
"$python" - << 'END' || { echo "a package is missing; put its wheel into WHEELS" >&2; exit 1; }
import reid_eval.cli, reid_models.cli, dgnet_gen.cli, pipelines.__main__  # noqa: E401
import dgnet_gen.training, reid_models.training, reid_eval.report  # noqa: E401
import pytest, skimage.metrics, tensorboard  # noqa: E401
END
"$python" benchmarks/gpu.py --out "$out" "$@"
