import io
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
import vl_convert
from invented_study import invent, lr_study
from typer.testing import CliRunner

import wesar_sweep as ws
from wesar_sweep.analysis import Analysis
from wesar_sweep.cli import app
from wesar_sweep.errors import ConfigError
from wesar_sweep.reports import latex, write_figures, write_tables
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.tables import Table
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.layout import StudyDirectory

LATEX = shutil.which("pdflatex") or shutil.which("tectonic")
HOSTILE = r"a%b_c&d#e\f{g}h^i~j$k[l]*m--n`o<p>q|r" + '"s σ² ± −1 4e-5 中 é'


def test_a_figure_is_a_file_of_each_format(analysis: Analysis, tmp_path: Path) -> None:
    for form, head in (("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        out = tmp_path / f"x.{form}"
        assert write_figures(analysis, name="stability-map", out=out, format=form) == out
        assert out.read_bytes().startswith(head)


def test_themes_differ_in_paper_and_ink(analysis: Analysis, tmp_path: Path) -> None:
    found = {}
    for theme in ("light", "dark"):
        out = tmp_path / f"{theme}.svg"
        write_figures(analysis, name="norms", out=out, theme=theme)  # type: ignore[arg-type]
        found[theme] = out.read_text()
    assert 'fill="#ffffff"' in found["light"] and 'fill="#1d2430"' in found["light"]
    assert 'fill="#12161c"' in found["dark"] and 'fill="#e6eaf0"' in found["dark"]
    assert 'fill="#1d2430"' not in found["dark"]


def test_no_word_is_black_on_the_dark_paper(analysis: Analysis, tmp_path: Path) -> None:
    """The map's legend has a title, whose colour Vega leaves black unless told."""
    out = tmp_path / "map.svg"
    write_figures(analysis, name="stability-map", out=out, theme="dark")
    assert "divergence rate" in out.read_text()
    assert not re.search(r'<text[^>]*fill="(#000|black)', out.read_text())


def test_all_figures_and_all_tables_fill_a_folder(analysis: Analysis, tmp_path: Path) -> None:
    write_figures(analysis, name="all", out=tmp_path / "f")
    assert {path.stem for path in (tmp_path / "f").glob("*.svg")} == {
        figure.name for figure in figures(analysis)
    }
    names = {table.name for table in tables(analysis)}
    wanted = {"matrix", "paper", "series", "cells", "stability-boundary", "runs", "spikes", "cost"}
    assert names >= wanted
    for form, end in (("md", "md"), ("csv", "csv"), ("latex", "tex")):
        write_tables(analysis, name="all", out=tmp_path / form, format=form)
        extra = {"all"} if form == "latex" else set()
        assert {path.stem for path in (tmp_path / form).glob(f"*.{end}")} == names | extra


def test_an_unknown_name_is_answered_with_those_of_this_study(tmp_path: Path) -> None:
    study = lr_study(space={"method": ["he", "small"]})
    found = Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))
    with pytest.raises(ConfigError, match=r"no such figure(.|\n)*none: no run"):
        write_figures(Analysis(study, found.raw_outcomes.clear()), name="norms", out=tmp_path / "x")
    with pytest.raises(ConfigError, match=r"'matrx'(.|\n)*allowed: matrix, paper, series"):
        write_tables(found, name="matrx", out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_beside_the_results(directory: StudyDirectory, tmp_path: Path) -> None:
    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["report", str(directory.root), *words])
        return done.exit_code, done.output if done.exception is None else str(done.exception)

    code, said = call("--table", "paper", "--format", "latex")
    assert (code, said.strip()) == (0, str(directory.root / "tables" / "paper.tex"))
    out = str(tmp_path / "x.svg")
    assert call("--figure", "norms", "--theme", "dark", "--out", out) == (0, out + "\n")
    assert "allowed: loss-against-axis" in call("--figure", "nroms")[1]
    assert "allowed: svg, png, pdf" in call("--figure", "norms", "--format", "md")[1]
    assert call("--figure", "norms", "--table", "runs")[0] == 2
    assert call("--metric", "ppl")[0] == 2
    assert "with matrix and paper alone" in call("--table", "series", "--metric", "ppl")[1]


