"""haproxy.cfg and its policy, read side by side: HAProxy takes it, and what has to hold between the two holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mitmgate.policy.loader import load
from mitmgate.policy.units import parse_duration
from mitmgate.review import lint
from tests.deploy.fleet import HAPROXY, POLICY
from tests.live.harness import ROOT
from tests.protocol.certificates import Authority

KEY = {"MITMGATE_AUDIT_KEY": "0123456789abcdef0123456789abcdef"}
CONFIGURATION = HAPROXY.read_text()


def seconds(word: str) -> float:
    """Return the value of a directive of the configuration that has a time."""
    (value,) = re.findall(rf"^ +{word} +(\S+)", CONFIGURATION, re.MULTILINE)
    return parse_duration(value)


def haproxy_takes_it(environment: dict[str, str]) -> None:
    words = ["haproxy", "-c", "-dW", "-f", str(HAPROXY)]  # -dW: a warning is an error
    done = subprocess.run(words, env={"PATH": "/usr/sbin:/usr/bin"} | environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_haproxy_takes_the_configuration() -> None:
    haproxy_takes_it({})


def test_haproxy_takes_it_with_tls(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("api.example")
    (tmp_path / "edge.pem").write_text("".join(Path(name).read_text() for name in pair))
    haproxy_takes_it({"EDGE_CERTIFICATE": str(tmp_path / "edge.pem")})


def test_haproxy_can_say_no() -> None:
    with pytest.raises(AssertionError, match="unable to stat SSL certificate"):
        haproxy_takes_it({"EDGE_CERTIFICATE": "/nowhere.pem"})


def test_the_policy_has_neither_errors_nor_warnings() -> None:
    assert lint(load(POLICY, KEY)) == ()


def test_the_timeouts_of_the_two_fit_each_other() -> None:
    policy = load(POLICY, KEY).policy
    assert seconds("timeout http-request") <= policy.limits.head_timeout
    assert seconds("timeout http-keep-alive") < policy.limits.idle_timeout
    upstream = policy.upstreams["orders"]
    tries = upstream.retries + 1
    assert seconds("timeout server") > tries * (upstream.connect_timeout + upstream.response_timeout)


def test_the_connections_of_the_two_fit_each_other() -> None:
    (for_each_gateway,) = re.findall(r"default-server maxconn (\d+)", CONFIGURATION)
    assert int(for_each_gateway) * 2 < load(POLICY, KEY).policy.limits.connections, "two edge hosts have room"


def test_only_the_edge_is_trusted() -> None:
    assert all(network.endswith("/32") for network in load(POLICY, KEY).policy.trusted_proxies)


def test_without_the_right_to_make_hosts_the_tests_fail_and_say_why(tmp_path: Path) -> None:
    made = f"Network(Path({str(tmp_path)!r})).__enter__()"
    script = f"from pathlib import Path; from tests.deploy.hosts import Network; {made}"
    dropped = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    done = subprocess.run(
        [*dropped, sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "AssertionError: network namespaces can't be made here" in done.stderr
    assert "need root (CAP_SYS_ADMIN) and iproute2" in done.stderr
