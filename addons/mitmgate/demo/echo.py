"""`mitmgate echo`: the demo's service alone, as something to put behind a gateway."""

import signal

import click

from mitmgate.demo.service import LOOPBACK, EchoService
from mitmgate.usage import UserError


@click.command("echo")
@click.option("--port", type=click.IntRange(1, 65535), default=9000, show_default=True, help="The service's port.")
def echo(port: int) -> None:
    """Run a small HTTP service on 127.0.0.1 that answers with what it received, until Ctrl-C.

    It has no authentication; it is there for trying a policy.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        service = EchoService("echo", port, elsewhere=False)
    except OSError as error:
        raise UserError(f"can't listen on {LOOPBACK}:{port}: {error.strerror}") from error
    click.echo(f"echo is listening on http://{LOOPBACK}:{port}")
    try:
        service.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        service.server_close()
