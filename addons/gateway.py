"""The file that mitmproxy's -s takes: the gateway, with what mitmweb shows of it."""

from pathlib import Path

try:
    from mitmgate.inspect import gateway
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] == "mitmgate":
        raise
    checkout = Path(__file__).resolve().parents[1]
    raise ImportError(
        f"mitmgate needs the package {error.name}: install mitmgate into the environment of this mitmproxy, with "
        f"`pip install {checkout}`, or with `pipx inject mitmproxy {checkout}`"
    ) from None

addons = [gateway()]
