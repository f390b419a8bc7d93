"""Where webhooks may be sent: never, unless a setting says so, to this machine or its network.

Whoever may name a URL could otherwise have the server call what only the server can reach. What
counts is the address that is connected to, so names are judged when they are looked up, each time;
what can be seen of a URL by itself is refused at once. Pure. Called by the API and the deliverer.
"""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from creditledger.errors import InvalidField

URL_MAX = 2_048

_PRINTABLE = re.compile(r"[\x21-\x7e]+", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
#: Whatever stands behind such a prefix is reached through a translator.
_NAT64 = IPv6Network("64:ff9b::/96")
#: The same for a network's own use.
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
#: An IPv4 address in the lowest bits, as it was once written.
_COMPATIBLE = IPv6Network("::/96")


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public network, whatever it is wrapped in."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        if found.teredo is not None or found in _LOCAL_NAT64:
            return False
        inner = _inner(found)
        if inner is not None:
            return is_public(str(inner))
    # What is not global for some other reason, multicast for one, is nobody's endpoint either.
    return found.is_global and not found.is_multicast


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def check(url: str, *, allow_private: bool, field: str) -> str:
    """`url` if events may be sent there, as far as it tells without being looked up.

    Raises InvalidField.
    """

    def wrong(why: str) -> InvalidField:
        return InvalidField(f"{field} {why}", param=field)

    if len(url) > URL_MAX:
        raise wrong(f"has {len(url)} characters, at most {URL_MAX}")
    if not _PRINTABLE.fullmatch(url):
        raise wrong("must be printable ASCII without blanks")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong("is no URL") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise wrong("must be a URL such as https://example.com/hooks")
    if "@" in parts.netloc:
        raise wrong("must not hold a user or a password")
    if "#" in url:
        raise wrong("must not hold a fragment")
    if "\\" in url or port == 0 or not (":" in host or _HOST.fullmatch(host)):
        raise wrong("has no host and port that can be called")
    if not allow_private and _is_private(host):
        raise wrong("leads to this machine or a private network, which this server does not allow")
    return url


def _is_private(host: str) -> bool:
    """Whether a host tells by itself that it is not public."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    if ":" in host:
        return not is_public(host)
    try:
        # As resolvers do, which take 2130706433, 0x7f.1 and 127.1 for 127.0.0.1.
        return not is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except OSError:
        return False
