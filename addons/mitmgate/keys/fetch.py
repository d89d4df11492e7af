"""One document over HTTP(S), bounded in size and time; redirects are not followed, certificates are verified."""

from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

MAX_DOCUMENT = 1024 * 1024
FETCH_TIMEOUT = 5.0
_MAX_HEAD = 32 * 1024


class FetchError(Exception):
    """There is no document to be had; the caller keeps what it has and tries again later."""


async def fetch_document(url: str) -> bytes:
    """Return the body of a 200 response to GET; raises FetchError for everything else, within FETCH_TIMEOUT seconds.

    A private authority's certificate is trusted through SSL_CERT_FILE, as everywhere with OpenSSL.
    """
    request = HTTPRequest(
        url,
        headers={"Accept": "application/jwk-set+json, application/json"},
        user_agent="mitmgate",
        connect_timeout=FETCH_TIMEOUT,
        request_timeout=FETCH_TIMEOUT,
        follow_redirects=False,
        decompress_response=False,
    )
    # max_body_size bounds a declared or chunked body, max_buffer_size one that ends with the connection.
    client = SimpleAsyncHTTPClient(
        force_instance=True, max_body_size=MAX_DOCUMENT, max_buffer_size=MAX_DOCUMENT, max_header_size=_MAX_HEAD
    )
    try:
        response = await client.fetch(request, raise_error=False)
    except Exception as error:  # resolver, TLS and protocol errors have no common base
        raise FetchError(str(error) or type(error).__name__) from error
    finally:
        client.close()
    if response.code != 200:
        raise FetchError(f"the server answered {response.code}")
    return response.body
