"""deploy/README.md and capacity.md: what they link to is there, nothing shipped is left out, and sums are right."""

import re
from pathlib import Path

import pytest

from tests.live.harness import ROOT

DEPLOY = ROOT / "deploy"
DOCUMENTS = (DEPLOY / "README.md", DEPLOY / "capacity.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_part_is_named_in_the_readme() -> None:
    text = (DEPLOY / "README.md").read_text()
    parts = {path.name for path in DEPLOY.iterdir() if path.is_dir()} - {"images"}
    assert {part for part in parts if f"`{part}/`" not in text} == set()


def test_the_readme_of_the_product_leads_here() -> None:
    assert "(deploy/README.md)" in (ROOT / "README.md").read_text()


def test_the_costs_are_what_their_formulas_say() -> None:
    text = (DEPLOY / "capacity.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| (?:about )?\$([\d,.]+) \|", text, re.MULTILINE))
    computed = {
        "AWS API Gateway, HTTP API": 50 * 1.00,
        "AWS API Gateway, REST API": 50 * 3.50,
        "Google Cloud API Gateway": 48 * 3.00,
        "Google Apigee, pay as you go, standard proxy": 50 * 20 + 365,
        "Cloudflare Workers, the platform alone": 5 + 40 * 0.30 + (50 * 2 - 30) * 0.02,
        "the same, with counters in Durable Objects": 5 + 40 * 0.30 + (50 * 2 - 30) * 0.02 + 49 * 0.15,
        "this gateway": 3 * 730 * 0.0816,
    }
    assert {name: float(rows[name].replace(",", "")) for name in computed} == {
        name: pytest.approx(value, abs=0.01) for name, value in computed.items()
    }
