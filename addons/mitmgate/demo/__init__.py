"""The demo: the gateway with two small services behind it, and curl lines to try."""
