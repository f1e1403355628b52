"""The page: needs nothing beside itself, links to what is there, and cannot be broken by what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import REPOSITORY
from tests.report.conftest import report_of
from tests.report.finished_run import FinishedRun


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside of style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text.append(data)


def page_of(made: FinishedRun) -> str:
    report_of(made)
    return (made.models / "report.html").read_text("utf-8")


def test_nothing_is_loaded_from_anywhere(finished: FinishedRun) -> None:
    page = page_of(finished)
    loading = {"script", "img", "iframe", "object", "embed", "audio", "video", "source", "use", "image", "base"}
    tags = Tags(page).tags
    assert not [tag for tag, _ in tags if tag in loading]
    assert [attributes["href"] for tag, attributes in tags if tag == "link"] == ["data:,"]
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_every_link_leads_to_a_file_or_a_section(finished: FinishedRun) -> None:
    tags = Tags(page_of(finished)).tags
    ids = {attributes["id"] for _, attributes in tags if attributes.get("id")}
    links = [str(attributes["href"]) for tag, attributes in tags if tag == "a"]
    assert len(links) > 50
    for link in links:
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert not urlsplit(link).scheme
            assert (finished.models / unquote(link)).exists(), link


def test_links_lead_there_from_another_place_too(finished: FinishedRun, tmp_path: Path) -> None:
    place = tmp_path / "with space" / "page.html"
    report_of(finished, report_out=str(place))
    tags = Tags(place.read_text("utf-8")).tags
    links = [str(attributes["href"]) for tag, attributes in tags if tag == "a"]
    missing = [link for link in links if link[0] != "#" and not (place.parent / unquote(link)).exists()]
    assert not missing


def test_every_figure_of_the_evaluation_stands_on_the_page(finished: FinishedRun) -> None:
    text = " ".join(Tags(page_of(finished)).text)
    evaluation = json.loads(finished.sub("evaluation.json").read_text("utf-8"))
    wanted = [f"{evaluation['scores'][name]['value']:.4f}" for name in ("log_loss",)]
    wanted += [f"{entry['log_loss']['value']:.4f}" for some in evaluation["slices"].values() for entry in some]
    wanted += [f"{evaluation['calibration'][part]['ece']:.4f}" for part in ("before", "after")]
    wanted += [f"{entry['log_loss']:.4f}" for entry in evaluation["tta"]]
    assert not [number for number in wanted if number not in text]


def test_every_chart_says_what_it_shows(finished: FinishedRun) -> None:
    charts = re.findall(r"<svg[^>]*role=\"img\"[^>]*>.*?</svg>", page_of(finished), re.DOTALL)
    assert len(charts) > 40
    assert all("aria-label=" in chart and "<title>" in chart for chart in charts)
    assert not [chart for chart in charts if "nan" in chart or "inf%" in chart]


def test_no_python_shows_through(finished: FinishedRun) -> None:
    text = " ".join(Tags(page_of(finished)).text)
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|Figure\(|\{\{|\}\}|<bound method", text)


def test_headings_go_down_one_level_at_a_time(finished: FinishedRun) -> None:
    levels = [int(tag[1]) for tag, _ in Tags(page_of(finished)).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_names_with_markup_are_shown_as_they_are(spoilt: FinishedRun) -> None:
    hostile = '<script>alert("x")</script> & more'
    path = spoilt.sub("evaluation.json")
    document = json.loads(path.read_text("utf-8"))
    document["slices"]["source"] = [{**document["slices"]["length"][0], "slice": hostile}]
    document["notes"] = [f"note: {hostile}"]
    path.write_text(json.dumps(document))
    tags = Tags(page_of(spoilt))
    assert "script" not in [tag for tag, _ in tags.tags]
    assert any(hostile in text for text in tags.text)


def test_the_same_files_make_the_same_bytes(finished: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    first = page_of(finished)
    written = (finished.models / "report.html").stat().st_mtime_ns
    capsys.readouterr()
    assert page_of(finished) == first
    assert "report.html: up to date" in capsys.readouterr().out
    assert (finished.models / "report.html").stat().st_mtime_ns == written


def test_a_report_that_was_cut_off_is_written_again(spoilt: FinishedRun) -> None:
    whole = page_of(spoilt)
    for name in ("report.html", "report.json"):
        path = spoilt.models / name
        path.write_bytes(path.read_bytes()[:5_000])
        report_of(spoilt)
        assert (spoilt.models / "report.html").read_text("utf-8") == whole
        json.loads((spoilt.models / "report.json").read_text("utf-8"))


def test_the_worker_writes_it_and_needs_no_torch(spoilt: FinishedRun) -> None:
    code = (
        "import sys; sys.argv = sys.argv[1:]; import runpy\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(sorted({'torch', 'transformers', 'matplotlib'} & sys.modules.keys()))"
    )
    worker = REPOSITORY / "scripts" / "report.py"
    words = [sys.executable, "-c", code, str(worker), "--run", spoilt.run, "--output-dir", str(spoilt.root)]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ), cwd=spoilt.root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (spoilt.models / "report.html").is_file()
