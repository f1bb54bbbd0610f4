"""`dglpipe COMMAND ...`: which command it is, and what its end means to the shell."""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence

import dglpipe
from dglpipe.errors import DglpipeError, UserError

USAGE = """usage: dglpipe COMMAND ...

commands:
  train [OVERRIDES]      train; `dglpipe train --help` lists the settings
  train -m [OVERRIDES]   a sweep: key=value1,value2 makes a run of each
  plan [OVERRIDES]       the cut and what each stage takes, without training
  evaluate run=RUN_DIR   accuracy of every exit of a finished run
  export run=RUN_DIR output=FILE.safetensors [exits=true]
                         the trained network under its own state_dict keys
  models                 networks, heads, data sets and the other choices
  --version              the version
"""

GARBAGE_THRESHOLD = 2_000_000
"""Objects, more of them made than freed, after which cycles are looked for."""
COMMANDS = ("train", "plan", "evaluate", "export", "models")
LOOKING = ("plan", "models")
"""Those whose process has nothing to do at its end."""
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    # Libraries make a million objects that stay: looking through them again and again for
    # cycles is a seventh of the time that a command takes to start.
    gc.set_threshold(GARBAGE_THRESHOLD)
    words = sys.argv[1:] if arguments is None else arguments
    status = run(words)
    if arguments is None and words and words[0] in LOOKING:
        # Taking the libraries apart is half a second that nobody has use for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    gc.freeze()  # nor at the end: the process takes them along
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status."""
    # Plug-ins of the folder where the user stands can be imported, as with `python -m`.
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.append(os.getcwd())  # noqa: PTH109
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(USAGE)
        return DONE if arguments else WRONG
    if arguments[0] == "--version":
        sys.stdout.write(f"dglpipe {dglpipe.__version__}\n")
        return DONE
    return _status(_command, arguments)


def _command(arguments: Sequence[str]) -> int:
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"dglpipe: no command {name!r}{hint}\n{USAGE}")
        return WRONG
    # Loading them all takes a second.
    module = importlib.import_module(f"dglpipe.cli.{name}")
    command: Callable[[Sequence[str]], int] = getattr(module, name)
    return command(arguments[1:])


def _status(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return command(arguments)
    except UserError as error:
        sys.stderr.write(f"dglpipe: {error}\n")
        return WRONG
    except DglpipeError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except KeyboardInterrupt as error:
        sys.stderr.write(f"dglpipe: interrupted {error}\n")
        return INTERRUPTED
