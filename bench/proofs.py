"""What proof of possession and revocation cost: CPU a request of a real gateway, by its own clock.

Run: .venv/bin/python bench/proofs.py [REQUESTS]. One keep-alive client asks one `serve` process on memory: with a plain
bearer token, with the same under a list of 10,000 revocations, and with a DPoP proof (ES256) of its own for each
request. Bar: 1,000 proofs a second on one core. Prints the figures, and exits with 1 where it is missed.
"""

import http.client
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from mitmgate.core.revocation import Revocation, written
from tests.keys.proving import Holder
from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_upstream import PATIENCE, RecordingUpstream

BAR: Final = 1000.0
LISTED: Final = 10_000


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has used (proc(5): utime and stime, of all its threads)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(gateway: Gateway, heads: list[dict[str, str]]) -> float:
    """Return the seconds of CPU that one of these requests costs the gateway."""
    link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    before = cpu_of(gateway.process.pid)
    for head in heads:
        link.request("GET", "/plain", headers={"Host": "gateway.test", **head})
        answer = link.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {body!r}")
    link.close()
    return (cpu_of(gateway.process.pid) - before) / len(heads)


def main(count: int) -> int:
    """Measure in turns, and say whether the bar is met."""
    holder, figures = Holder(), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as name, RecordingUpstream() as upstream:
        directory = Path(name)
        made = policy(directory, upstream, audit={"sinks": []})
        made["routes"].append({"name": "plain", "match": {"prefix": "/plain"}, "upstream": "users"})
        made["revocation"] = {"file": "revoked.jsonl"}
        listed = [written(Revocation("jti", "dev", f"id-{n}", time.time() + 3600)) for n in range(LISTED)]
        plain, bound = mint("alice"), mint("alice", cnf=holder.cnf)
        with Gateway(write_policy(directory, made)) as gateway:
            cost(gateway, [{"Authorization": f"Bearer {plain}"}] * 500)  # warm
            for turn in range(4):
                if turn == 2:
                    (directory / "revoked.jsonl").write_bytes(b"".join([line + b"\n" for line in listed]))
                    time.sleep(2)  # it is read, and the generation of that is over
                kind = "bearer" if turn < 2 else f"bearer, {LISTED:,} revocations"
                figures.setdefault(kind, []).append(cost(gateway, [{"Authorization": f"Bearer {plain}"}] * count))
                proofs = [holder.prove(bound, "http://gateway.test/plain") for _ in range(count)]
                heads = [{"Authorization": f"DPoP {bound}", "DPoP": proof} for proof in proofs]
                figures.setdefault("DPoP", []).append(cost(gateway, heads))
    for kind, seconds in figures.items():
        best = min(seconds)
        print(f"{kind}: {best * 1e6:.0f} µs of CPU a request, {1 / best:,.0f} a second on one core")
    return 0 if 1 / min(figures["DPoP"]) >= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
