"""How stages learn: one file or folder for each method, and the point where a new one plugs in.

May import: every package but `runtime` and `cli`. Begin with `base` (Method, Runner, RunContext),
then `dgl` (the default method) on `chain_runner`; `run_plan` is the plan of a run as a value;
`registry` finds a method by name. A method from outside derives from `Dgl` or `Method`.
"""

from dglpipe.methods.base import Emission, Method, RunContext, Runner
from dglpipe.methods.dgl import Dgl
from dglpipe.methods.registry import build_method
from dglpipe.methods.run_plan import RunPlan

__all__ = ["Dgl", "Emission", "Method", "RunContext", "RunPlan", "Runner", "build_method"]
