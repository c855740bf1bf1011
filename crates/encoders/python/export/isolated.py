"""Runs each export in a separate process.

An export that is killed because it runs out of memory then does not affect the others, and the bytes of a file do not
depend on earlier exports.
"""

import errno
import multiprocessing
import traceback
from multiprocessing.connection import Connection

import torch

from .catalogue import Entry
from .errors import ExportError
from .exporter import Checkpoint, Options, Outcome, export

REQUIREMENTS = "pip install -r crates/encoders/python/requirements.txt"
NO_SPACE = "no space left on the disk; an export needs twice the size of the file while it is written"
NO_MEMORY = "not enough memory; README.md states the requirements of an export"

# The fork server has already imported the large packages; each export is a fork of it.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["export.exporter", "timm"])


def export_isolated(
    entry: Entry, options: Options, weights: Checkpoint, threads: int | None = None, trace_errors: bool = False
) -> Outcome:
    """Runs `exporter.export` in another process. Every failure is raised as an `ExportError`."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_work, args=(sender, entry, options, weights, threads, trace_errors))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        result = NO_MEMORY if process.exitcode == -9 else f"the process ended with code {process.exitcode}"
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        process.join()
    if isinstance(result, str):
        raise ExportError(result)
    return result


def _work(
    sender: Connection,
    entry: Entry,
    options: Options,
    weights: Checkpoint,
    threads: int | None,
    trace_errors: bool,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    try:
        sender.send(export(entry, options, weights))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if trace_errors:
            traceback.print_exc()
        sender.send(reason(error))


def reason(error: Exception) -> str:
    """Describes an error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ExportError):
        return text
    if isinstance(error, ImportError):
        return f"the package {error.name or text} is missing: {REQUIREMENTS}"
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in text:
        return NO_SPACE
    # Messages of libtorch's archive writer after an incomplete write.
    if "unexpected pos" in text or "PytorchStreamWriter failed" in text:
        return NO_SPACE
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return NO_MEMORY
    return f"{type(error).__name__}: {text[:300]}"
