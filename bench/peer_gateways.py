"""The peers that `--peers` measures: HAProxy and a fastify gateway, each with the same policy as far as it can.

Their configuration lies in peers/. HAProxy is the machine's own; fastify and its plugins come from npm, by the lock
file, into a cache directory outside the checkout.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from bench import policy
from bench.subjects import Command, Subject

PEERS = Path(__file__).parent / "peers"
NODE = 20  # the oldest that fastify 5 runs on
PATIENCE = 180.0  # seconds for npm


class MissingPeerError(Exception):
    """A peer can't be measured here; the message says what is missing."""


def peers() -> tuple[list[Subject], dict[str, str]]:
    """Return the peers that are here, and why the others are not."""
    found, absent = [], {}
    for name, make in {"haproxy": _haproxy, "fastify": fastify}.items():
        try:
            found.append(make())
        except MissingPeerError as missing:
            absent[name] = str(missing)
    return found, absent


def _environment(upstream_port: int, limit: int, port: int) -> list[str]:
    """Return the words that start a program with what its configuration reads."""
    variables = {
        "BENCH_PORT": port,
        "BENCH_UPSTREAM": upstream_port,
        "BENCH_LIMIT": limit,
        "BENCH_PREFIX": policy.PREFIX,
        "BENCH_SECRET": policy.SECRET,
        "BENCH_ISSUER": policy.ISSUER,
        "BENCH_AUDIENCE": policy.AUDIENCE,
    }
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def _haproxy() -> Subject:
    path = shutil.which("haproxy")
    if path is None:
        raise MissingPeerError("haproxy is missing (Debian, Ubuntu: apt install haproxy)")
    version = subprocess.run([path, "-v"], capture_output=True, text=True, check=True).stdout.split()[2]

    def command(upstream_port: int, limit: int) -> Command:
        def words(_: Path, port: int) -> list[str]:
            environment = _environment(upstream_port, limit, port)
            return [*environment, path, "-q", "-db", "-f", str(PEERS / "haproxy.cfg")]

        return words

    return Subject(
        "haproxy",
        f"HAProxy {version.partition('-')[0]}, one thread",
        command,
        lacks=(
            "an exact limit: its rate is an estimate over two periods",
            "the limit's state in response headers, and a Retry-After that is true",
            "problem+json with a reason for each refusal",
            "a hash chain in the log, and back-pressure where the log can't be written",
            "a circuit for each endpoint, CEL conditions, refusal of ambiguous paths",
            "a cache of verified tokens (it verifies each time, in C)",
        ),
    )


def fastify() -> Subject:
    """Return the fastify gateway. Raises MissingPeerError."""
    directory = _installed()

    def command(upstream_port: int, limit: int) -> Command:
        def words(own: Path, port: int) -> list[str]:
            log = f"BENCH_LOG={own / 'access.log'}"
            return [*_environment(upstream_port, limit, port), log, "node", str(directory / "server.mjs")]

        return words

    return Subject(
        "fastify",
        "fastify 5 with http-proxy, jwt and rate-limit, one process",
        command,
        lacks=(
            "an exact limit: it counts in fixed windows",
            "problem+json with a reason for each refusal",
            "a hash chain in the log, and back-pressure where the log can't be written",
            "a circuit for each endpoint, CEL conditions, refusal of ambiguous paths",
            "a limit shared by processes, without a further store",
        ),
    )


def _installed() -> Path:
    """Return the directory with the fastify gateway and its modules; make it where it is missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingPeerError(f"node >= {NODE} and npm are missing")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < NODE:
        raise MissingPeerError(f"node >= {NODE} is wanted, this is {version}")
    files = [PEERS / name for name in ("package.json", "package-lock.json", "server.mjs")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mitmgate-bench"
    directory = cache / f"fastify-{digest}"
    if directory.is_dir():
        return directory
    making = cache / f"making-{os.getpid()}"  # renamed when it is whole
    making.mkdir(parents=True)
    try:
        for file in files:
            shutil.copy(file, making)
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=making,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise MissingPeerError(f"npm could not install fastify: {' '.join(last)}")
        try:
            making.rename(directory)
        except OSError:  # another run was faster
            if not directory.is_dir():
                raise
    except subprocess.TimeoutExpired:
        raise MissingPeerError(f"npm did not install fastify within {PATIENCE:.0f} s") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return directory
