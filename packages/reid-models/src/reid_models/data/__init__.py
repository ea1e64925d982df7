"""Datasets: what is on disk, how it becomes batches."""
