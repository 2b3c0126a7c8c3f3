"""The table of values in README.md, out of the comments of values.yaml that begin with `# -- `.

`readme.py` writes it, `readme.py --check` compares.
"""

import json
import re
import sys

import yaml

from chart import CHART

README = CHART / "README.md"
BEGIN, END = "<!-- values: `cargo xtask chart docs` writes what follows -->", "<!-- end of values -->"


def rows(text):
    """Path, default and description of each value that is described."""
    values = yaml.safe_load(text)
    path, said = [], []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if said_here := re.match(r" *# -- (.*)", line):
            said.append(said_here[1])
        elif found := re.match(r" *([\w]+):", line):
            path = [*path[: indent // 2], found[1]]
            value = values
            for step in path:
                value = value[step]
            if said:
                yield ".".join(path), json.dumps(value, ensure_ascii=False), " ".join(said)
            elif not isinstance(value, dict):
                sys.exit(f"values.yaml: {'.'.join(path)} has no description; put `# -- …` above it")
            said = []


def table():
    lines = ["| value | default | |", "|---|---|---|"]
    for path, default, said in rows((CHART / "values.yaml").read_text()):
        said, default = said.replace("|", "\\|"), default.replace("|", "\\|")
        lines.append(f"| `{path}` | `{default}` | {said} |")
    return "\n".join(lines)


def main():
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if "--check" not in sys.argv:
        README.write_text(wanted)
    elif text != wanted:
        sys.exit("charts/piecemeal/README.md: the table of values is not that of values.yaml; run cargo xtask chart docs")


if __name__ == "__main__":
    main()
