"""The write-ahead log on full and failing disks, and under kill -9."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consensus.errors import LogError, LogFull, LogUnavailable
from consensus.wal import Wal
from tests.consensus.wal_files import files, opened, read_all, replace_open_file


def fill_up(wal: Wal, size: int) -> int:
    """Appends until the log is full; returns the last index that was acknowledged."""
    last = 0
    try:
        while True:
            last = wal.append([bytes(size)])
    except LogFull:
        return last


@pytest.mark.parametrize("segment_bytes", [64 * 1024, 10**9], ids=["many segments", "one segment"])
def test_a_full_disk_costs_only_what_did_not_fit(small_disk: Path, segment_bytes: int) -> None:
    with opened(small_disk / "wal", segment_bytes) as wal:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(300 * 1024))
        last = fill_up(wal, 30_000)
        assert wal.commit == last
        with pytest.raises(LogFull):
            wal.append([bytes(30_000), b"small"])
        assert len(read_all(wal)) == last
        ballast.unlink()
        assert wal.append([b"room again"]) == last + 1
    with opened(small_disk / "wal", segment_bytes) as wal:
        assert read_all(wal) == [bytes(30_000)] * last + [b"room again"]


def test_a_full_disk_does_not_keep_the_log_from_opening(small_disk: Path) -> None:
    with opened(small_disk / "wal", 64 * 1024) as wal:
        last = fill_up(wal, 5000)
    (small_disk / "ballast").write_bytes(bytes(free_bytes(small_disk)))
    with opened(small_disk / "wal", 64 * 1024) as wal:
        assert len(read_all(wal)) == last


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def test_no_room_for_a_new_log(small_disk: Path) -> None:
    (small_disk / "wal").mkdir()
    (small_disk / "wal" / "ballast").write_bytes(bytes(free_bytes(small_disk)))
    with pytest.raises(LogFull):
        Wal.open(small_disk / "wal")
    (small_disk / "wal" / "ballast").unlink()
    with opened(small_disk / "wal") as wal:
        assert wal.append([b"x"]) == 1


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


OVER_THE_FILE_SIZE = """
import resource, shutil, sys
from pathlib import Path
from consensus.errors import LogFull
from consensus.wal import Wal
wal = Wal.open(Path(sys.argv[1]), segment_bytes=10**9)
wal.append([b"before"])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for payloads in ([bytes(30_000)], [bytes(10_000), bytes(15_000)]):
    try:
        wal.append(payloads)
    except LogFull as error:
        print(error)
shutil.copytree(sys.argv[1], sys.argv[1] + "-full")
print(wal.append([b"after"]))
"""


def test_a_limit_on_file_sizes_counts_as_a_full_disk(tmp_path: Path) -> None:
    said = run(OVER_THE_FILE_SIZE, str(tmp_path / "wal")).stdout.splitlines()
    assert [line.startswith("no room in") for line in said] == [True, True, False]
    assert said[-1] == "2"
    with opened(tmp_path / "wal") as wal:
        assert read_all(wal) == [b"before", b"after"]
    with opened(tmp_path / "wal-full") as wal:
        assert read_all(wal) == [b"before"]


@pytest.mark.parametrize(
    ("device", "what"),
    [("/dev/null", "cannot sync"), ("/dev/full", "cannot cut"), ("/proc/self/maps", "cannot write")],
    ids=["sync", "cut back", "write"],
)
def test_a_disk_that_fails_ends_the_log_for_good(tmp_path: Path, device: str, what: str) -> None:
    """A device in the place of the file: its writes cannot be synced, or cut back when it is full, or happen at all."""
    with opened(tmp_path / "wal") as wal:
        wal.append([b"x"])
        replace_open_file(files(tmp_path / "wal")[0], device)
        for _ in range(2):
            with pytest.raises(LogUnavailable, match=f"{what} .*failed for good"):
                wal.append([b"y"])
        assert read_all(wal) == [b"x"]
        with pytest.raises(LogUnavailable, match="failed for good"):
            wal.trim(1)
    with opened(tmp_path / "wal") as wal:
        assert read_all(wal) == [b"x"]
        assert wal.append([b"z"]) == 2


def test_a_closed_log_refuses_and_closing_twice_is_fine(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "wal")
    wal.close()
    wal.close()
    with pytest.raises(LogUnavailable, match="closed"):
        wal.append([b"x"])


def test_a_folder_that_cannot_be_made_is_an_error_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="cannot open"):
        Wal.open(tmp_path / "file" / "wal")


APPEND_AND_TELL = """
import sys
from pathlib import Path
from consensus.wal import Wal
wal = Wal.open(Path(sys.argv[1]), segment_bytes=20_000)
while True:
    payloads = [b"%d " % number * 60 for number in range(wal.commit + 1, wal.commit + 6)]
    wal.append(payloads)
    print(wal.commit, flush=True)
"""


def test_killed_at_any_moment_it_holds_every_acknowledged_entry(tmp_path: Path) -> None:
    acknowledged = 0
    for lines in (1, 7, 40, 111, 23):
        with subprocess.Popen(
            [sys.executable, "-c", APPEND_AND_TELL, str(tmp_path / "wal")], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        with opened(tmp_path / "wal") as wal:
            assert wal.commit >= acknowledged
            assert read_all(wal) == [b"%d " % number * 60 for number in range(1, wal.commit + 1)]
