import dataclasses
import json
from pathlib import Path

from bench import report
from bench.cases import QUICK, Case, Measurement
from bench.load import Load
from bench.memory import MemoryUse
from bench.report import Machine, Outcome

MACHINE = Machine("a processor", 2, 8_000_000_000, "6.1", "3.11", 1e9, 0.1)
CASE = Case("pulls", "MB/s", lambda server, number: Load(0, 0, 1.0), goal=3.0)


def outcome(ours: list[float], theirs: list[float], grown_bytes: int = 0) -> Outcome:
    measurements = [
        Measurement("pulls", name, number, value, 1.0, 2.0, 10, 1_000_000_000, 0.5)
        for name, values in (("meridian", ours), ("docker-registry", theirs))
        for number, value in enumerate(values)
    ]
    used = MemoryUse("meridian", 16, 1 << 30, 50_000_000, 50_000_000 + grown_bytes, 10, 1.0, 1.0)
    versions = {"meridian": "1", "docker-registry": "2"}
    return Outcome("make bench", "2026-01-01", MACHINE, versions, QUICK, [CASE], measurements, [used])


def test_a_ratio_is_of_medians() -> None:
    found = outcome([900.0, 300.0, 310.0], [100.0, 1.0, 101.0])
    assert found.ratio(CASE) == 3.1
    assert found.missed() == []
    assert "| pulls | MB/s | 310 | 100 |  | **3.1x** | 3x |" in report.as_page(found)


def test_missed_goals_are_named() -> None:
    found = outcome([299.0], [100.0], grown_bytes=100_000_000)
    assert found.missed() == [
        "pulls: 2.99x docker-registry, the goal is 3x",
        "memory grew by 100 MB, the goal is 100 MB",
    ]
    assert all(each in report.as_page(found) for each in found.missed())


def test_a_case_without_a_baseline_has_no_ratio() -> None:
    found = outcome([299.0], [])
    assert found.ratio(CASE) is None
    assert found.missed() == []


def test_cpu_time_is_for_each_gigabyte_or_ten_thousand_requests() -> None:
    rounds = outcome([1.0, 1.0], []).measurements
    assert report.cost(rounds, "MB/s") == 0.5
    assert report.cost(rounds, "req/s") == 500.0


def test_the_numbers_behind_the_page_are_all_kept() -> None:
    found = outcome([1.0], [2.0])
    document = json.loads(report.as_json(found))
    assert document["measurements"] == [dataclasses.asdict(each) for each in found.measurements]
    assert document["memory"][0]["grown_bytes"] == 0


def test_a_section_of_another_program_is_replaced_and_kept(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text("# Title\n\n## Speed\n\nfast\n")
    report.replace_section(page, "Between regions", "far\n")
    report.replace_section(page, "Between regions", "near\n")
    assert page.read_text() == "# Title\n\n## Speed\n\nfast\n\n## Between regions\n\nnear\n"
    assert report.other_sections(page) == "\n## Between regions\n\nnear\n"
    assert report.other_sections(tmp_path / "none.md") == ""
