"""Where webhooks may be sent: the address counts that is connected to, not how it is written."""

from __future__ import annotations

import pytest

from creditledger.domain.errors import InvalidField
from creditledger.domain.webhook_addresses import check, is_public

PRIVATE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:7f00:1", "::127.0.0.1"),
    *("2002:7f00:1::1", "2002:c0a8:101::", "64:ff9b::127.0.0.1", "64:ff9b::a00:1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "64:ff9b:1::1", "no address"),
    *("fec0::1", "::ffff:0:8.8.8.8", "::ffff:0:127.0.0.1", "5f00::1", "3fff::1", "3fff:fff::1"),
    *("192.0.0.1", "192.0.0.8", "192.0.0.170", "168.63.129.16", "192.88.99.1", "203.0.113.9"),
    *("::ffff:168.63.129.16", "64:ff9b::192.88.99.1", "2002:c058:6301::1", "::8.8.8.8"),
    *("2001:2::1", "2001:10::1", "2001:1::4", "100::1", "100:0:0:1::1", "4000::1", "febf::1"),
    *("0.1.2.3", "100.127.255.255", "198.19.255.255", "198.51.100.7", "172.31.255.255"),
)
PUBLIC = (
    *("93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"),
    *("::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::8.8.8.8"),
    *("192.0.0.9", "192.0.0.10", "192.0.1.1", "168.63.129.15", "192.88.98.1", "192.88.100.1"),
    *("2001:1::1", "2001:1::2", "2001:4:112::1", "2001:200::1", "3ffe::1", "2000::1"),
    *("100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "198.20.0.0", "1.0.0.1"),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_seen_through(address: str) -> None:
    """This machine's and private networks' addresses, in whatever they are packed."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_one(address: str) -> None:
    """Addresses of the public network are, packed as IPv6 or not."""
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1", "2130706433"),
        *("0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0", "10.1", "[::1]"),
        *("[::ffff:127.0.0.1]", "[fe80::1]", "169.254.169.254", "[64:ff9b::7f00:1]"),
    ],
)
def test_a_url_that_leads_home_is_refused(host: str) -> None:
    """However the host is spelled; where the server allows it, it is taken as it is."""
    for url in (f"http://{host}/", f"https://{host}:8443/hooks?x=1"):
        with pytest.raises(InvalidField) as caught:
            check(url, allow_private=False, field="url")
        assert caught.value.param == "url"
        assert check(url, allow_private=True, field="url") == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "//example.com/", "ftp://example.com/", "file:///etc/passwd"),
        *("http://", "http:///x", "https://user@example.com/", "https://u:p@example.com/"),
        *("https://@example.com/", "https://example.com/#x", "https://exa mple.com/"),
        *("https://example.com:0/", "https://example.com:99999/", "https://example.com:x/"),
        *("https://exämple.com/", "https://example.com/\r\nx: y", "http://example.com\\@x/"),
        *("https://[::1/", "https://exa$mple.com/", "https://example.com/" + "x" * 2_048),
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """What cannot be called, what holds a credential, and what a parser may read in two ways."""
    for allow_private in (False, True):
        with pytest.raises(InvalidField):
            check(url, allow_private=allow_private, field="url")


def test_urls_that_may_be_called() -> None:
    """With a port, a path and a query, or without."""
    for url in ("https://example.com", "http://hooks.example.com:8080/a/b?c=d", "https://8.8.8.8/"):
        assert check(url, allow_private=False, field="url") == url