def test_python_has_every_chart_and_every_table(directory: StudyDirectory) -> None:
    result = ws.open_result(directory.root)
    drawn = result.figures()["loss-against-axis"]
    assert vl_convert.vegalite_to_svg(drawn.to_dict()).startswith("<svg")
    frames = result.tables(metric="bpb")
    grid, cells = frames["matrix"], frames["cells"]
    lrs = "1e-4 3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 3e-1"
    assert " ".join(grid.columns) == f"series {lrs}"
    he = cells.filter((pl.col("series") == "he") & (pl.col("lr") == 3e-3))
    assert grid.filter(pl.col("series") == "he")["3e-3"].to_list() == he["bpb"].to_list()
    assert frames["series"]["series"].n_unique() == 4
    assert frames["runs"].height == 96
    back = pl.read_csv(io.StringIO(frames["paper"].write_csv()))
    assert back["loss"].to_list() == frames["paper"]["loss"].to_list()


def test_the_paper_layout_has_sigma2_down_lr_across_and_counts_beneath(analysis: Analysis) -> None:
    (found,) = (table for table in tables(analysis) if table.name == "paper")
    table = found.table
    assert table.columns[:2] == ("method", "σ²") and table.over == ("lr", 2)
    assert [row[:2] for row in table.rows[::2]] == [
        ("small", "–"),
        ("he", "–"),
        ("wesar", "4e-5"),
        ("wesar", "1e-3"),
    ]
    small = analysis.cells.filter(pl.col("series") == "small").sort("lr")
    assert table.rows[0][2] == f"{small['ppl'][0]:.2f}"
    counts = [f"{k}/{n}" for k, n in small.select("diverged", "n").rows()]
    assert list(table.rows[1][2:]) == counts
    ((y, x),) = table.strong
    best = analysis.ranked.row(0, named=True)
    assert float(table.rows[y][x]) == pytest.approx(best["ppl"], abs=0.01)
    text = latex.table(table, name="paper", caption="c")
    assert r"\cmidrule(lr){3-10}" in text and r"& & \multicolumn{8}{c}{lr} \\" in text
    assert text.count(r"\textbf{") == 1


def test_latex_escapes_every_special_sign() -> None:
    assert latex.escape(HOSTILE) == (
        r"a\%b\_c\&d\#e\textbackslash{}f\{g\}h\textasciicircum{}i\textasciitilde{}j\$k{[}l]{*}m"
        r"-{}-n\textasciigrave{}o\textless{}p\textgreater{}q\textbar{}r''s "
        r"\ensuremath{\sigma}\ensuremath{^{2}} \ensuremath{\pm} \ensuremath{-}1 "
        r"\ensuremath{4 \times 10^{-5}} \texttt{U+4E2D} é"
    )
    assert latex.escape("---") == "-{}-{}-"
    assert latex.escape("1e-3, -0.5 and 3/3 (0.1–0.2)") == (
        r"\ensuremath{10^{-3}}, \ensuremath{-0.5} and 3/3 (0.1--0.2)"
    )
    bar = "\u0304"
    assert latex.escape(f"W{bar} a{bar} 1{bar}") == r"\ensuremath{\bar{W}} ā 1\texttt{U+0304}"
    assert latex.escape("run-1 v1e5x a1e-3") == "run-1 v1e5x a1e-3"


def test_rows_of_latex_have_equal_cells_and_only_known_signs(
    analysis: Analysis, tmp_path: Path
) -> None:
    write_tables(analysis, name="all", out=tmp_path, format="latex")
    for path in tmp_path.glob("*.tex"):
        text = path.read_text()
        assert text.isascii()
        assert text.count("\\begin{") == text.count("\\end{")
        lines = [line for line in text.splitlines() if line.endswith(r" \\")]
        cells = {len(re.findall(r"(?<!\\)&", line)) for line in lines if "multicolumn" not in line}
        assert len(cells) <= 1
    assert "longtable" in (tmp_path / "runs.tex").read_text()


@pytest.mark.skipif(LATEX is None, reason="neither pdflatex nor tectonic: LaTeX is not compiled")
def test_a_latex_engine_compiles_every_table(analysis: Analysis, tmp_path: Path) -> None:
    assert LATEX is not None
    write_tables(analysis, name="all", out=tmp_path, format="latex")
    hostile = Table((HOSTILE, "x"), ((HOSTILE, "[1]"), ("[2]", "*")), (False, True))
    text = latex.table(hostile, name="hostile", caption=HOSTILE)
    (tmp_path / "hostile.tex").write_text(text)
    (tmp_path / "whole.tex").write_text(latex.document(["hostile", "paper", "matrix", "runs"]))
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in LATEX else []
    done = subprocess.run(
        [LATEX, *options, "whole.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
