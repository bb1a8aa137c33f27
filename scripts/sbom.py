#!/usr/bin/env python3
"""Lists what an image is made of, as CycloneDX 1.6, and collects the licences of it.

    python3 scripts/sbom.py --into FOLDER --venv VENV --manifest models/manifest.yaml
                            [--record image.json] [--root /] [--version 0.1.0]

It writes FOLDER/sbom.cdx.json and, as links to where they lie, FOLDER/licenses/NAME/. It lists
Reef, the Python packages of VENV, Debian's packages, libedgetpu and the models. It is run when the
image is built, needs nothing but PyYAML, and gives the same bytes for the same image.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

Component = dict[str, Any]

LICENCE_FILES = ("licen", "copying", "notice", "authors")
LARGEST_LICENCE = 2 * 1024 * 1024


def main(arguments: list[str] | None = None) -> int:
    """See above; returns the exit status."""
    parser = argparse.ArgumentParser(description="Lists what an image is made of, as CycloneDX.")
    parser.add_argument("--into", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--venv", type=Path, required=True, help="the Python packages' folder")
    parser.add_argument("--manifest", type=Path, required=True, help="the models' manifest")
    parser.add_argument("--record", type=Path, help="image.json, which tells what was downloaded")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where Debian lies")
    parser.add_argument("--version", default="0", help="of Reef")
    options = parser.parse_args(arguments)
    licences = options.into / "licenses"
    components = [
        *python_packages(options.venv, licences),
        *debian_packages(options.root, licences),
        *models(options.manifest),
        *downloads(options.record),
    ]
    components.sort(key=lambda each: (each["type"], each["name"], each["version"]))
    options.into.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(options.version, components), indent=1) + "\n"
    (options.into / "sbom.cdx.json").write_text(text)
    print(f"sbom: {len(components)} components")  # noqa: T201
    return 0


def document(version: str, components: list[Component]) -> Component:
    """The bill of materials. It has no time in it: the same image, the same bytes."""
    reef = {
        "type": "application",
        "bom-ref": f"reef@{version}",
        "name": "reef",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": reef},
        "components": components,
        "dependencies": [
            {"ref": reef["bom-ref"], "dependsOn": [each["bom-ref"] for each in components]}
        ],
    }


def python_packages(venv: Path, licences: Path) -> Iterator[Component]:
    """Every package that pip installed there."""
    for folder in sorted(venv.glob("lib/python3*/site-packages")):
        for package in distributions(path=[str(folder)]):
            name = str(package.metadata["Name"]).lower().replace("_", "-")
            _collect(_licence_files(package), licences / f"python-{name}")
            component = _component("library", name, package.version, f"pkg:pypi/{name}")
            if licence := _licence_of(package):
                component["licenses"] = [{"license": {"name": licence}}]
            yield component


def _licence_of(package: Distribution) -> str:
    told = package.metadata
    if "License-Expression" in told:
        return str(told["License-Expression"])
    classified = [
        str(line).rpartition(" :: ")[2]
        for line in told.get_all("Classifier") or ()
        if str(line).startswith("License ::")
    ]
    said = told.get_all("License") or [""]
    first = str(said[0]).strip().partition("\n")[0]
    return ", ".join(classified) or first[:80]


def _licence_files(package: Distribution) -> Iterator[Path]:
    for file in package.files or ():
        inside = ".dist-info/" in str(file)
        if inside and (
            "licenses/" in str(file).lower() or file.name.lower().startswith(LICENCE_FILES)
        ):
            yield Path(str(file.locate()))


def debian_packages(root: Path, licences: Path) -> Iterator[Component]:
    """Every package that dpkg knows."""
    for entry in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0] != " "
        )
        if "installed" not in fields.get("Status", "").split()[-1:]:
            continue
        name = fields["Package"]
        _collect([root / f"usr/share/doc/{name}/copyright"], licences / f"debian-{name}")
        yield _component(
            "library",
            name,
            fields["Version"],
            f"pkg:deb/debian/{quote(name)}",
            f"?arch={fields['Architecture']}",
        )


def models(manifest: Path) -> Iterator[Component]:
    """The models that lie beside the manifest."""
    for name, model in yaml.safe_load(manifest.read_bytes())["models"].items():
        for kind, file in model["files"].items():
            path = manifest.parent / file["path"]
            if not path.exists():
                continue
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            component = _component(
                "machine-learning-model", f"{name} ({kind})", found[:12], f"pkg:generic/{path.name}"
            )
            component["hashes"] = [{"alg": "SHA-256", "content": found}]
            component["licenses"] = [{"license": {"id": model["licence"]}}]
            yield component


def downloads(record: Path | None) -> Iterator[Component]:
    """What the build downloaded for the Edge TPU, as image.json tells it."""
    if record is None or not record.exists():
        return
    for each in json.loads(record.read_bytes())["edgetpu"]:
        name, _, version = str(each).partition(" ")
        yield _component("library", name, version or "0", f"pkg:generic/{quote(name)}")


def _component(kind: str, name: str, version: str, purl: str, qualifiers: str = "") -> Component:
    full = f"{purl}@{quote(version)}{qualifiers}"
    return {"type": kind, "bom-ref": full, "name": name, "version": version, "purl": full}


def _collect(files: Iterator[Path] | list[Path], into: Path) -> None:
    for file in files:
        if file.is_file() and file.stat().st_size <= LARGEST_LICENCE:
            into.mkdir(parents=True, exist_ok=True)
            link = into / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())


if __name__ == "__main__":
    sys.exit(main())
