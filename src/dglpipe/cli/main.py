"""`dglpipe COMMAND ...`: which command it is, and what its end means to the shell."""

from __future__ import annotations

import difflib
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

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


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
    commands = _commands()
    if arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"dglpipe: no command {arguments[0]!r}{hint}\n{USAGE}")
        return WRONG
    return commands[arguments[0]](arguments[1:])


def _commands() -> dict[str, Callable[[Sequence[str]], int]]:
    from dglpipe.cli.evaluate import evaluate
    from dglpipe.cli.export import export
    from dglpipe.cli.models import models
    from dglpipe.cli.plan import plan
    from dglpipe.cli.train import train

    return {"train": train, "plan": plan, "evaluate": evaluate, "export": export, "models": models}


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
