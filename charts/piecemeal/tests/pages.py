"""What docs/kubernetes/values.md and the pages beside it say of values, out of values.yaml and its schema.

A page says which values it is about: `<!-- values: p2p.port -->`. What follows that line, down to `<!-- end of values -->`, is written
here, and the rest by hand. `pages.py` writes, `pages.py --check` compares.
"""

import json
import re
import sys

from chart import CHART, REPOSITORY
from readme import rows

INDEX = REPOSITORY / "docs/kubernetes/values.md"
BLOCK = re.compile(r"<!-- values: (?P<about>[^>]+) -->\n.*?<!-- end of values -->", re.DOTALL)
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
WORDS = {"object": "map", "array": "list", "string": "text"}


def escape(text):
    return text.replace("|", "\\|")


def kind(schema):
    """What may be written, in a word or by its choices."""
    if name := schema.get("$ref"):
        return {"pathOrEmpty": "path", "labels": "map", "someDuration": "duration", "resources": "map"}.get(name.rsplit("/", 1)[1], name.rsplit("/", 1)[1])
    if choices := schema.get("enum"):
        texts = dict.fromkeys(str(choice).lower() if isinstance(choice, bool) else choice for choice in choices)
        return ", ".join(f"`{text}`" if text else "empty" for text in texts)
    if either := schema.get("anyOf"):
        return " or ".join(kind(one) for one in either)
    return WORDS.get(schema["type"], schema["type"])


def schema_of(path):
    schema = SCHEMA
    for step in path.split("."):
        schema = schema["properties"][step]
    return schema


def said():
    """Each value's type, default and description, by its path."""
    found = rows((CHART / "values.yaml").read_text())
    return {path: (kind(schema_of(path)), default, description) for path, default, description in found}


def table(values, names, links):
    lines = ["| value | type | default | |", "|---|---|---|---|"]
    for name in names:
        what, default, description = values[name]
        link = f"[`{name}`]({links[name]})" if name in links else f"`{name}`"
        lines.append(f"| {link} | {what} | `{escape(default)}` | {escape(description)} |")
    return "\n".join(lines)


def subjects(page):
    block = BLOCK.search(page.read_text())
    if not block:
        sys.exit(f"{page} does not say which values it is about; put <!-- values: NAME … --> and <!-- end of values --> into it")
    return block["about"].split()


def linked(pages, values):
    """The page of each value that has one."""
    links = {}
    for page in pages:
        for name in subjects(page):
            if name not in values:
                sys.exit(f"{page} is about {name}, which values.yaml does not have")
            if links.setdefault(name, f"values/{page.name}") != f"values/{page.name}":
                sys.exit(f"{page} is about {name}, and so is {links[name]}")
    return links


def main():
    values = said()
    pages = sorted((INDEX.parent / "values").glob("*.md"))
    links = linked(pages, values)
    for page in [INDEX, *pages]:
        names, to = (list(values), links) if page == INDEX else (subjects(page), {})
        text = page.read_text()
        about = BLOCK.search(text)["about"]
        block = f"<!-- values: {about} -->\n\n{table(values, names, to)}\n\n<!-- end of values -->"
        wanted = BLOCK.sub(lambda _: block, text, count=1)
        if "--check" not in sys.argv:
            page.write_text(wanted)
        elif text != wanted:
            sys.exit(f"{page.relative_to(REPOSITORY)} is not what values.yaml says; run cargo xtask chart docs")


if __name__ == "__main__":
    main()
