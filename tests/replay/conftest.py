"""A corpus that a live gateway records once, for all tests of replay."""

import fcntl
import pickle
from dataclasses import replace
from itertools import islice

import pytest

from mitmgate.replay.flow_file import FlowFormat
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.traffic import Listed
from tests.replay.corpus import Corpus, record

COUNT = 10_000
SMALL = 2_000


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Corpus:
    """Ten thousand mixed requests: recorded once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    if worker_id == "master":
        return record(tmp_path_factory.mktemp("corpus"), COUNT)
    shared = base.parent / "replay-corpus"
    with (base.parent / "replay-corpus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "corpus.pickle").exists():
            shared.mkdir(exist_ok=True)
            (shared / "corpus.pickle").write_bytes(pickle.dumps(record(shared, COUNT)))
    found: Corpus = pickle.loads((shared / "corpus.pickle").read_bytes())
    return found


@pytest.fixture(scope="module")
def small(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The first requests of the corpus as a recording of their own, with a copy of the policy beside it."""
    directory = tmp_path_factory.mktemp("small")
    with corpus.path.open("rb") as file:
        records = sorted((at, raw) for at, raw in FlowFormat().records(file) if at is not None)
    (directory / "traffic.mitm").write_bytes(b"".join(raw for _, raw in records[:SMALL]))
    (directory / "policy.yaml").write_text(corpus.policy.read_text())
    return replace(corpus, path=directory / "traffic.mitm", policy=directory / "policy.yaml")


@pytest.fixture(scope="session")
def beginning(corpus: Corpus) -> Listed:
    """The first 3,000 requests of the recording, in memory: for tests that replay it again and again."""
    return Listed(str(corpus.path), list(islice(open_traffic([str(corpus.path)]), 3 * COUNT // 10)))
