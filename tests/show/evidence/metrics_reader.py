"""A strict reader of /balancer-metrics, derived from the example in docs/operations.md.

Every field of the example must be present with the same type. Optional fields may be absent, but
not null. No other fields are allowed than those listed here.
"""

import datetime
import json
import re
import urllib.request

from evidence import programs
from evidence.checks import check

OPTIONAL = {"reported", "reportAgeMs", "agentsConnections", "podName", "podIP", "nodeName"}
FURTHER = {
    "answer": {"lookups": list, "reload": dict},
    "reload": {"at": str, "result": str, "problems": list},
    "lookup": {"source": str, "service": str, "known": int, "error": str, "failingForMs": int},
    "service": {
        "requests": int,
        "reason": str,
        "weight": float,
        "maxConnections": int,
        "ejectedForMs": int,
    },
    "pod": {"error": str},
}
STATES = {"up", "cold", "stale", "unknown", "draining", "full", "ejected"}


def example():
    """Returns the example."""
    blocks = re.findall(
        r"```json\n(.*?)\n```", (programs.ROOT / "docs" / "operations.md").read_text(), re.S
    )
    return json.loads(next(block for block in blocks if "podMetrics" in block))


class InvalidMetrics(Exception):
    """The JSON violates the format."""


def typed(value, kind, where):
    """Checks a type strictly: a bool is no int, a float is no int, but an int may stand for a
    float.
    """
    right = isinstance(value, (int, float)) if kind is float else type(value) is kind
    if not right or isinstance(value, bool):
        raise InvalidMetrics(f"{where} is {value!r}, not of type {kind.__name__}")
    if kind in (int, float) and value < 0:
        raise InvalidMetrics(f"{where} is {value}")


def read_object(value, example, further, where, optional=frozenset()):
    if not isinstance(value, dict):
        raise InvalidMetrics(f"{where} is {value!r}, not an object")
    kinds = {**{key: type(one) for key, one in example.items()}, **further}
    for key in example:
        if key not in value and key not in optional:
            raise InvalidMetrics(f"{where} has no {key}")
    for key, one in value.items():
        if key not in kinds:
            raise InvalidMetrics(f"{where} has the unknown field {key}")
        typed(one, kinds[key], f"{where}.{key}")


def reject_duplicates(pairs):
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise InvalidMetrics(f"duplicate keys in {keys}")
    return dict(pairs)


def reject_constant(constant):
    raise InvalidMetrics(f"{constant} is not JSON")


def read(text):
    """Parses and checks the metrics. Raises `Wrong` if the format is violated."""
    form = example()
    whole = json.loads(text, object_pairs_hook=reject_duplicates, parse_constant=reject_constant)
    read_object(whole, form, FURTHER["answer"], "the answer")
    if "reload" in whole:
        read_object(whole["reload"], {}, FURTHER["reload"], "reload")
    for number, lookup in enumerate(whole.get("lookups", [])):
        where = f"lookups[{number}]"
        read_object(lookup, {}, FURTHER["lookup"], where)
        if "known" not in lookup or ("error" in lookup) != ("failingForMs" in lookup):
            raise InvalidMetrics(f"{where} is {lookup}")
    datetime.datetime.strptime(whole["timestamp"], "%Y-%m-%dT%H:%M:%SZ")
    (pod_example,) = next(iter(form["podMetrics"].values()))
    for number, service in enumerate(whole["services"]):
        where = f"services[{number}]"
        read_object(service, form["services"][0], FURTHER["service"], where, OPTIONAL)
        if service["state"] not in STATES:
            raise InvalidMetrics(f"{where}.state is {service['state']}")
    if set(whole["podMetrics"]) != {service["url"] for service in whole["services"]}:
        raise InvalidMetrics("podMetrics and services have different pods")
    for url, pods in whole["podMetrics"].items():
        if not isinstance(pods, list) or not pods:
            raise InvalidMetrics(f"podMetrics[{url}] is {pods!r}")
        for number, pod in enumerate(pods):
            read_object(pod, pod_example, FURTHER["pod"], f"podMetrics[{url}][{number}]", OPTIONAL)
    total = sum(service["connections"] for service in whole["services"])
    if not whole["totalConnections"] == whole["agentsConnections"] == total:
        raise InvalidMetrics(
            f"totals {whole['totalConnections']}, {whole['agentsConnections']}, the sum is {total}"
        )
    return whole


def fetch(balancer):
    with urllib.request.urlopen(
        f"http://{balancer.admin}/balancer-metrics?format=json", timeout=10
    ) as answer:
        return answer.read().decode()


def check_valid(balancer, what):
    """Checks that the current metrics follow the format."""
    now = fetch(balancer)
    try:
        read(now)
        check(True, f"{what}: the JSON follows the documented format")
    except (InvalidMetrics, ValueError) as error:
        check(False, f"{what}: the JSON violates the documented format: {error}\n{now[:2000]}")


def invalid_variants(text):
    """Yields variants of a valid answer, each with one error."""

    def changed(change):
        whole = json.loads(text)
        change(whole)
        return json.dumps(whole)

    first = next(iter(json.loads(text)["podMetrics"]))
    yield "a count as text", changed(lambda whole: whole["services"][0].update(connections="1"))
    yield "a count as true", changed(lambda whole: whole["services"][0].update(connections=True))
    yield "a negative count", changed(lambda whole: whole["services"][0].update(own=-1))
    yield "a count of 1.0", changed(lambda whole: whole.update(totalConnections=1.0))
    yield (
        "an optional field as null",
        changed(lambda whole: whole["services"][0].update(reported=None)),
    )
    yield "no url", changed(lambda whole: whole["services"][0].pop("url"))
    yield "a pod as an object", changed(lambda whole: whole["podMetrics"].update({first: {}}))
    yield (
        "a field in snake case",
        changed(lambda whole: whole["services"][0].update(report_age_ms=1)),
    )
    yield (
        "a wrong total",
        changed(lambda whole: whole.update(totalConnections=whole["totalConnections"] + 1)),
    )
    yield "another timestamp", changed(lambda whole: whole.update(timestamp="2026-11-20 20:02:59"))
    yield "an unknown state", changed(lambda whole: whole["services"][0].update(state="UP"))
