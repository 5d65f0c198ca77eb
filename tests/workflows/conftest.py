"""The small tasks as fixtures."""

import pytest

from tests import small_tasks


@pytest.fixture(scope="package")
def preset(tmp_path_factory):
    return small_tasks.make_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="package")
def cola(tmp_path_factory):
    return small_tasks.make_cola(tmp_path_factory.mktemp("cola"))


@pytest.fixture(scope="package")
def squad(tmp_path_factory):
    return small_tasks.make_squad(tmp_path_factory.mktemp("squad"))
