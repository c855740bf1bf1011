"""Errors of an export with one-line messages for users."""


class ExportError(Exception):
    """An encoder cannot be exported. The one-line message states the problem and its solution."""


class UsageError(Exception):
    """The command line is invalid; nothing was exported."""
