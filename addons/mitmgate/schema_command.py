"""The command `schema`: the JSON Schema of policies, for editors and pipelines."""

from pathlib import Path

import click

from mitmgate.usage import UserError


def policy_schema() -> str:
    """Read the schema: in a checkout from policies/, in an installed package from beside the model."""
    here = Path(__file__).resolve()
    for path in (
        here.parents[2] / "policies" / "gateway.schema.json",
        here.parent / "policy" / "gateway.schema.json",
    ):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UserError("policies/gateway.schema.json is missing")


@click.command("schema")
def schema() -> None:
    """Print the JSON Schema of policies.

    Editors complete and check a policy whose first line is `# yaml-language-server: $schema=gateway.schema.json`, where
    the schema lies beside it under this name.
    """
    click.echo(policy_schema(), nl=False)
