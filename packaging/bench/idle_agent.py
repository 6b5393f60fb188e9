"""How much memory an idle agent holds, over a bare Python process that imports what it must.

Both are processes of their own on one machine, measured the same way: proportional set size, so that pages shared with
other processes count in part. The agent is the real one, enrolled in a folder of its own, with a coordinator that it
cannot reach: it polls and backs off, which is all that an idle agent does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL = 1.3
SETTLE_SECONDS = 8.0
AGENT = "from site_agent.cli import main; main()"
BARE = """
import cryptography.hazmat.primitives.asymmetric.ed25519, cryptography.x509, httpx, pydantic, sqlmodel, structlog
import sys, time
print("ready", flush=True)
time.sleep(600)
"""
HOME = """
import sys
from pathlib import Path
from protocol.note import KeyType, VerifierKey
from protocol.signing import SigningKey
from site_agent.database import create_database
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteDocument, SiteHome
from site_agent.certificates import request_certificate
home = SiteHome(Path(sys.argv[1]))
for folder in (home.path, home.keys, home.snapshots, home.mirror):
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
log = VerifierKey("log.example", KeyType.ED25519, SigningKey.generate().public.raw)
document = SiteDocument(
    site="idle", address="127.0.0.1:9", log=log.text, coordinator=SigningKey.generate().public.text, poll_seconds=0.5
)
home.settings.write_text(document.to_toml())
keys = SiteKeys.generate(home.keys)
create_database(home.database).dispose()
"""


def memory(pid: int) -> int:
    """Proportional set size in bytes of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the proportional set size")


def measure() -> dict[str, object]:
    """{"name", "ratio", "of", "goal", "holds", "bytes"}: the agent's memory over the bare process'."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "site"
        subprocess.run([sys.executable, "-c", HOME, str(home)], check=True)
        _certificates(home / "keys")
        bare = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE)
        agent = subprocess.Popen([sys.executable, "-c", AGENT, "agent", "--home", str(home)], stderr=subprocess.PIPE)
        try:
            assert bare.stdout is not None
            bare.stdout.readline()
            assert agent.stderr is not None
            started = json.loads(agent.stderr.readline())
            if started.get("event") != "agent-started":
                raise RuntimeError(f"the agent did not start: {started}")
            time.sleep(SETTLE_SECONDS)
            if agent.poll() is not None:
                raise RuntimeError("the agent ended")
            held, needed = memory(agent.pid), memory(bare.pid)
        finally:
            for process in (agent, bare):
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
    ratio = held / needed
    return {
        "name": "idle agent memory",
        "ratio": round(ratio, 3),
        "of": "a bare Python process that imports httpx, cryptography, sqlmodel, pydantic and structlog",
        "goal": GOAL,
        "holds": ratio <= GOAL,
        "bytes": {"agent": held, "bare": needed},
    }


def rows() -> list[dict[str, object]]:
    """The rows of this measurement for results.json."""
    return [measure()]


def _certificates(folder: Path) -> None:
    """A CA and a client certificate of its own, so that the agent builds its TLS as it would."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import NameOID

    key = serialization.load_pem_private_key((folder / "identity.pem").read_bytes(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idle")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)  # type: ignore[arg-type]
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    for file in ("ca.pem", "site.crt"):
        (folder / file).write_bytes(pem)
        os.chmod(folder / file, 0o600)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
