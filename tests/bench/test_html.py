"""The page of a run: whole, harmless, and complete."""

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from benchmark_run import RUN

from tiledattn.bench import html, plots, roofline, tables

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags in balance, texts of cells, and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.references, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "td" in self.open:
            self.cells[-1] += text


def test_every_case_is_there_and_a_wrong_one_has_no_speed():
    page = Page(html.page(RUN))
    for case in RUN["cases"]:
        assert case["case"] in page.cells
    at = [i for i, cell in enumerate(page.cells) if cell == "wrong"]
    # in the operation's table ours is "none" without a time; among all ways it is "wrong" with nothing beside
    assert page.cells[at[0] + 2 : at[0] + 7] == ["none", "", "", "", ""]
    listed = tables.ways_table(RUN, "attention")
    failed = next(row for row in listed.rows if row[0].text == "wrong" and row[3].text == "ours")
    assert [cell.text for cell in failed[4:]] == ["wrong", "", "", "", "", ""]
    assert "it errs by 1, more than 0" in html.page(RUN)


def test_the_fastest_way_is_bold():
    text = html.page(RUN)
    assert "<td><strong>2 ms</strong> ± 5%</td>" in text
    assert "<td><strong>0.5</strong></td>" in text


def test_nothing_is_loaded_from_elsewhere():
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    text = html.page(RUN)
    page = Page(text)
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert not {"script", "iframe", "object", "link", "img"} & set(page.tags)


def test_plots_of_ratios_roofline_and_scaling():
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    assert [plot.title for plot in plots.all_plots(RUN)] == ["attention", "Roofline", "Scaling with canvas area"]
    text = html.page(RUN)
    assert text.count("<svg") == 3
    # every colour is a variable that the page sets twice, for light and for dark
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert all(text.count(f"{name}:") == 2 for name in used)
    assert not re.search(r"(fill|stroke): #", text)


def test_a_plot_is_a_file_of_its_own():
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    for plot in plots.all_plots(RUN):
        root = ElementTree.fromstring(plots.standalone(plot))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("aria-label").startswith(plot.title)
        style = root.find("{http://www.w3.org/2000/svg}style").text
        assert all(f"{name}:" in style for name in re.findall(r"var\((--[\w-]+)\)", plot.svg))


def test_the_same_run_gives_the_same_plots():
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    assert plots.all_plots(RUN) == plots.all_plots(RUN)


def test_without_matplotlib_there_are_tables_and_a_line_that_says_so(monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    text = html.page(RUN)
    assert "<svg" not in text
    assert "the plots need matplotlib" in text.replace("&#x27;", "'")
    assert "small" in Page(text).cells


def test_matplotlib_is_not_imported_with_the_module():
    code = "import sys, tiledattn.bench.html; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_escaped():
    run = copy.deepcopy(RUN)
    evil = "<script>alert(1)</script>&\"'"
    run["cases"][0]["case"] = run["cases"][0]["rows"][2]["way"] = evil
    run["cases"][0]["rows"][3]["skipped"] = evil
    run["environment"]["device_name"] = run["command"] = run["limits"][0]["what"] = evil
    run["scaling"][0]["operation"] = run["scaling"][0]["note"] = evil
    text = html.page(run)
    assert "<script" not in text
    assert evil in Page(text).cells


def test_an_empty_run_is_a_page():
    assert Page(html.page({**RUN, "limits": [], "cases": [], "scaling": []})).cells == []


def test_the_file_is_whole_and_what_is_no_run_is_refused(tmp_path):
    html.write(RUN, tmp_path / "deep/run.html")
    Page((tmp_path / "deep/run.html").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="format: missing"):
        html.write({}, tmp_path / "none.html")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_points_and_roofs():
    (roof,) = roofline.roofs(RUN)
    assert roof.at(1.0) == 30e9
    assert roof.at(1e6) == 2e12
    found = roofline.points(RUN)
    # ours of each case, and the peer that wins; nothing of what failed but the peer that is left
    assert [(p.case, p.way) for p in found] == [
        ("small", "cpu"),
        ("lost", "cpu"),
        ("lost", "gather"),
        ("wrong", "gather"),
    ]
    assert found[0].intensity == 100
    assert found[0].rate == pytest.approx(5e11)


def test_no_roof_without_a_copy_and_no_point_without_bytes():
    run = copy.deepcopy(RUN)
    run["limits"].pop()
    for case in run["cases"]:
        case["least_bytes"] = 0.0
    assert roofline.roofs(run) == []
    assert roofline.points(run) == []
