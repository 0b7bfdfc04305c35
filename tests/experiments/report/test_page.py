"""Figure, page and files of a report: well formed, self-contained, safe with any name, and the same every time."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from mlxzo.core import events
from mlxzo.core.errors import ConfigError
from mlxzo.experiments.report import figures
from mlxzo.experiments.report.html import page
from mlxzo.experiments.report.summary import ComparisonReport
from mlxzo.experiments.report.write import write_report
from tests.experiments.report.recorded import failed, finished, probed, record, story

NASTY = '<script>alert("x")</script> & $x_1$ \x1b[31m 中文'
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    told = {
        NASTY: finished(story([0.5, 0.6, 0.7], test=0.7)),
        "_b by bp": finished(story([0.5, 0.7, 0.8], test=0.8)),
        "too large": failed([], "Does not fit", f"it needs {NASTY}", 3, 3_100_000_000),
        "to come": None,
    }
    runs = [
        record(root, name, seed, each, memory_cap="2GB", method="bp" if "bp" in name else "mezo")
        for name, each in told.items()
        for seed in (0, 1)
    ]
    return ComparisonReport.of("a <comparison>", runs, [probed("a <model>", 0.9)])


@pytest.fixture(scope="module")
def drawn(report):
    return figures.draw(report)


@pytest.fixture(scope="module")
def text(report, drawn):
    return page(report, drawn, "contestants:\n  - <b>")


class Tags(HTMLParser):
    """The elements of a page, checked to be closed in the order in which they were opened."""

    VOID = ("meta", "br", "!doctype")

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def shown(text):
    """A name as it may be shown: without what a terminal or a page would obey."""
    return text.replace("\x1b", "\N{REPLACEMENT CHARACTER}")


def test_the_figure_names_every_contestant_as_text_and_draws_those_that_trained(drawn):
    root = ElementTree.fromstring(drawn.svg())
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    for number, name in enumerate((NASTY, "_b by bp", "too large", "to come"), 1):
        assert f"{number}  {shown(name)}" in texts
    # The lines of the two that trained are named once more, in the legend.
    assert texts.count(f"1  {shown(NASTY)}") == 2 and texts.count("4  to come") == 1
    assert "does not fit: needs 3.1 GB" in texts and "not run" in texts
    assert any("majority class: 52.0 %" in text for text in texts)
    assert any("zero-shot, smollm2-135m: 50.0 %" in text for text in texts)
    assert "5  ridge probe, a <model> on test: 90.0 %" in texts


@pytest.mark.parametrize(("metric", "value"), [("loss", 3.2), ("reward", 0.464)])
def test_a_metric_that_is_no_share_is_drawn_as_it_is(tmp_path, metric, value):
    """A reward was drawn times 100 with a percent sign; a loss of 3.2 must not stand as 320 %."""
    told = [
        dataclasses.replace(event, metric=metric, value=value - event.step / 100)
        if isinstance(event, events.Evaluated)
        else event
        for event in story([0.5, 0.6, 0.7])
    ]
    svg = figures.draw(ComparisonReport.of("x", [record(tmp_path, "a", 0, finished(told))])).svg()
    root = ElementTree.fromstring(svg)
    legend = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    assert f"zero-shot, smollm2-135m: {value:.3f}" in legend and not any("majority" in text for text in legend)
    axis = root.find(f".//{SVG}g[@id='matplotlib.axis_2']")
    *ticks, label = ("".join(node.itertext()) for node in axis.iter(f"{SVG}text"))
    assert label == f"validation {metric}" and all(value - 0.1 < float(tick) < value + 0.1 for tick in ticks)


def test_contestants_differ_in_more_than_colour(drawn):
    root = ElementTree.fromstring(drawn.svg())
    dashed, markers = {}, {}
    for node in root.iter(f"{SVG}path"):
        style = node.get("style", "")
        colour = next((colour for colour in ("#0072b2", "#d55e00") if f"stroke: {colour}" in style), None)
        if colour and "stroke-width: 1.7" in style:
            dashed[colour] = "stroke-dasharray" in style
        elif colour and node.get("id"):
            markers[colour] = node.get("d")
    # MeZO's line is whole and backpropagation's dashed.
    assert dashed == {"#0072b2": False, "#d55e00": True}
    assert len(markers) == len(set(markers.values())) == 2


def test_a_theme_leaves_none_of_the_colours_that_stand_in_for_it(drawn, text):
    dark_theme = figures.Theme("#e8e8e8", "#4a4a4a", "#16181c")
    dark, in_page = drawn.svg(dark_theme), text[text.index("<svg") : text.index("</svg>")]
    for figure in (dark, in_page):
        assert not re.search("#1a1a1b|#c4c4c5|#fffffe|#000000|#ffffff", figure)
    assert dark_theme.paper in dark and "var(--ink)" in in_page


def test_the_same_runs_give_the_same_bytes(report, drawn):
    assert figures.draw(ComparisonReport.of(report.name, report.runs, report.probed)) == drawn
    assert drawn.png.startswith(b"\x89PNG")


def test_the_page_is_well_formed_and_refers_to_nothing_outside(text):
    tags = Tags(text)
    kinds = {tag for tag, _ in tags.found}
    assert {"svg", "table", "figure"} <= kinds
    assert not kinds & {"script", "link", "img", "iframe", "object", "image", "use-external"}
    for _, attributes in tags.found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", text)
    # Names of XML vocabularies are the only addresses.
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_every_name_sentence_and_figure_as_text(report, text):
    words = "\n".join(Tags(text).words)
    assert words.count(shown(NASTY)) >= 3 and "<script" not in text and "\x1b" not in text
    for expected in (
        f"it needs {shown(NASTY)}",
        "- <b>",
        "weights 540.0 MB",
        "70.0 %",
        "a <comparison>",
        shown(report.verdict()),
    ):
        assert expected in words


def test_markup_in_the_name_the_options_and_the_configuration_of_a_user_stays_text(tmp_path):
    script = "<script>alert(1)</script>"
    run = record(tmp_path, script, 0, finished(story([0.5, 0.6])), model=f"{script}m", memory_cap="2GB")
    found = ComparisonReport.of(f"</title>{script}", [run])
    text = page(found, figures.draw(found), f"# a note of mine </pre>{script}\n")
    assert "<script" not in text and text.count("</title>") == 2
    words = "\n".join(Tags(text).words)
    assert f"</title>{script}" in words and f"# a note of mine </pre>{script}" in words


def test_the_files_of_a_report_are_replaced_whole(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        write_report(report, folder, "name: x\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.json",
        "comparison.yaml",
        "figure.png",
        "figure.svg",
        "report.html",
        "runs.csv",
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the report cannot be written"):
        write_report(report, tmp_path / "file")


def test_a_report_of_nothing_but_runs_to_come_is_a_report(tmp_path):
    found = ComparisonReport.of("x", [record(tmp_path, "a", 0, None)])
    text = page(found, figures.draw(found), "")
    assert "No contestant has finished a run." in text and "nothing trained yet" in text


def test_nothing_of_a_report_imports_mlx():
    import subprocess
    import sys

    program = (
        "import sys\n"
        "from mlxzo.core import run_history\n"
        "from mlxzo.experiments.report import figures, html, run_record, summary, tables, write\n"
        "sys.exit(', '.join({'mlx', 'mlx_lm', 'matplotlib', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
