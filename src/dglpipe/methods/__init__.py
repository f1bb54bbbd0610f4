"""Methods of learning: one file or folder per method, and the base class of new methods.

Imports every package except `runtime` and `cli`. Begin with `base` (Method, Runner, RunContext),
then `dgl` (the default method) and `chain_runner`. `run_plan` defines the plan of a run; `registry`
finds a method by name. A method from outside the package derives from `Dgl` or `Method`.
"""

from dglpipe.methods.base import Emission, Method, RunContext, Runner
from dglpipe.methods.dgl import Dgl
from dglpipe.methods.registry import build_method
from dglpipe.methods.run_plan import RunPlan

__all__ = ["Dgl", "Emission", "Method", "RunContext", "RunPlan", "Runner", "build_method"]
