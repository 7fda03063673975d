import pytest
from tests.web.site import Target


@pytest.fixture(scope="session")
def target():
    return Target()
