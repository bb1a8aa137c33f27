"""The door of a listener: closed for newcomers, open again."""

import socket

import pytest

from app.http_worker import ANY_TTL, LARGEST_TTL, require_ttl


@pytest.mark.parametrize(
    ("listens", "comes"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::", "127.0.0.1")],
    ids=["IPv4", "IPv6", "IPv4 on an IPv6 listener"],
)
def test_nobody_new_gets_in_until_it_is_opened_again(listens: str, comes: str) -> None:
    if not socket.has_dualstack_ipv6() and ":" in listens:
        pytest.skip("this machine has no IPv6")
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with socket.create_server((listens, 0), family=family, dualstack_ipv6=":" in listens) as door:
        address = comes, door.getsockname()[1]
        require_ttl(door, LARGEST_TTL)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, 0.2)
        require_ttl(door, ANY_TTL)
        socket.create_connection(address, 5).close()


def test_who_was_let_in_while_it_closed_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname(), 5)
        require_ttl(door, LARGEST_TTL)
        inside, _ = door.accept()
        with client, inside:
            client.sendall(b"hello")
            assert inside.recv(5) == b"hello"


def test_a_connection_that_inherited_the_closed_door_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname(), 5)
        inside, _ = door.accept()
        with client, inside:
            inside.settimeout(5)
            require_ttl(inside, LARGEST_TTL)
            client.sendall(b"hello")
            require_ttl(inside, ANY_TTL)  # the client's system sends it again
            assert inside.recv(5) == b"hello"
