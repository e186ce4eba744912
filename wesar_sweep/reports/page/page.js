"use strict";
// Draws the charts from the specifications in the page, each to the width it has, and switches the
// figure that the matrix shows. Asks for nothing outside the page.
(() => {
  const matrix = document.querySelector(".matrix");
  const choice = document.querySelector(".metric");
  if (matrix && choice) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => { matrix.dataset.metric = event.target.value; });
  }
  if (typeof vegaEmbed === "undefined") return;

  const charts = [...document.querySelectorAll(".chart")].map((element) => ({
    element,
    text: document.getElementById(element.dataset.spec).textContent,
    width: 0,
    view: null,
  }));

  // A facet has no width of its own: as many columns as fit, each as wide as what is left.
  const fitted = (text, width) => {
    const spec = JSON.parse(text);
    spec.config.legend.columns = Math.max(1, Math.floor(width / 190));
    if (spec.facet) {
      spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(width / 230)));
      const axis = 70;
      spec.spec.width = Math.floor((width - axis) / spec.columns) - 24;
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
    if (chart.view) chart.view.finalize();
    try {
      chart.view = await vegaEmbed(chart.element, fitted(chart.text, width), {
        mode: "vega-lite",
        renderer: "svg",
        defaultStyle: false,
        // Expressions are interpreted, so that the page needs no permission to evaluate text.
        ast: true,
        actions: { export: true, source: false, compiled: false, editor: false },
        i18n: { SVG_ACTION: "SVG", PNG_ACTION: "PNG" },
        downloadFileName: chart.element.dataset.spec.replace("spec-", ""),
      });
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
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(drawAll, 200);
  });
})();
