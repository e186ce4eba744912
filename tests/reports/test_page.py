"""The page as a reader uses it, in a real browser."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, chromium
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.verdict import setting
from wesar_sweep.reports import write
from wesar_sweep.reports.html import render
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.layout import StudyDirectory

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: nobody uses the page"),
]

BRIGHT = """[...document.querySelectorAll('#loss-curves svg .mark-line path')]
    .filter((one) => Number(getComputedStyle(one).opacity) > 0.5).length"""
LINES = "document.querySelectorAll('#loss-curves svg .mark-line path').length"
PANEL = """(() => { const panel = document.getElementById('cell');
    return panel.hidden ? null : [...panel.querySelectorAll('tbody tr')]
        .map((row) => [...row.cells].map((cell) => cell.textContent)); })()"""

# Contrast of every visible text with what is painted behind it, the least first.
CONTRAST = """(() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const over = (colour, under) => {
    context.fillStyle = `rgb(${under.join(' ')})`; context.fillRect(0, 0, 1, 1);
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => element
    ? over(getComputedStyle(element).backgroundColor, behind(element.parentElement))
    : [255, 255, 255];
  const found = [];
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const element = words.currentNode.parentElement;
    const text = words.currentNode.textContent.trim();
    if (!text || element.closest('script, style') || !element.getClientRects().length) continue;
    if (element.closest('svg .mark-text') && !element.closest('[class*=role-axis], ' +
      '[class*=role-legend], [class*=role-title], [class*=header]')) continue;
    const style = getComputedStyle(element);
    const page = behind(element.closest('svg')?.parentElement ?? element);
    const ink = over(element.closest('svg') ? style.fill : style.color, page);
    const [high, low] = [luminance(ink), luminance(page)].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), text]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()"""


# What axe holds against the page, but for what it leaves to people to judge.
AXE = """axe.run(document, OPTIONS).then((found) => found.violations.map(
    (one) => [one.id, one.help, one.nodes[0].html.slice(0, 200)]))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def file(directory: StudyDirectory) -> Path:
    return write(directory)


@pytest.fixture
def page(browser: Browser, file: Path) -> Browser:
    browser.open(file)
    return browser


def a_lost_cell(analysis: Analysis) -> dict[str, Any]:
    """A cell of which some seeds diverged and some did not."""
    return next(
        row for row in analysis.cells.iter_rows(named=True) if 0 < row["diverged"] < row["n"]
    )


def test_a_cell_shows_its_runs_and_lets_go_of_them(page: Browser, analysis: Analysis) -> None:
    cell = a_lost_cell(analysis)
    place = f'[data-trial="{cell["trial"]}"] button'
    assert page.run(PANEL) is None
    all_lines = page.run(LINES)
    assert page.run(BRIGHT) == all_lines > 3
    page.click(place)
    rows = page.run(PANEL)
    assert [int(row[0]) for row in rows] == sorted(cell["seeds"])
    lost = {int(row[0]): row[4] for row in rows if row[1] == "diverged"}
    assert sorted(lost) == sorted(cell["diverged_seeds"]) and all(lost.values())
    page.run("new Promise((done) => setTimeout(done, 500))")
    assert page.run(BRIGHT) == 3
    for undo in (lambda: page.press("Escape"), lambda: page.click(place)):
        undo()
        page.run("new Promise((done) => setTimeout(done, 500))")
        assert page.run(PANEL) is None and page.run(BRIGHT) == all_lines
        page.run(f"document.querySelector({json.dumps(place)}).focus()")
        page.press("Enter")
        assert page.run(PANEL) == rows
    assert page.complaints == []


