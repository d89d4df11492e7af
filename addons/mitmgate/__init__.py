"""mitmgate: a zero-trust API gateway made of mitmproxy addons."""
