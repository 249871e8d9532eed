"""Data sets on their way in: cut anywhere, gone on with, and never seen before their digest has been checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm.errors import Conflict, DataChanged, DiskFull, NotFound, RequestError
from fm.files import read_manifest
from fm.types import DataFile
from fm.uploads import Digester, Uploads


def digest_of(files: dict[str, bytes]) -> str:
    digester = Digester()
    for name, content in files.items():
        digester.begin(name, len(content))
        digester.feed(content)
    return digester.hexdigest()


def listing(files: dict[str, bytes]) -> list[DataFile]:
    return [DataFile(name, len(content)) for name, content in files.items()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(st.binary(max_size=300), min_size=1, max_size=4).filter(any),
    cuts=st.lists(st.integers(0, 1200), max_size=8),
    again=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_wherever_an_upload_is_cut_what_arrives_is_what_was_sent(
    tmp_path: Path, contents: list[bytes], cuts: list[int], again: list[bool]
) -> None:
    folder = tmp_path / os.urandom(8).hex()
    files = {f"{number}.jsonl": content for number, content in enumerate(contents)}
    stream, name = b"".join(contents), digest_of(files)
    for cut, reopen in zip([*(c for c in sorted(cuts) if c < len(stream)), len(stream)], [*again, True], strict=False):
        uploads = Uploads(folder)  # another process
        arrived = uploads.begin("team", name, listing(files))
        if reopen and arrived < cut:
            with pytest.raises(Conflict, match="go on there"):
                uploads.append("team", name, arrived + 1, b"x")
        assert uploads.append("team", name, arrived, stream[arrived : max(cut, arrived)]) == max(cut, arrived)
    uploads = Uploads(folder)
    if (arrived := uploads.begin("team", name, listing(files))) < len(stream):
        uploads.append("team", name, arrived, stream[arrived:])
    with uploads.finish("team", name) as sealed:
        assert {path.name: path.read_bytes() for path in (sealed / "files").iterdir()} == files
        assert read_manifest(sealed, verify=True)
    assert list(folder.iterdir()) == []


FILES = {"a.jsonl": b"0123456789", "b.jsonl": b"abcdef"}
DIGEST = digest_of(FILES)


class TestRefusals:
    """What an upload does not take."""

    @pytest.fixture
    def uploads(self, tmp_path: Path) -> Uploads:
        return Uploads(tmp_path / "uploads")

    def test_more_bytes_than_were_announced(self, uploads: Uploads) -> None:
        uploads.begin("t", DIGEST, listing(FILES))
        with pytest.raises(RequestError, match="16 were announced"):
            uploads.append("t", DIGEST, 0, b"x" * 17)
        assert uploads.begin("t", DIGEST, listing(FILES)) == 0

    def test_a_finish_before_all_has_arrived(self, uploads: Uploads) -> None:
        uploads.begin("t", DIGEST, listing(FILES))
        uploads.append("t", DIGEST, 0, b"0123")
        with pytest.raises(Conflict, match="4 of 16"), uploads.finish("t", DIGEST):
            pass

    @pytest.mark.parametrize("offset", [-1, 3, 5, 1 << 60])
    def test_an_offset_that_leaves_a_gap_or_goes_back(self, uploads: Uploads, offset: int) -> None:
        uploads.begin("t", DIGEST, listing(FILES))
        uploads.append("t", DIGEST, 0, b"0123")
        with pytest.raises(Conflict):
            uploads.append("t", DIGEST, offset, b"4")

    def test_bytes_of_another_digest_of_which_nothing_is_kept(self, uploads: Uploads, tmp_path: Path) -> None:
        uploads.begin("t", DIGEST, listing(FILES))
        uploads.append("t", DIGEST, 0, b"0123456789abcdeX")
        with pytest.raises(DataChanged), uploads.finish("t", DIGEST):
            pass
        assert list((tmp_path / "uploads").iterdir()) == []

    def test_an_upload_that_was_never_begun(self, uploads: Uploads) -> None:
        with pytest.raises(NotFound):
            uploads.append("t", DIGEST, 0, b"0")
        with pytest.raises(NotFound), uploads.finish("t", DIGEST):
            pass

    def test_more_parts_than_any_honest_client_needs(self, uploads: Uploads) -> None:
        uploads.begin("t", DIGEST, [DataFile("a.jsonl", 2000)])
        with pytest.raises(RequestError, match="1000 parts"):
            for offset in range(2000):
                uploads.append("t", DIGEST, offset, b"x")

    @pytest.mark.parametrize(
        "name", ["../a.jsonl", "/a.jsonl", "a/b.jsonl", "a\\b.jsonl", "..", "", "a\0.jsonl", "\ud800.jsonl", "x" * 300]
    )
    def test_names_that_lead_elsewhere(self, uploads: Uploads, name: str) -> None:
        with pytest.raises(RequestError):
            uploads.begin("t", DIGEST, [DataFile(name, 1)])

    @pytest.mark.parametrize("digest", ["", "../x", "A" * 64, "0" * 63, "0" * 65])
    def test_a_digest_that_is_none(self, uploads: Uploads, digest: str) -> None:
        with pytest.raises(RequestError):
            uploads.begin("t", digest, listing(FILES))

    @pytest.mark.parametrize(
        "files",
        [
            [],
            [DataFile("a.jsonl", 0)],
            [DataFile("a.jsonl", -1)],
            [DataFile("b.jsonl", 1), DataFile("a.jsonl", 1)],
            [DataFile("a.jsonl", 1), DataFile("a.jsonl", 1)],
            [DataFile(f"{n:05}.jsonl", 1) for n in range(1001)],
        ],
    )
    def test_a_listing_that_can_be_no_data_set(self, uploads: Uploads, files: Sequence[DataFile]) -> None:
        with pytest.raises(RequestError):
            uploads.begin("t", DIGEST, files)

    def test_more_bytes_than_the_disk_has(self, uploads: Uploads) -> None:
        with pytest.raises(DiskFull):
            uploads.begin("t", DIGEST, [DataFile("a.jsonl", 1 << 60)])

    def test_another_teams_upload(self, uploads: Uploads) -> None:
        uploads.begin("t", DIGEST, listing(FILES))
        uploads.append("t", DIGEST, 0, b"0123")
        assert uploads.begin("u", DIGEST, listing(FILES)) == 0


def test_an_upload_that_was_killed_while_it_was_kept_is_finished_again(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    uploads.begin("t", DIGEST, listing(FILES))
    uploads.append("t", DIGEST, 0, b"0123456789abcdef")
    with pytest.raises(ZeroDivisionError), uploads.finish("t", DIGEST) as sealed:
        assert (sealed / "files" / "a.jsonl").exists()
        raise ZeroDivisionError
    assert uploads.begin("t", DIGEST, listing(FILES)) == 16
    with uploads.finish("t", DIGEST) as sealed:
        assert read_manifest(sealed, verify=True)
