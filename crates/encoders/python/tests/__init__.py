"""Tests of the exporter; README.md beside this folder has the command."""
