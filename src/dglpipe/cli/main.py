"""Entry point of `dglpipe COMMAND ...`: selects the command and sets the exit status.

Only the module of the chosen command is imported, so that `dglpipe --version` starts fast.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys

from dglpipe import __version__
from dglpipe.runtime.signals import INTERRUPTION
from dglpipe.streams import output_error, shield_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USAGE = """usage: dglpipe COMMAND ...

commands:
  train [OVERRIDES]      train a network; `dglpipe train --help` lists the settings
  train -m [OVERRIDES]   sweep: key=value1,value2 trains once with each value
  plan [OVERRIDES]       print the stages and their costs without training
  evaluate run=RUN_DIR   print the test accuracy of every exit of a finished run
  export run=RUN_DIR output=FILE.safetensors [exits=true]
                         write the trained network under its own state_dict keys
                         (both: trust=NAME,... imports plug-ins of a run of somebody else)
  models                 list networks, heads, data sets and the other choices
  --version              print the version
"""

GARBAGE_THRESHOLD = 2_000_000
"""Net allocations before a garbage collection."""
COMMANDS = ("train", "plan", "evaluate", "export", "models")
READERS = ("evaluate", "export")
"""Commands that read a run directory. The working directory may belong to somebody else, as the run
directory may: nothing in it is imported, not even as an optional module of a library, before the
plug-ins of the run are known and trusted."""
FAST_EXIT = ("plan", "models")
"""Commands that leave nothing to clean up: the process exits without interpreter shutdown."""
DONE, FAILED, WRONG, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script.

    A command goes on when the reader of its output has gone, and its exit status is the same.
    """
    shield_streams()  # before any file is opened
    # Imports allocate a million long-lived objects. With the default threshold, the garbage
    # collector scans these objects repeatedly, which is a seventh of the start-up time.
    gc.set_threshold(GARBAGE_THRESHOLD)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, INTERRUPTION)
    words = sys.argv[1:] if arguments is None else arguments
    status = _end_output(words, run(words))
    # Interpreter shutdown takes half a second. After KeyboardInterrupt in code that `exec` has
    # compiled, as dataclasses do, `python -m` ends itself by SIGINT and drops the status.
    if arguments is None and (status == INTERRUPTED or (words and words[0] in FAST_EXIT)):
        os._exit(status)
    gc.freeze()  # skips the collection at interpreter shutdown
    sys.exit(status)


def _end_output(words: Sequence[str], status: int) -> int:
    """Writes the remaining output. Reports an error, such as a full disk; then the exit status of
    a command that only prints is 1."""
    sys.stdout.flush()
    error = output_error(sys.stdout)
    if error is not None:
        sys.stderr.write(f"dglpipe: standard output: {error.strerror}\n")
        if list(words[:1]) != ["train"]:
            status = status or FAILED
    sys.stderr.flush()
    return status


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit status."""
    if arguments and arguments[0] in READERS:
        _leave_working_directory()
    # Plug-ins in the working directory can be imported, as with `python -m`.
    elif os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.append(os.getcwd())  # noqa: PTH109
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(USAGE)
        return DONE if arguments else WRONG
    if arguments[0] == "--version":
        sys.stdout.write(f"dglpipe {__version__}\n")
        return DONE
    return _run_command(arguments[0], arguments[1:])


def _leave_working_directory() -> None:
    """Undoes that `python -m dglpipe` puts the working directory first in `sys.path`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    safe = getattr(sys.flags, "safe_path", False)  # from Python 3.11
    by_module = spec is not None and spec.name == "dglpipe.__main__" and not safe
    here = os.getcwd()  # noqa: PTH109
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
    if by_module and sys.path[0] == here != package:
        del sys.path[0]


def _run_command(name: str, arguments: Sequence[str]) -> int:
    """Runs the command `name` and translates errors to messages and exit statuses."""
    from importlib import import_module

    from dglpipe.errors import DglpipeError, PreemptedError, UserError

    if name not in COMMANDS:
        sys.stderr.write(f"dglpipe: no command {name!r}{_did_you_mean(name)}\n{USAGE}")
        return WRONG
    try:
        _require_text(arguments)
        module = import_module(f"dglpipe.cli.{name}")
        command: Callable[[Sequence[str]], int] = getattr(module, name)
        return command(arguments)
    except UserError as error:
        sys.stderr.write(f"dglpipe: {error}\n")
        return WRONG
    except PreemptedError as error:
        sys.stderr.write(f"dglpipe: {error}\n")
        return PREEMPTED
    except DglpipeError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        sys.stderr.write(f"dglpipe: {name}: got a path that is too long: {error.filename!r}\n")
        return WRONG
    except KeyboardInterrupt as error:
        # A next Ctrl-C would interrupt the end of the program, with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write(f"dglpipe: interrupted {error}".rstrip() + "\n")
        return INTERRUPTED


def _require_text(arguments: Sequence[str]) -> None:
    """Raises UserError for a path or text that cannot be written to a file of the run."""
    from dglpipe.errors import UserError

    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            key = ascii(word.partition("=")[0])[1:-1]
            raise UserError(f"{key}: got {word!r}; allowed: text in UTF-8") from None


def _did_you_mean(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {near[0]}?" if near else ""
