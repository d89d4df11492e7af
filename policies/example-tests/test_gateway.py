"""How a team tests its policy: by cases, and by recorded traffic. Run `pytest` here, with mitmgate installed.

Nothing needs a running gateway, a network or a key: claims are taken for signed, and time is what the test says.
"""

ALICE = {"sub": "alice", "scope": "orders.read"}
ROOT = {**ALICE, "sub": "root", "roles": ["admin"]}


def test_reading_orders(policy_case):
    """Orders want the scope, and are rewritten to the service's own paths."""
    policy = policy_case("gateway.yaml")
    policy.request("GET", "/api/v1/orders/7").claims(**ALICE).is_admitted(route="orders", target="/7")
    policy.request("GET", "/api/v1/orders/7").claims(sub="bob").is_denied("scope-missing")
    policy.request("GET", "/api/v1/orders/7").is_denied("credential-missing")
    policy.request("GET", "/api/v1/ordersX").claims(**ALICE).is_denied("no-route")


def test_only_admins_delete(policy_case):
    """The condition of the route, in both directions."""
    policy = policy_case("gateway.yaml")
    policy.request("DELETE", "/api/v1/orders/7").claims(**ROOT).is_admitted()
    policy.request("DELETE", "/api/v1/orders/7").claims(**ALICE).is_denied("condition-false")


def test_five_requests_a_minute(policy_case):
    """Time is what the test says: nothing sleeps."""
    policy = policy_case("gateway.yaml")
    policy.request("GET", "/api/v1/orders").claims(**ALICE).at("2026-03-01T12:00:00Z").times(5).is_admitted()
    policy.request("GET", "/api/v1/orders").claims(**ALICE).after(59).is_denied("quota-exceeded")
    policy.request("GET", "/api/v1/orders").claims(**ROOT).is_admitted()
    policy.request("GET", "/api/v1/orders").claims(**ALICE).after(1).is_admitted()


def test_tokens_expire(policy_case):
    """The issuer's leeway is 30 seconds, the default."""
    policy = policy_case("gateway.yaml")
    old = {**ALICE, "iat": 1_772_366_000, "exp": 1_772_366_300}
    policy.request("GET", "/api/v1/orders").claims(**old).at(1_772_366_320).is_admitted()  # 30 s of leeway
    policy.request("GET", "/api/v1/orders").claims(**old).at(1_772_366_330).is_denied("token-expired")


def test_what_the_gateway_answers_itself(policy_case):
    """The health check, and a body that is too large."""
    policy = policy_case("gateway.yaml")
    policy.request("GET", "/health").is_answered("health")
    policy.request("POST", "/api/v1/orders").claims(**ALICE).body(2000).is_denied("body-too-large")


def test_recorded_traffic(mitmgate_replay):
    """A morning's traffic, recorded by `serve --record` and redacted; what must become of it stands beside it."""
    mitmgate_replay("traffic.mitm", "gateway.yaml").assert_same()


def test_the_next_policy_lets_nobody_in(mitmgate_replay):
    """Compare two policies over the same traffic. Here the next one is the same one."""
    mitmgate_replay("traffic.mitm", "gateway.yaml", against="gateway.yaml").assert_none_loosened()
