"""A checkout of a few lines."""

from __future__ import annotations

from pathlib import Path

SETUP = """[options]
package_dir =
    = src
    dglpipe.conf = conf

[options.entry_points]
console_scripts =
    dglpipe = dglpipe.cli.main:main
"""
ORDER = """def order():
    from dglpipe.message import _pack

    return _first() + _first()


class Order:
    def _first(self):
        return map(self._next, [])

    def _next(self):
        return self.__len__()

    def __len__(self):
        return 0
"""
FILES = {
    "setup.cfg": SETUP,
    "README.md": "# Title\n\nTwo words\n",
    "conf/__init__.py": "",
    "conf/config.yaml": "epochs: 1\n",
    "src/dglpipe/__init__.py": "",
    "src/dglpipe/__main__.py": "from dglpipe.cli.main import main\n\nmain()\n",
    "src/dglpipe/link.py": "from dglpipe import message\nfrom dglpipe.data.order import order\n",
    "src/dglpipe/message.py": "def _pack():\n    pass\n\n\n_pack()\n",
    "src/dglpipe/data/__init__.py": "from .order import order\n",
    "src/dglpipe/data/order.py": ORDER,
    "src/dglpipe/cli/__init__.py": "",
    "src/dglpipe/cli/main.py": (
        "import os\nimport sys\n\n\ndef main():\n    print(sys.argv[1:], os.environ['NAME'])\n"
    ),
    "tests/test_one.py": "one = 1\ntwo = 2\n",
    "benchmarks/results/one.json": "{\n}\n",
    "benchmarks/results/lines.jsonl": "{}\n",
    "runs/one/summary.json": "{\n}\n",
    ".cache/one.json": "{}\n",
}


def write_checkout(root: Path) -> Path:
    """Write the files of the checkout; return its folder."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
