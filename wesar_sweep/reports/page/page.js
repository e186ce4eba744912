"use strict";
// Draws the charts from the specifications in the page, each to the width it has; switches the
// figure that the matrix shows; shows the runs of a chosen cell; switches series on and off; sorts
// tables. Controls are made here, so that a page without scripts has none that do nothing. Asks for
// nothing outside the page.
(() => {
  const button = (parent) => {
    const made = document.createElement("button");
    made.type = "button";
    made.append(...parent.childNodes);
    parent.append(made);
    return made;
  };

  // What a table sorts by: the first number of a word, k/n as a rate, a dash after all numbers.
  const number = (text) => {
    const rate = text.match(/^\s*(\d+)\/(\d+)/);
    if (rate) return rate[1] / rate[2];
    const found = text.replace(/,(?=\d{3})/g, "").match(/-?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };
  const sortBy = (table, column, descending) => {
    const numeric = table.tHead.rows[0].cells[column].classList.contains("num");
    const key = (row) => row.cells[column].textContent.trim();
    const compare = (a, b) => {
      if (!numeric) return key(a).localeCompare(key(b)) * (descending ? -1 : 1);
      const [x, y] = [number(key(a)), number(key(b))];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return descending ? y - x : x - y;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  };
  for (const table of document.querySelectorAll(".sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    for (const [column, head] of heads.entries()) {
      button(head).addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sortBy(table, column, descending);
      });
    }
  }
  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;

  const matrix = document.querySelector(".matrix");
  const choice = document.querySelector(".metric");
  if (matrix && choice) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => { matrix.dataset.metric = event.target.value; });
  }

  // Parameters that every chart has: series switched off, and the trial of the chosen cell.
  const state = { hidden: [], picked: -1 };
  let charts = [];
  const set = async (name, value) => {
    state[name] = value;
    for (const chart of charts) if (chart.view) await chart.view.signal(name, value).runAsync();
  };

  const panel = document.getElementById("cell");
  const runs = JSON.parse(document.getElementById("runs")?.textContent ?? "{}");
  const show = (cell) => {
    const row = cell.parentElement;
    const head = row.closest("table").tHead.rows[0];
    const words = [head.cells[0], row.cells[0], head.cells[cell.cellIndex], cell];
    const [axis, series, value, setting] = words.map((one) => one.textContent.trim());
    // A list names the whole setting, the matrix by its margins.
    const name = matrix ? `${series}, ${axis} ${value}` : setting;
    panel.querySelector("h3").textContent = name;
    const body = panel.querySelector("tbody");
    body.replaceChildren();
    for (const head of panel.querySelectorAll("th")) head.removeAttribute("aria-sort");
    let drawn = 0;
    for (const [seed, status, loss, steps, reason, curve] of runs[cell.dataset.trial]) {
      const line = body.insertRow();
      const first = document.createElement("th");
      first.scope = "row";
      first.className = "num";
      first.textContent = seed;
      line.append(first);
      for (const word of [status, loss === null ? "–" : loss.toFixed(4), steps, reason]) {
        line.insertCell().textContent = word;
      }
      line.cells[2].className = line.cells[3].className = "num";
      drawn += curve;
    }
    panel.querySelector(".caption").textContent = drawn
      ? `${drawn} of ${body.rows.length} loss curves stand out in the figure of the training loss.`
      : "No loss curve of this cell is drawn.";
  };
  const pick = (cell) => {
    for (const one of document.querySelectorAll("[data-trial] > button")) {
      one.setAttribute("aria-pressed", one.parentElement === cell);
    }
    panel.hidden = !cell;
    if (cell) show(cell);
    set("picked", cell ? Number(cell.dataset.trial) : -1);
  };
  for (const cell of document.querySelectorAll("[data-trial]")) {
    const made = button(cell);
    made.setAttribute("aria-pressed", "false");
    made.addEventListener("click", () => {
      pick(made.getAttribute("aria-pressed") === "true" ? null : cell);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.picked >= 0) pick(null);
  });

  const switches = document.querySelector(".switches");
  if (switches) {
    switches.hidden = false;
    switches.addEventListener("change", () => {
      set("hidden", [...switches.querySelectorAll("input:not(:checked)")].map((one) => one.value));
    });
  }
  if (typeof vegaEmbed === "undefined") return;

  charts = [...document.querySelectorAll(".chart")].map((element) => ({
    element,
    text: document.getElementById(element.dataset.spec).textContent,
    width: 0,
    view: null,
  }));

  // Panels have no width of their own: as many columns as fit, each as wide as what is left.
  const panelWidth = (part, width) => {
    if (part.vconcat) for (const one of part.vconcat) panelWidth(one, width);
    else part.width = width;
  };
  const fitted = ({ text, view }, width) => {
    const spec = JSON.parse(text);
    for (const param of spec.params) {
      if (param.name in state) param.value = state[param.name];
      else if (view) param.value = view.signal(param.name);
    }
    spec.config.legend.columns = Math.max(1, Math.floor(width / 190));
    if (spec.facet) {
      spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(width / 230)));
      const axis = 70;
      spec.spec.width = Math.floor((width - axis) / spec.columns) - 24;
    } else if (spec.concat) {
      // No row may break off inside a group of 4 panels.
      while (spec.columns > 1 && width / spec.columns < 250) spec.columns = spec.columns === 4 ? 2 : spec.columns - 1;
      const axis = 75;
      for (const part of spec.concat) panelWidth(part, Math.floor(width / spec.columns) - axis);
    } else {
      spec.width = width - 4;
      if (width < 480 && spec.height > 260) spec.height = Math.max(260, spec.height * 0.85);
    }
    return spec;
  };

  const draw = async (chart) => {
    const width = chart.element.clientWidth;
    if (!width || Math.abs(width - chart.width) < 8) return;
    chart.width = width;
    const spec = fitted(chart, width);
    if (chart.view) chart.view.finalize();
    try {
      const embedded = await vegaEmbed(chart.element, spec, {
        mode: "vega-lite",
        renderer: "svg",
        defaultStyle: false,
        // Expressions are interpreted, so that the page needs no permission to evaluate text.
        ast: true,
        actions: { export: true, source: false, compiled: false, editor: false },
        i18n: { SVG_ACTION: "SVG", PNG_ACTION: "PNG" },
        downloadFileName: chart.element.dataset.spec.replace("spec-", ""),
      });
      chart.view = embedded.view;
      // One picture with one description: its marks are too many to be read out.
      const svg = chart.element.querySelector("svg");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", embedded.spec.description);
      for (const mark of svg.querySelectorAll("[role], [aria-label]")) {
        for (const told of ["role", "aria-label", "aria-roledescription"]) mark.removeAttribute(told);
      }
    } catch (error) {
      chart.element.textContent = `This chart could not be drawn: ${error.message}`;
    }
  };

  const drawAll = async () => {
    for (const chart of charts) {
      await draw(chart);
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.documentElement.dataset.drawn = "true";
  };
  drawAll();
  for (const choice of document.querySelectorAll(".choice")) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => {
      for (const figure of choice.parentElement.querySelectorAll("[data-choice]")) {
        figure.hidden = figure.dataset.choice !== event.target.value;
      }
      // What was hidden had no width, and was not drawn.
      drawAll();
    });
  }
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(drawAll, 200);
  });
})();
