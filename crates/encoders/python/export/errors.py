"""What can go wrong in an export, as one line for people."""


class ExportError(Exception):
    """One encoder cannot be exported. The message is one line: what is wrong and the way out."""


class UsageError(Exception):
    """The command line asks for something that does not exist; nothing was exported."""