def test_a_page_of_500_runs_draws_offline_and_shows_a_cell(
    browser: Browser, many_runs: Analysis, tmp_path: Path
) -> None:
    assert many_runs.outcomes.height > 500
    file = tmp_path / "large.html"
    file.write_text(render(many_runs, provenance={}))
    before = len(browser.requests)
    browser.open(file)
    shown = "[...document.querySelectorAll('.chart')].filter((one) => one.checkVisibility())"
    drawn = browser.run(f"{shown}.map((one) => one.querySelectorAll('svg').length)")
    assert set(drawn) == {1} and len(drawn) > 3
    cell = a_lost_cell(many_runs)
    browser.click(f'[data-trial="{cell["trial"]}"] button')
    assert len(browser.run(PANEL)) == cell["n"] == 16
    browser.run("new Promise((done) => setTimeout(done, 500))")
    assert 0 < browser.run(BRIGHT) <= 16 < browser.run(LINES)
    assert browser.requests[before:] == [file.as_uri()] and browser.complaints == []


def test_a_setting_of_a_ranked_list_shows_its_runs(browser: Browser, tmp_path: Path) -> None:
    space = {"method": "he", "lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    study = lr_study(space=space, sampler={"name": "random", "cells": 4})
    asked = [{"method": "he", "lr": lr} for lr in (2.3e-4, 1.7e-3, 4.1e-3, 2.9e-2)]
    outcomes, curves = invent(study, asked)
    found = Analysis(study, outcomes_frame(outcomes), curves)
    file = tmp_path / "sampled.html"
    file.write_text(render(found, provenance={}))
    browser.open(file)
    browser.click("[data-trial] button", place=1)
    second = found.ranked.row(1, named=True)
    assert [int(row[0]) for row in browser.run(PANEL)] == second["seeds"]
    heading = browser.run("document.querySelector('#cell h3').textContent")
    assert heading == setting(second, study=study, layout=found.layout)
    browser.run("new Promise((done) => setTimeout(done, 500))")
    assert browser.run(BRIGHT) == 3 < browser.run(LINES)
    browser.press("Escape")
    assert browser.run(PANEL) is None and browser.complaints == []


def test_axe_finds_nothing_to_mend(page: Browser) -> None:
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.click("[data-trial] button")
    page.run((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    assert page.run(AXE.replace("OPTIONS", "{}")) == []
    # The control: it does look.
    page.run("document.querySelector('svg').removeAttribute('aria-label')")
    found = page.run(AXE.replace("OPTIONS", "{runOnly: ['svg-img-alt']}"))
    assert [one[0] for one in found] == ["svg-img-alt"]


def test_a_series_is_switched_off_in_every_chart_and_on_again(page: Browser) -> None:
    count = """['loss-against-axis', 'stability-map', 'loss-curves',
            'loss-and-update-ratios', 'loss-together', 'update-ratios-of-a-layer', 'norms']
        .map((id) => document.querySelectorAll(
            `#${id} svg :is(.mark-line, .mark-rect, .mark-symbol) path`).length)"""
    before = page.run(count)
    page.click('.switches input[value="he"]')
    page.run("new Promise((done) => setTimeout(done, 800))")
    after = page.run(count)
    assert all(few < many for few, many in zip(after, before, strict=True)), (before, after)
    page.click('.switches input[value="he"]')
    page.run("new Promise((done) => setTimeout(done, 800))")
    assert page.run(count) == before
    assert page.complaints == []


def test_a_switch_draws_the_loss_against_effective_lr(page: Browser) -> None:
    shown = """[...document.querySelectorAll('[aria-labelledby=part-loss] figure')].filter((one) =>
        one.checkVisibility() && one.querySelector('svg .mark-line path')).map((one) => one.id)"""
    before = page.run(shown)
    assert before[:2] == ["loss-against-axis", "loss-near-best"] and "loss-curves" in before
    page.click('.switches input[value="he"]')
    page.click('.choice input[value="effective lr"]')
    page.run("new Promise((done) => setTimeout(done, 1500))")
    effective = [f"{name}-effective-lr" for name in ("loss-against", "loss-near-best")]
    assert page.run(shown) == [*effective, *before[2:]]
    # What is drawn anew keeps what the reader switched off.
    lines = "document.querySelectorAll('#loss-against-effective-lr svg .mark-line path').length"
    assert page.run(lines) == 3
    page.press("ArrowUp")
    page.run("new Promise((done) => setTimeout(done, 1500))")
    assert page.run(shown) == before
    assert page.complaints == []


def test_tables_sort_numbers_as_numbers(page: Browser) -> None:
    # Values that words would put in another order.
    page.run("""document.querySelectorAll('[aria-labelledby=series] tbody tr').forEach(
        (row, i) => { row.cells[2].textContent = ['10.5 (9–11)', '–', '9.2', '1e-3'][i]; })""")
    column = """[...document.querySelectorAll('[aria-labelledby=series] tbody tr')]
        .map((row) => row.cells[2].textContent)"""
    head = "[aria-labelledby=series] thead th:nth-child(3)"
    page.click(f"{head} button")
    assert page.run(column) == ["1e-3", "9.2", "10.5 (9–11)", "–"]
    assert page.run(f"document.querySelector('{head}').ariaSort") == "ascending"
    page.click(f"{head} button")
    assert page.run(column) == ["10.5 (9–11)", "9.2", "1e-3", "–"]
    assert page.run(f"document.querySelector('{head}').ariaSort") == "descending"
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 1


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_both_themes(browser: Browser, file: Path, dark: bool) -> None:
    browser.open(file, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.click("[data-trial] button")
    found = browser.run(CONTRAST)
    assert len(found) > 500
    assert [one for one in found if one[0] < 4.5] == []


def test_what_is_printed_is_light_and_without_controls(browser: Browser, file: Path) -> None:
    browser.open(file, dark=True)
    browser.media(dark=True, kind="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("""[...document.querySelectorAll(
        '.switches, .metric, .hint, .vega-actions')].every((one) => !one.checkVisibility())""")
    assert all(ratio > 4.5 for ratio, _ in browser.run(CONTRAST))


def wait_until(page: Browser, condition: str) -> None:
    """Until an expression is true on the page; it fails after half a minute."""
    assert page.run(f"""new Promise((done) => {{
        const until = Date.now() + 30000;
        const look = () => ({condition}) ? done(true)
            : Date.now() > until ? done(false) : setTimeout(look, 50);
        look();
    }})"""), condition


def test_a_chosen_setting_is_kept_when_the_page_changes_its_width(page: Browser) -> None:
    chart = "document.querySelector('#loss-together .chart')"
    drawn = f"[...{chart}.querySelectorAll('.mark-line path')].map((one) => one.getAttribute('d'))"
    choice = f"{chart}.querySelector('select')"
    at_best = page.run(drawn)
    page.run(f"""{choice}.value = 'lr 1e-4';
        {choice}.dispatchEvent(new Event('input', {{bubbles: true}}));
        {choice}.dispatchEvent(new Event('change', {{bubbles: true}}))""")
    wait_until(
        page,
        f"JSON.stringify({drawn}) !== {json.dumps(json.dumps(at_best, separators=(',', ':')))}",
    )
    assert len(page.run(drawn)) == len(at_best)
    wide = page.run(f"{chart}.querySelector('svg').clientWidth")
    page.run("document.querySelector('main').style.maxWidth = '700px'")
    page.run("window.dispatchEvent(new Event('resize'))")
    wait_until(page, f"{chart}.querySelector('svg')?.clientWidth < {wide}")
    wait_until(page, f"{chart}.querySelector('select')?.value === 'lr 1e-4'")
    assert page.run(f"{choice}.value") == "lr 1e-4"
    assert page.complaints == []


def test_charts_and_tables_are_told_to_those_who_cannot_see_them(page: Browser) -> None:
    told = page.run("""[...document.querySelectorAll('figure:not([hidden]) .chart svg')]
        .map((one) => [one.getAttribute('role'), one.getAttribute('aria-label')])""")
    assert len(told) == page.run("document.querySelectorAll('figure:not([hidden])').length") > 5
    assert all(role == "img" and any(c.isdigit() for c in words) for role, words in told), told
    assert page.run("""[...document.querySelectorAll('th')]
        .every((one) => ['row', 'col'].includes(one.scope))""")
    # A chart's links to save it would be lost inside a picture.
    assert page.run("document.querySelectorAll('[role=img] a').length") == 0
    page.run("document.querySelector('[data-trial] button').focus()")
    page.press("Tab")
    outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
    assert page.run("document.activeElement.parentElement.className").startswith("cell")
    assert outline == "solid"
