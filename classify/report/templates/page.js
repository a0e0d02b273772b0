"use strict";
// The report's own script: it draws Bokeh's charts as the page opens, colours them by the page's scheme, sorts tables and toggles legends. Names of files and labels arrive as JSON and as
// text nodes; nothing here turns text into HTML.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts");
const pictures = read("pictures");
const drawn = new Map(); // id of the element -> Bokeh's figure
const NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const figureBox = (figure) => document.getElementById([...drawn].find((entry) => entry[1] === figure)[0]);

function paint(figure) {
  const [ink, soft, line] = [colour("--ink"), colour("--soft"), colour("--line")];
  figureBox(figure).dataset.scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  for (const model of figure.references()) {
    const set = (values) => {
      for (const [key, value] of Object.entries(values)) if (key in model.properties) model[key] = value;
    };
    if (model.tags?.includes("ink")) set({ text_color: ink });
    else if (model.tags?.includes("soft")) set({ line_color: soft });
    else if (model.tags?.includes("quiet")) set({ text_color: soft });
    else set({ axis_label_text_color: soft, major_label_text_color: soft, grid_line_color: line });
  }
}

async function draw(box) {
  if (drawn.has(box.id)) return;
  const item = charts[box.id];
  drawn.set(box.id, null);
  await Bokeh.embed.embed_item(item, box.id);
  const figure = Bokeh.documents.map((doc) => doc.get_model_by_id(item.root_id)).find(Boolean);
  drawn.set(box.id, figure);
  paint(figure);
  if (figure.match_aspect) figure.height = Math.min(figure.height, box.clientWidth + 40); // phones
  const points = pointsOf(figure);
  if (points) {
    points.data = { ...points.data, picture: Array.from(points.data.row, (row) => pictures[row] ?? NOTHING) };
  }
}

// The map's points, of which each has a row; other charts have none.
const pointsOf = (figure) => [...figure.references()].find((model) => model.name === "points" && model.data?.row);

// All are drawn at once, not when they are scrolled to: a print or a picture of the page shows each.
// On paper they are as wide as on the screen, and scaled down to fit.
const PAPER_PIXELS = 660;
const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (matchMedia("print").matches || !contentRect.width) continue;
    target.style.setProperty("--drawn", `${contentRect.width}px`);
    target.style.setProperty("--fit", Math.min(1, PAPER_PIXELS / contentRect.width));
  }
});
const boxes = [...document.querySelectorAll(".chart")];
for (const box of boxes) {
  box.style.minHeight = `${Math.min(box.dataset.height, 400)}px`; // reserve space, so that the page hardly jumps
  sizes.observe(box);
}
(async () => {
  for (const box of boxes) await draw(box);
})();
// Paper cannot be clicked: what is folded is opened.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((it) => (it.open = true)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const figure of drawn.values()) if (figure) paint(figure);
});

// Treat a tap as a moving pointer, because Bokeh shows tooltips only for moving pointers.
for (const box of document.querySelectorAll(".chart")) {
  box.addEventListener("click", (event) => {
    if (event.pointerType !== "touch") return;
    const { clientX, clientY, view } = event;
    const moved = { clientX, clientY, view, pointerType: "mouse", isPrimary: true, bubbles: true };
    event.composedPath()[0].dispatchEvent(new PointerEvent("pointermove", moved));
  });
}

// A legend's button shows and hides the glyphs of its name in one or two charts.
for (const button of document.querySelectorAll(".keys button")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const id of button.dataset.charts.split(" ")) {
      for (const glyphs of drawn.get(id)?.renderers ?? []) {
        if (glyphs.name === button.dataset.name) glyphs.visible = on;
      }
    }
  });
}

// Switch between t-SNE and PCA coordinates of the same points.
for (const button of document.querySelectorAll(".switch button")) {
  button.addEventListener("click", () => {
    const figure = drawn.get(button.dataset.chart);
    if (!figure) return;
    const points = pointsOf(figure);
    const way = button.dataset.way;
    points.data = { ...points.data, x: points.data[`${way}_x`], y: points.data[`${way}_y`] };
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
  });
}

// A heading sorts its table: numbers from the greatest down first, texts from A on.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("number");
    const before = heading.getAttribute("aria-sort");
    const up = before ? before === "descending" : !numeric;
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[heading.cellIndex].dataset.value ?? "";
    const order = (a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === ""); // unknown: last
      const found = numeric ? left - right : left.localeCompare(right, undefined, { numeric: true });
      return up ? found : -found;
    };
    body.append(...[...body.rows].sort(order));
  });
}
