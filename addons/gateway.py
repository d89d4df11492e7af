"""The file that mitmproxy's -s takes: the gateway, with what mitmweb shows of it."""

from mitmgate.inspect import gateway

addons = [gateway()]
