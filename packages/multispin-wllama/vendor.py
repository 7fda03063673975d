"""Fetch the files of @wllama/wllama from npm, checked, into this package: `python vendor.py`. A build does the same."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, where nothing is built
    BuildHookInterface = object  # type: ignore[assignment, misc]

PACKAGE = "@wllama/wllama@2.4.0"
SHA256 = "0b4f91b2105e4ee36eb53e0647328a98575f7c87ccdc1317bebb4c13e6db7544"
HERE = Path(__file__).resolve().parent
IMPATIENT = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
"""A registry that is out of reach is told within seconds; npm's own patience is minutes."""
FILES = {
    "package/esm/index.min.js": "wllama.js",
    "package/esm/single-thread/wllama.wasm": "single-thread.wasm",
    "package/esm/multi-thread/wllama.wasm": "multi-thread.wasm",
    "package/LICENCE": "LICENCE",
}
"""Paths in npm's package, and names here."""


def vendor(folder: Path = HERE / "src" / "multispin_wllama") -> None:
    """Put the files into a folder, unless they are all there."""
    if all((folder / name).is_file() for name in FILES.values()):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed to fetch @wllama/wllama: install Node.js, or use a wheel that is built already")
    with tempfile.TemporaryDirectory() as scratch:
        ran = subprocess.run(
            [npm, "pack", *IMPATIENT, PACKAGE], cwd=scratch, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            reasons = [line for line in ran.stderr.splitlines() if line.startswith(("npm error", "npm ERR"))]
            raise SystemExit(f"npm cannot fetch {PACKAGE}: {reasons[0] if reasons else ran.stderr.strip()}")
        (archive,) = Path(scratch).glob("*.tgz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(
                f"npm's {PACKAGE} has the SHA-256 {found}, not {SHA256}: it is not the package that was tested"
            )
        with tarfile.open(archive) as files:
            for path, name in FILES.items():
                member = files.extractfile(path)
                assert member is not None
                (folder / name).write_bytes(member.read())


class Hook(BuildHookInterface):
    """Fetches the files before the wheel is packed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling."""
        vendor()


if __name__ == "__main__":
    vendor()
    sys.stdout.write(f"{PACKAGE} is in {HERE / 'src' / 'multispin_wllama'}\n")
