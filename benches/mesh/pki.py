"""The certificates of a run: a CA and three SVIDs, from `phiward identity`."""

import subprocess

IDENTITIES = {"web": "ns/clinic/sa/web", "records": "ns/clinic/sa/records", "collector": "ns/audit/sa/collector"}


def make(binary, state):
    """Makes them in a folder of their own below `state`, and returns it."""
    folder = state / "pki"
    folder.mkdir()
    identity(binary, "ca", "--trust-domain", "hospital.local", "--dir", folder)
    for name, path in IDENTITIES.items():
        identity(binary, "issue", "--ca", folder, "--id", f"spiffe://hospital.local/{path}", "--dir", folder / name)
    return folder


def identity(binary, *args):
    subprocess.run([str(part) for part in (binary, "identity", *args)], check=True, stdout=subprocess.DEVNULL)
