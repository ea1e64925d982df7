"""Pipelines that join the three packages: prepare, teacher, DG-Net, generate, evaluate, report.

They hold no algorithm: each stage calls library functions and remembers what it was made from.

    python -m pipelines demo --out runs/demo
    python -m pipelines market --raw Market-1501-v15.09.15 --out runs
"""
