"""The demo's policy file, wherever mitmgate is."""

from pathlib import Path

from mitmgate.usage import UserError


def demo_policy() -> Path:
    """Find the demo's policy: in a checkout under policies/, in an installed package beside this file."""
    here = Path(__file__).resolve()
    for path in (here.parents[3] / "policies" / "demo.yaml", here.with_name("demo.yaml")):
        if path.is_file():
            return path
    raise UserError("policies/demo.yaml is missing; the demo needs it")
