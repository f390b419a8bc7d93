"""What is tested in this folder needs no process of a database or a server: `make test-quick`."""

import pytest


@pytest.fixture(scope="session")
def databases() -> None:
    """None here."""
    pytest.fail("a test that needs a database stands in another folder")
