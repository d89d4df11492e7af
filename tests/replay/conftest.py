"""A corpus that a live gateway records once, for all tests of replay."""

from itertools import islice
from pathlib import Path

import pytest

from mitmgate.replay.opening import open_traffic
from mitmgate.replay.traffic import Listed
from tests.replay.corpus import Corpus, record

COUNT = 10_000


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Ten thousand mixed requests."""
    return record(tmp_path_factory.mktemp("corpus"), COUNT)


@pytest.fixture(scope="session")
def traffic(corpus: Corpus) -> Path:
    """The recording."""
    return corpus.path


@pytest.fixture(scope="session")
def beginning(corpus: Corpus) -> Listed:
    """The first 3,000 requests of the recording, in memory: for tests that replay it again and again."""
    return Listed(str(corpus.path), list(islice(open_traffic([str(corpus.path)]), 3 * COUNT // 10)))
