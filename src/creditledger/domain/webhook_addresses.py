"""Where webhooks may be sent: never, unless a setting says so, to this machine or its network.

A client that names a URL could otherwise have the server call what only the server can reach. What
counts is the address that is connected to, so names are judged when they are looked up, each time;
what can be seen of a URL by itself is refused at once. Pure.
"""

import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from creditledger.domain.errors import InvalidField

URL_MAX = 2_048

_PRINTABLE = re.compile(r"[\x21-\x7e]+", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)

# The table follows IANA's registries of special-purpose addresses. It is written out here because
# Python's `is_global` differs between versions.

#: IPv4 networks that are not the public network.
_PRIVATE_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # "this network"
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by a carrier's customers
            "127.0.0.0/8",  # this machine
            "168.63.129.16/32",  # a cloud's own services, reachable only from its machines
            "169.254.0.0/16",  # link-local; clouds serve credentials there
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4, withdrawn
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
#: Parts of those that are public: anycast of port control and of TURN.
_PUBLIC_4 = tuple(map(IPv4Network, ("192.0.0.9/32", "192.0.0.10/32")))
#: All that is handed out of IPv6 to the public network. What lies outside is this machine,
#: link-local, site-local (fec0::/10), a network's own (fc00::/7), multicast, segment routing
#: (5f00::/16), a translator's (::ffff:0:0:0/96, 64:ff9b:1::/48), or nobody's.
_GLOBAL_6 = IPv6Network("2000::/3")
#: Parts of it that are not public.
_PRIVATE_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks and others
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)
#: Parts of those that are public.
_PUBLIC_6 = tuple(
    map(
        IPv6Network,
        (
            "2001:1::1/128",  # anycast of port control
            "2001:1::2/128",  # anycast of TURN
            "2001:3::/32",  # multicast tunnels
            "2001:4:112::/48",  # AS112
            "2001:20::/28",  # ORCHIDv2
            "2001:30::/28",  # drone identifiers
        ),
    )
)
#: An IPv4 address stands in the lowest bits, and is reached through a translator.
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public network, whatever it is wrapped in."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        inner = _inner(found)
        if inner is None:
            return found in _GLOBAL_6 and (
                any(found in network for network in _PUBLIC_6)
                or not any(found in network for network in _PRIVATE_6)
            )
        found = inner
    return any(found in network for network in _PUBLIC_4) or not any(
        found in network for network in _PRIVATE_4
    )


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


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
