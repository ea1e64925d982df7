"""The four networks of DG-Net."""
