"""Renders the chart, and reads what came out. Programs are named by PIECEMEAL_HELM, PIECEMEAL_BINARY and PIECEMEAL_PROMTOOL."""

import functools
import json
import os
import pathlib
import subprocess
import tempfile
import tomllib

import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = CHART.parent.parent
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = [f"1.{minor}.0" for minor in range(30, 38)]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RenderError(Exception):
    """helm refused, and why."""


def tool(name):
    return os.environ[f"PIECEMEAL_{name.upper()}"]


@functools.cache
def render(*arguments, kubernetes="1.33.0", chart=CHART):
    """What `helm template` prints."""
    command = [tool("helm"), "template", "piecemeal", str(chart), "--namespace", "site", "--kube-version", kubernetes]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RenderError(result.stderr)
    return result.stdout


@functools.cache
def parse(text):
    return [document for document in yaml.load_all(text, LOADER) if document]


def with_file(path, **options):
    return parse(render("--values", str(path), **options))


def with_values(values, *arguments, **options):
    """Beside `p2p.registryInstances: docker.io`, which they may replace."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        least = CHART / "ci/docker-hub-values.yaml"
        return parse(render.__wrapped__("--values", str(least), "--values", file.name, *arguments, **options))


def with_set(*settings):
    """`--set` each; what is to be accelerated is docker.io unless they say otherwise."""
    arguments = [part for setting in ("p2p.registryInstances=docker.io", *settings) for part in ("--set", setting)]
    return parse(render(*arguments))


def key(document):
    return f"{document['kind']}/{document['metadata']['name']}"


def by_key(documents):
    return {key(document): document for document in documents}


def pod_spec(document):
    """The pod that an object makes, if it makes any."""
    if document["kind"] == "Pod":
        return document["spec"]
    return document.get("spec", {}).get("template", {}).get("spec")


def pods(documents):
    return [(document, pod_spec(document)) for document in documents if pod_spec(document)]


def containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"]]


def configurations(documents):
    """Name of the file and its table, of every daemon's ConfigMap."""
    for document in documents:
        if document["kind"] == "ConfigMap":
            for name, text in document.get("data", {}).items():
                if name.endswith(".toml"):
                    yield document, name, tomllib.loads(text)
