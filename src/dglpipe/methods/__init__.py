"""Methods of learning, one file or folder each, and what all methods share.

Imports every package except `runtime` and `cli`. To add a method, begin with `base` (the classes
Method, Runner and RunContext) and `dgl` (the default method); then enter it in `registry`, or load
it from outside with `method=custom`. `chain_runner` has the steps that methods share; `run_plan`
has the data class of a plan, which `runtime.plan` fills.
"""

from dglpipe.methods.base import Method, RunContext
from dglpipe.methods.dgl import Dgl
from dglpipe.methods.emission import Emission
from dglpipe.methods.registry import build_method, build_run_method
from dglpipe.methods.run_plan import RunPlan
from dglpipe.methods.runner import Runner

__all__ = [
    "Dgl",
    "Emission",
    "Method",
    "RunContext",
    "RunPlan",
    "Runner",
    "build_method",
    "build_run_method",
]
