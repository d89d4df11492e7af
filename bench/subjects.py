"""What is measured: this gateway, its host without the chain, bare stock mitmdump; each as the words that start it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import policy
from bench.policy import Parts

HERE = Path(__file__).parent
MITMDUMP = "from mitmproxy.tools.main import mitmdump; mitmdump()"
FULL = Parts()
READY = "mitmgate is listening on"
"""What serve says once all of its workers accept connections."""
type Command = Callable[[Path, int], list[str]]
"""Makes a program's words from a directory of its own and the port that it shall listen on."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that stands before an upstream. command: takes the upstream's port and the limit a minute.

    judged: whether it decides anything, so that it has to pass the conformance check. lacks: what it does not do.
    """

    name: str
    what: str
    command: Callable[[int, int], Command]
    judged: bool = True
    lacks: tuple[str, ...] = ()


def serve(upstream_port: int, parts: Parts = FULL, workers: int = 1) -> Command:
    """Start the gateway as `./run.sh serve` does."""

    def command(directory: Path, port: int) -> list[str]:
        path = policy.write(directory, upstream_port, parts)
        words = [sys.executable, "-O", "-m", "mitmgate", "serve", "--policy", str(path)]
        words += ["--listen", f"127.0.0.1:{port}"]
        return words if workers == 1 else [*words, "--workers", str(workers)]

    return command


def bare_host(upstream_port: int) -> Command:
    """Start the host and its protocol layer with everything admitted: `bare_host.py POLICY PORT`."""

    def command(directory: Path, port: int) -> list[str]:
        path = policy.write(
            directory, upstream_port, Parts(token=False, rules=False, limit=None, rewrite=False, file=False)
        )
        return [sys.executable, "-O", str(HERE / "bare_host.py"), str(path), str(port)]

    return command


def mitmdump(upstream_port: int) -> Command:
    """Start stock mitmdump in reverse mode, without any addon, quiet."""

    def command(directory: Path, port: int) -> list[str]:
        mode = ["-q", "--mode", f"reverse:http://127.0.0.1:{upstream_port}", "--set", f"confdir={directory}"]
        return [sys.executable, "-c", MITMDUMP, *mode, "--listen-host", "127.0.0.1", "--listen-port", str(port)]

    return command


STOCK = Subject("stock", "bare stock mitmdump, reverse mode, no addon", lambda up, _: mitmdump(up), judged=False)
HOST = Subject("host", "the host of serve, everything admitted, no chain", lambda up, _: bare_host(up), judged=False)
GATEWAY = Subject("gateway", "serve with the full policy", lambda up, limit: serve(up, Parts(limit=limit)))
OWN = (STOCK, HOST, GATEWAY)
