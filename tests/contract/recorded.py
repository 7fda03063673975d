"""What was recorded in this folder, and what is held against it (`test_contract`)."""

import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
WRITING = os.environ.get("MULTISPIN_WRITE_CONTRACT") == "1"


def check(name, found, compare):
    """Compare `found` with the recorded document of this name, by `compare(recorded, found)`."""
    path = HERE / f"{name}.json"
    if WRITING:
        path.write_text(one_line_per_entry(found), encoding="utf-8")
    compare(json.loads(path.read_text(encoding="utf-8")), found)


def one_line_per_entry(document):
    rows = (f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


DATA = {"tokens", "drafted", "seconds_per_token"}
"""Keys in a demo's round log whose objects have devices' names as keys."""


def paths(value, at=""):
    """All paths of keys in a document, such as `devices[].name`; keys that are data are written `*`."""
    if isinstance(value, dict):
        data = at.startswith("round_log") and at.rpartition(".")[2] in DATA
        inner = {path for key, each in value.items() for path in paths(each, f"{at}.{'*' if data else key}".strip("."))}
        return inner | ({at} if at else set())
    if isinstance(value, list):
        return {at} | {path for each in value for path in paths(each, f"{at}[]")}
    return {at}


def check_keys(name, document):
    def kept(recorded, found):
        missing = {kind: sorted(set(keys) - set(found.get(kind, ()))) for kind, keys in recorded.items()}
        assert {kind: keys for kind, keys in missing.items() if keys} == {}

    check(name, document, kept)


def keys_of(*documents):
    return sorted({path for document in documents for path in paths(document)})
