#!/usr/bin/env python3
"""The parts that the program is linked from, as CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/), from what Cargo has resolved."""
import json, pathlib, subprocess

root = pathlib.Path(__file__).resolve().parents[2]
host = next(l.split()[1] for l in subprocess.check_output(["rustc", "-vV"], text=True).splitlines() if l.startswith("host:"))
command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", host]
metadata = json.loads(subprocess.check_output(command, cwd=root))
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
top = metadata["resolve"]["root"]


def linked(node):
    """Without what only builds or tests."""
    return [d["pkg"] for d in node["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"])]


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


checksums, name = {}, None
for line in (root / "Cargo.lock").read_text().splitlines():
    key, _, value = line.partition(" = ")
    value = value.strip('"')
    if key == "name":
        name = value
    elif key == "version":
        version = value
    elif key == "checksum":
        checksums[name, version] = value

found, waiting = set(), [top]
while waiting:
    at = waiting.pop()
    if at not in found:
        found.add(at)
        waiting += linked(nodes[at])


def component(package):
    one = {"type": "library", "bom-ref": purl(package), "name": package["name"], "version": package["version"], "purl": purl(package)}
    if package.get("license"):
        one["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if (package["name"], package["version"]) in checksums:
        one["hashes"] = [{"alg": "SHA-256", "content": checksums[package["name"], package["version"]]}]
    return one


rest = sorted((packages[at] for at in found - {top}), key=lambda p: (p["name"], p["version"]))
print(json.dumps({
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": {**component(packages[top]), "type": "application"}},
    "components": [component(package) for package in rest],
    "dependencies": [
        {"ref": purl(packages[at]), "dependsOn": sorted(purl(packages[d]) for d in linked(nodes[at]))} for at in sorted(found)
    ],
}, indent=1))
