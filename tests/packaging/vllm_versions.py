"""Asks the wheel of every minor version of vLLM on the package index whether it has what the engine uses.

    python tests/packaging/vllm_versions.py --from 0.26      # about 400 MB for each version, one at a time

The answers go to vllm_versions.json beside this file: version -> what is missing. Of each minor version the newest
release is taken; only its *.py are unzipped, and nothing of it is imported.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from vllm_api import Sources

RESULTS = Path(__file__).with_name("vllm_versions.json")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def releases(first: tuple[int, int]) -> list[str]:
    """The newest release of each minor version from `first` on, oldest first."""
    said = subprocess.run([*PIP, "index", "versions", "vllm"], capture_output=True, text=True, check=True).stdout
    listed = re.split(r"[,\s]+", said.partition("versions:")[2].partition("\n")[0])
    found = [tuple(map(int, one.split("."))) for one in listed if re.fullmatch(r"\d+\.\d+\.\d+", one)]
    newest = {one[:2]: one for one in sorted(found)}
    return [".".join(map(str, one)) for minor, one in sorted(newest.items()) if minor >= first]


def missing(release: str) -> list[str]:
    """What that release lacks."""
    with tempfile.TemporaryDirectory(prefix="vllm-") as name:
        folder = Path(name)
        options = ["--no-deps", "--only-binary", ":all:", "--dest", name, "--quiet", f"vllm=={release}"]
        subprocess.run([*PIP, "download", *options], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [one for one in archive.namelist() if one.endswith(".py")])
        wheel.unlink()
        return Sources(folder).missing()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="first", default="0.26", help="the first minor version")
    first = tuple(map(int, parser.parse_args().first.split(".")))
    results = {}
    for release in releases((first[0], first[1])):
        results[release] = missing(release)
        print(f"vLLM {release}: {'; '.join(results[release]) or 'has all that is used'}", flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
