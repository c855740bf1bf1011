"""Exports frozen vision encoders as TorchScript: `python -m export --help`, and README.md beside this folder."""
