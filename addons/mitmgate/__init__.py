"""mitmgate: a zero-trust API gateway made of mitmproxy addons."""

__version__ = "0.1.0"
