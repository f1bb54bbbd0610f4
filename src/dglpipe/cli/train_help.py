"""The text of `dglpipe train --help`, made from the configuration files.

Hydra's own help takes over a second to compose, and drops the comments with the units.
"""

from __future__ import annotations

from collections.abc import Sequence

from dglpipe.cli.config_groups import choices, config_text, default_choices, groups

USAGE = """usage: dglpipe train [OVERRIDES] [FLAGS]

overrides:
  group=name             select a configuration of a group
  group.key=value        change a setting
  run_dir=PATH           where results are written; default: runs/<date>_<time>

flags:
  -m, --multirun         sweep: key=value1,value2 trains once with each value
  --config-dir PATH      search PATH for configurations too
  --config-name NAME     start from NAME.yaml instead of config.yaml
  --cfg job              print the configuration that the overrides give, without training
  --info                 print Hydra's information on the run
  --hydra-help           print Hydra's own flags
"""


def train_help(overrides: Sequence[str] = ()) -> str:
    """Usage, groups with their choices, and all settings with their default values.

    Args:
        overrides: `group=name` shows the settings of this choice instead of the default choice.
    """
    shown = default_choices()
    for group, _, choice in (word.partition("=") for word in overrides):
        if choice in choices(group):
            shown[group] = choice
    lines = [USAGE, "groups:"]
    lines += [f"  {group}: {', '.join(choices(group))}" for group in groups()]
    lines += ["", "settings and defaults:"]
    for group, choice in shown.items():
        text = config_text(f"{group}/{choice}.yaml")
        lines += [f"  {group}: # {group}={choice}", *(f"    {line}" for line in text.splitlines())]
    _, _, settings = config_text("config.yaml").partition("\n\n")
    lines += [f"  {line}" if line else "" for line in settings.splitlines()]
    return "\n".join(lines) + "\n"
