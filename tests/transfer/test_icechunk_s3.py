"""Icechunk repositories in a bucket: a server on this machine speaks S3, and goes away."""

from __future__ import annotations

import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import vzarr
from tests.transfer.icehistories import Historian, assert_equal, assert_replayed, snapshots, write
from vzarr.errors import AlreadyExistsError, NotFoundError, TransferError

icechunk = pytest.importorskip("icechunk", minversion="2.3")
with warnings.catch_warnings(action="ignore"):
    server = pytest.importorskip("moto.server")

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
BUCKET = "ocean-data"


class Bucket:
    """A server with a bucket; what is in it stays when the server goes and comes back."""

    def __init__(self) -> None:
        self.server: Any = None
        self.start(0)
        self.put("")

    def start(self, port: int) -> None:
        self.server = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]

    def stop(self) -> None:
        self.server.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, key: str, data: bytes = b"") -> None:
        url = f"{self.endpoint}/{BUCKET}/{key}".rstrip("/")
        with urllib.request.urlopen(urllib.request.Request(url, data, method="PUT")) as answer:
            assert answer.status == 200

    def url(self, prefix: str, bucket: str = BUCKET) -> str:
        return (
            f"icechunk://s3://{bucket}/{prefix}?region=us-east-1&endpoint_url={self.endpoint}"
            "&allow_http=true&force_path_style=true"
        )

    def storage(self, prefix: str) -> Any:
        return icechunk.s3_storage(
            bucket=BUCKET,
            prefix=prefix,
            region="us-east-1",
            endpoint_url=self.endpoint,
            allow_http=True,
            force_path_style=True,
            from_env=True,
        )


@pytest.fixture(scope="module")
def running() -> Iterator[Bucket]:
    with warnings.catch_warnings(action="ignore"):
        bucket = Bucket()
        yield bucket
        bucket.stop()


@pytest.fixture
def bucket(running, monkeypatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    icechunk.set_logs_filter("error")
    return running


@pytest.fixture
def back(tmp_path) -> Iterator[vzarr.Repository]:
    with vzarr.open(tmp_path / "back.vzarr", author="Other <o@example.org>") as repository:
        yield repository


def test_a_history_goes_to_a_bucket_and_back(repo, back, bucket):
    historian = Historian(repo, 5)
    for _ in range(2):
        historian.write(8)
        report = repo.export_to(bucket.url("a/b"), overwrite=True)
        assert report.target == f"icechunk://s3://{BUCKET}/a/b"
        assert_replayed(repo, bucket.storage("a/b"))
        back.import_from(bucket.url("a/b"), overwrite=True)
        for name in set(back.branches) - set(repo.branches):
            back.branches.delete(name)
        assert_equal(repo, back)
    assert repo.export_to(bucket.url("a/b")).commits == 0


def test_options_beside_the_url(repo, back, bucket, monkeypatch):
    write(repo, 1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    secrets = {"access_key_id": "testing", "secret_access_key": "testing"}
    report = repo.export_to(bucket.url("secret"), storage_options=secrets)
    assert "testing" not in repr(report)
    assert back.import_from(bucket.url("secret"), storage_options=secrets).commits == 2
    assert_equal(repo, back)


def test_a_bucket_that_is_missing_or_has_something_else(repo, bucket):
    write(repo, 1)
    with pytest.raises(TransferError, match="See that the bucket exists"):
        repo.export_to(bucket.url("x", bucket="none-such"))
    with pytest.raises((NotFoundError, TransferError)):
        repo.import_from(bucket.url("x", bucket="none-such"))
    with pytest.raises(NotFoundError, match="no Icechunk repository at"):
        repo.import_from(bucket.url("nothing"))
    bucket.put("taken/file", b"x")
    with pytest.raises(AlreadyExistsError, match="something else than an Icechunk"):
        repo.export_to(bucket.url("taken"))


def test_credentials_that_are_wrong(repo, bucket):
    from moto.core import set_initial_no_auth_action_count

    write(repo, 1)

    @set_initial_no_auth_action_count(0)
    def attempt() -> None:
        with pytest.raises(TransferError, match="credentials and endpoint"):
            repo.export_to(bucket.url("forbidden"))

    attempt()
    assert repo.export_to(bucket.url("forbidden")).commits == 2


def test_a_network_that_goes_away(repo, back, bucket):
    """In the middle of an export, and of an import: typed errors, and the same calls go on."""
    for number in range(6):
        write(repo, number)
    # Icechunk asks ten times by default, and longer and longer after each other.
    retries = icechunk.StorageRetriesSettings(max_tries=1)
    config = icechunk.RepositoryConfig(storage=icechunk.StorageSettings(retries=retries))
    theirs = icechunk.Repository.create(bucket.storage("drop"), config=config)

    def until(stage: str, number: int) -> Any:
        count = 0

        def watch(done: int, total: int, what: str) -> None:
            nonlocal count
            count += what == stage
            if count == number:
                bucket.stop()

        return watch

    progress, vzarr.progress.INTERVAL = vzarr.progress.INTERVAL, 0.0
    try:
        with pytest.raises(TransferError, match="goes on where this one ended"):
            repo.export_to(theirs, progress=until("replay", 5))
        bucket.start(bucket.port)
        known = len(snapshots(icechunk.Repository.open(bucket.storage("drop"))))
        report = repo.export_to(bucket.url("drop"))
        assert 0 < report.known == known < 7
        assert_replayed(repo, bucket.storage("drop"))
        before = dict(back.branches)
        with pytest.raises(TransferError):
            back.import_from(theirs, progress=until("commits", 4))
        bucket.start(bucket.port)
        assert before.items() < dict(back.branches).items()
        taken = back.import_from(theirs)
        assert taken.resumed
        assert 0 < taken.known < 7
        assert_equal(repo, back)
    finally:
        vzarr.progress.INTERVAL = progress
