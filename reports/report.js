"use strict";
// What the page of a run does beyond standing there: the browser of frames, sliders, sorting,
// matrices, values under the pointer. Names from outside are only ever set as text.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const id = (name) => document.getElementById(name);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function number(value, unit = "%", sign = false) {
  if (value === null || value === undefined) return "–";
  // A difference is in percentage points.
  const text = unit === "%" ? (100 * value).toFixed(1) + (sign ? "" : "%") : String(+value.toPrecision(4));
  return (sign && value > 0 ? "+" : "") + text.replace("-", "−");
}

const dot = (color) => {
  const made = make("span", { className: "dot" });
  made.style.setProperty("--c", color);
  return made;
};

// ---- Before and after ----

for (const figure of all(".slider")) {
  const input = figure.querySelector("input"), image = figure.querySelector("img");
  const show = () => figure.style.setProperty("--at", input.value + "%");
  const measure = () => figure.style.setProperty("--height", image.clientHeight + "px");
  const follow = (event) => {
    const box = image.getBoundingClientRect();
    input.value = clamp(100 * (event.clientX - box.left) / box.width, 0, 100);
    show();
  };
  figure.classList.add("on");
  input.hidden = false;
  input.addEventListener("input", show);
  new ResizeObserver(measure).observe(image);
  for (const picture of all("img", figure)) {
    picture.draggable = false;
    picture.style.touchAction = "pan-y";
    picture.addEventListener("pointerdown", (event) => { picture.setPointerCapture(event.pointerId); follow(event); });
    picture.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  }
}

for (const figure of all(".grids")) {
  const images = all("img", figure), label = figure.querySelector("label");
  if (images.length < 2) continue;
  label.hidden = false;
  label.querySelector("input").addEventListener("input", (event) => {
    images.forEach((image, i) => { image.hidden = i !== +event.target.value; });
    label.querySelector("output").value = images[event.target.value].dataset.step;
  });
}

// ---- Tables that are sorted by a click on a heading ----

for (const table of all("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  all("th .sort", table).forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex;
    // Numbers fall first, names rise first; the third click is the order of the report.
    const text = !original[0].cells[column].hasAttribute("data-v");
    const turns = text ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
    const next = turns[(turns.indexOf(head.ariaSort) + 1) % 3];
    all("th[aria-sort]", table).forEach((other) => { other.ariaSort = "none"; });
    head.ariaSort = next;
    const of = (row) => text ? row.cells[column].textContent : parseFloat(row.cells[column].dataset.v);
    const way = next === "ascending" ? 1 : -1;
    const rows = next === "none" ? original : [...original].sort((a, b) => {
      const x = of(a), y = of(b);
      if (text) return way * x.localeCompare(y);
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return way * (x - y);
    });
    body.append(...rows);
  }));
}

// ---- Charts: the values under the pointer ----

for (const axes of all(".axes")) {
  const [x0, x1] = axes.dataset.x.split(" ").map(Number), [y0, y1] = axes.dataset.y.split(" ").map(Number);
  const lines = all(".line[data-name]", axes).map((path) => ({
    name: path.dataset.name, color: path.parentNode.style.getPropertyValue("--c"),
    points: [...path.getAttribute("d").matchAll(/[ML](-?\d+) (-?\d+)/g)].map((p) => [+p[1], +p[2]]),
  })).filter((line) => line.points.length);
  const places = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const value = (at) => axes.dataset.log ? x0 * (x1 / x0) ** (at / 1000) : x0 + (x1 - x0) * at / 1000;
  const hair = make("div", { className: "hair", hidden: true }), tip = make("div", { className: "tip", hidden: true });
  axes.append(hair, tip);
  let current = 0;
  const show = (index) => {
    current = clamp(index, 0, places.length - 1);
    const at = places[current];
    hair.style.left = at / 10 + "%";
    tip.style.left = at > 500 ? "auto" : `calc(${at / 10}% + 8px)`;
    tip.style.right = at > 500 ? `calc(${100 - at / 10}% + 8px)` : "auto";
    tip.replaceChildren(make("div", {}, `${axes.dataset.over} ${Math.round(value(at)).toLocaleString("en")}`));
    for (const line of lines) {
      const [x, y] = line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
      if (Math.abs(x - at) > 15 && line.points.length > 2) continue;
      const shown = +(y1 - (y1 - y0) * y / 1000).toPrecision(3);
      tip.append(make("div", {}, dot(line.color), `${shown}${axes.dataset.unit} ${line.name}`));
    }
    hair.hidden = tip.hidden = false;
  };
  const hide = () => { hair.hidden = tip.hidden = true; };
  axes.addEventListener("pointermove", (event) => {
    const box = axes.getBoundingClientRect(), at = 1000 * (event.clientX - box.left) / box.width;
    show(places.reduce((best, place, i) => Math.abs(place - at) < Math.abs(places[best] - at) ? i : best, 0));
  });
  axes.addEventListener("pointerleave", hide);
  axes.addEventListener("blur", hide);
  axes.addEventListener("focus", () => { if (axes.matches(":focus-visible")) show(current); });
  axes.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(current + step); event.preventDefault(); }
  });
}

// ---- Confusion matrices, and the difference of two ----

function options(select, names, first) {
  select.replaceChildren(...(first === undefined ? [] : [make("option", { value: "", textContent: first })]),
    ...names.map((name) => make("option", { value: name, textContent: name })));
}

for (const box of all(".matrix")) {
  const own = box.querySelector("script");
  const { arms, classes, confusion } = own ? JSON.parse(own.textContent) : data;
  const arm = box.querySelector(".arm"), than = box.querySelector(".than"), read = box.querySelector(".read");
  const names = arms.map((one) => one.name);
  options(arm, names);
  options(than, names, "nothing");
  arm.value = own ? names[names.length - 1] : names.includes("adapted") ? "adapted" : names[Math.min(1, names.length - 1)];
  // A column of void predictions, where there are any.
  const wide = names.some((name) => confusion[name].some((row) => row[classes.length] > 0));
  const columns = [...classes.map((one) => one.name), ...(wide ? ["void"] : [])];
  const share = (counts, i, j) => {
    const sum = counts[i].reduce((a, b) => a + b, 0);
    return sum ? (counts[i][j] || 0) / sum : null;
  };
  const draw = () => {
    const counts = confusion[arm.value], other = confusion[than.value];
    const head = make("tr", {}, make("th", { scope: "col", textContent: "true ↓ seen →" }),
      ...columns.map((name) => make("th", { scope: "col", title: name }, make("span", { textContent: name }))));
    const rows = classes.map((one, i) => {
      const cells = columns.map((seen, j) => {
        const cell = make("td", { tabIndex: i || j ? -1 : 0 });
        const now = share(counts, i, j), then = other ? share(other, i, j) : 0;
        if (now === null || then === null) return cell;
        const change = now - then, better = other && (i === j ? change > 0 : change < 0);
        const text = (100 * change).toFixed(0).replace("-", "−");
        cell.textContent = Math.abs(change) < 0.005 ? "" : (other && change > 0 ? "+" : "") + text;
        cell.dataset.read = `True ${one.name}, seen as ${seen}: ${(counts[i][j] || 0).toLocaleString("en")} pixels, ${number(now)} of the class`
          + (other ? `; with ${than.value} ${(other[i][j] || 0).toLocaleString("en")} pixels, ${number(then)}` : "") + ".";
        cell.title = cell.dataset.read;
        const much = other ? Math.min(1, 2.5 * Math.abs(change)) : now;
        cell.style.setProperty("--much", Math.round(100 * much) + "%");
        cell.style.setProperty("--hue", !other || better ? "var(--heat)" : "var(--bad)");
        return cell;
      });
      return make("tr", {}, make("th", { scope: "row", textContent: one.name }), ...cells);
    });
    box.querySelector(".scroll").replaceChildren(
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  };
  const say = (event) => { if (event.target.dataset?.read) read.textContent = event.target.dataset.read; };
  box.addEventListener("pointerover", say);
  box.addEventListener("focusin", say);
  box.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td");
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [];
    const row = cell && down !== undefined && cell.parentNode.parentNode.rows[cell.parentNode.sectionRowIndex + down];
    const next = row && row.cells[cell.cellIndex + right];
    if (!cell || down === undefined) return;
    event.preventDefault();
    if (next?.matches("td")) { cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
  arm.addEventListener("change", draw);
  than.addEventListener("change", draw);
  draw();
}

// ---- The frames' browser ----

const IGNORED = 255, DIM = 0.28, RED = [255, 64, 48], BLUE = [40, 140, 255], GREEN = [0, 190, 120];

function browser() {
  const { arms, classes, frames, measures } = data;
  const names = arms.map((one) => one.name);
  const controls = Object.fromEntries(["measure", "arm", "than", "order", "view"].map((key) => [key, id(key)]));
  const panes = id("panes"), film = id("film"), read = id("pixel");
  const view = { z: 1, x: 0, y: 0 };
  let order = [], at = 0, layers = [], turn = 0;

  // Measures: scores of a frame, then the IoU of each class.
  const scored = frames.some((frame) => measures.some((m) => frame.scores[m.key].some((v) => v !== null)));
  controls.measure.append(make("option", { value: "name", textContent: "name" }));
  if (scored) {
    const of_classes = classes.map((one, i) => make("option", { value: `class ${i}`, textContent: one.name }));
    controls.measure.append(
      ...measures.map((m) => make("option", { value: m.key, textContent: m.title })),
      make("optgroup", { label: "IoU of a class" }, ...of_classes));
    controls.measure.value = measures[0].key;
  }
  options(controls.arm, names);
  options(controls.than, names, "nothing");
  controls.arm.value = names.includes("adapted") ? "adapted" : names[names.length - 1];

  const chosenClass = () => controls.measure.value.startsWith("class ") ? +controls.measure.value.slice(6) : null;
  const unit = () => measures.find((m) => m.key === controls.measure.value)?.unit || "%";
  function score(frame, arm) {
    const index = names.indexOf(arm), one = chosenClass();
    if (controls.measure.value === "name") return null;
    return (one === null ? frame.scores[controls.measure.value][index] : frame.iou[index]?.[one]) ?? null;
  }
  function value(frame) {
    const own = score(frame, controls.arm.value);
    if (!controls.than.value || own === null) return own;
    const other = score(frame, controls.than.value);
    return other === null ? null : own - other;
  }

  function sort(keep) {
    const shown = order[at];
    const way = controls.order.value === "worst" ? 1 : -1;
    const values = new Map(frames.map((frame) => [frame, value(frame)]));
    // Frames without a value come last, whichever way.
    order = [...frames].sort((a, b) => {
      const x = values.get(a), y = values.get(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return way * (x - y);
    });
    at = keep && shown ? order.indexOf(shown) : 0;
    film.replaceChildren(...order.map((frame, i) => {
      const image = make("img", { alt: "" });
      image.frame = frame;
      watch.observe(image);
      const made = make("button", { type: "button", title: frame.name, tabIndex: -1 }, image,
        number(values.get(frame), unit(), Boolean(controls.than.value)));
      made.setAttribute("aria-label", `frame ${frame.name}`);
      made.addEventListener("click", () => go(i));
      return made;
    }));
    show();
  }
  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    entry.target.src = entry.target.frame.photo;
    watch.unobserve(entry.target);
  }), { root: film, rootMargin: "0px 400px" });

  function go(index) {
    at = clamp(index, 0, order.length - 1);
    show();
  }

  async function show() {
    const frame = order[at], mine = ++turn;
    all("button", film).forEach((button, i) => {
      if (i === at) {
        button.setAttribute("aria-current", "true");
        film.scrollLeft = button.offsetLeft - film.offsetLeft - film.clientWidth / 2 + button.clientWidth / 2;
      } else button.removeAttribute("aria-current");
    });
    id("previous").disabled = at === 0;
    id("next").disabled = at === order.length - 1;
    id("place").textContent = `${at + 1} of ${order.length}: ${frame.name}`;
    remember();
    const [photo, ...labels] = await Promise.all([pixels(frame.photo, null),
      ...[frame.truth, ...frame.predictions].map((uri) => pixels(uri, true))]);
    if (mine !== turn) return; // another frame was asked for meanwhile
    layers = [{ name: "truth", classes: labels[0] }, ...names.map((name, i) => ({ name, classes: labels[i + 1] }))];
    const figures = [
      figure(paint(photo, null, null), "real frame", null),
      figure(paint(photo, labels[0], null), "ground truth", null),
      ...arms.map((one, i) => figure(paint(photo, labels[i + 1], labels[0]), one.name, one.color, score(frame, one.name))),
    ];
    panes.style.setProperty("--columns", figures.length < 6 ? figures.length : Math.ceil(figures.length / 2));
    panes.replaceChildren(...figures);
    move();
  }

  function figure(canvas, name, color, found) {
    const pane = make("div", { className: "pane" }, canvas, make("i", { hidden: true }));
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    const text = found === undefined || found === null ? name : `${name}, ${number(found, unit())}`;
    const made = make("figure", {}, pane, make("figcaption", {}, ...(color ? [dot(color)] : []), text));
    made.classList.toggle("chosen", name === controls.arm.value);
    return made;
  }

  // Pictures are decoded once; a label's colours are read back as classes, by the nearest colour, as
  // some browsers blur what a page reads.
  const decoded = new Map();
  const palette = classes.map((one) => [1, 3, 5].map((k) => parseInt(one.color.slice(k, k + 2), 16)));
  async function pixels(uri, labelled) {
    if (decoded.has(uri)) return decoded.get(uri);
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const found = labelled ? toClasses(context.getImageData(0, 0, canvas.width, canvas.height)) : canvas;
    if (decoded.size > 60) decoded.clear();
    decoded.set(uri, found);
    return found;
  }
  const known = new Map([[0, IGNORED], ...palette.map(([r, g, b], i) => [r << 16 | g << 8 | b, i])]);
  function toClasses({ data: bytes, width, height }) {
    const found = new Uint8Array(width * height);
    for (let i = 0, k = 0; i < found.length; i++, k += 4) {
      const key = bytes[k] << 16 | bytes[k + 1] << 8 | bytes[k + 2];
      let one = known.get(key);
      if (one === undefined) {
        let least = bytes[k] ** 2 + bytes[k + 1] ** 2 + bytes[k + 2] ** 2;
        one = IGNORED;
        palette.forEach(([r, g, b], index) => {
          const far = (r - bytes[k]) ** 2 + (g - bytes[k + 1]) ** 2 + (b - bytes[k + 2]) ** 2;
          if (far < least) { least = far; one = index; }
        });
        known.set(key, one);
      }
      found[i] = one;
    }
    return { width, height, found };
  }

  // A picture of a frame: itself, or classes as the view and the chosen class ask for.
  function paint(photo, labels, truth) {
    const { width, height } = labels || photo;
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(photo, 0, 0, width, height);
    if (!labels) return canvas;
    canvas.className = "sharp";
    const mode = controls.view.value, only = chosenClass();
    const picture = context.getImageData(0, 0, width, height), out = picture.data;
    for (let i = 0, k = 0; i < labels.found.length; i++, k += 4) {
      const seen = labels.found[i], real = truth ? truth.found[i] : seen;
      let color = palette[seen] || [0, 0, 0], much = 1;
      if (mode === "errors" && truth) {
        const grey = 0.5 * (0.3 * out[k] + 0.6 * out[k + 1] + 0.1 * out[k + 2]);
        if (real === IGNORED) color = [0, 0, 0];
        else if (only !== null && (seen === only || real === only)) color = seen === real ? GREEN : real === only ? RED : BLUE;
        else color = only === null && seen !== real ? RED : [grey, grey, grey];
      } else {
        if (mode === "blend") much = 0.6;
        if (only !== null && seen !== only) color = color.map((c) => DIM * c + 0.12 * 255);
        if (mode === "blend" && only !== null && seen !== only) much = 0.25;
      }
      for (let c = 0; c < 3; c++) out[k + c] = much * color[c] + (1 - much) * out[k + c];
    }
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  // Zoom and place are one for all panes; x and y in parts of a pane.
  function move() {
    view.z = clamp(view.z, 1, 16);
    view.x = clamp(view.x, 1 - view.z, 0);
    view.y = clamp(view.y, 1 - view.z, 0);
    panes.style.setProperty("--z", view.z);
    panes.style.setProperty("--x", 100 * view.x + "%");
    panes.style.setProperty("--y", 100 * view.y + "%");
    panes.classList.toggle("near", view.z > 1);
    id("out").disabled = view.z <= 1;
  }
  function zoom(factor, u = 0.5, v = 0.5) {
    const z = clamp(view.z * factor, 1, 16), real = z / view.z;
    view.x = u - (u - view.x) * real;
    view.y = v - (v - view.y) * real;
    view.z = z;
    move();
  }
  const inside = (event) => {
    const pane = event.target.closest(".pane");
    if (!pane) return null;
    const box = pane.getBoundingClientRect();
    return { u: (event.clientX - box.left) / box.width, v: (event.clientY - box.top) / box.height, box };
  };
  panes.addEventListener("dblclick", (event) => { const p = inside(event); if (p) zoom(2, p.u, p.v); });
  panes.addEventListener("wheel", (event) => {
    const p = inside(event);
    if (!p || !(event.ctrlKey || event.metaKey)) return; // else the page is scrolled
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 200), p.u, p.v);
  }, { passive: false });
  panes.addEventListener("pointermove", (event) => {
    const p = inside(event);
    if (!p || !layers.length) return;
    if (event.buttons && view.z > 1) {
      view.x += event.movementX / p.box.width;
      view.y += event.movementY / p.box.height;
      return move();
    }
    for (const mark of all(".pane i", panes)) {
      mark.hidden = false;
      mark.style.left = 100 * p.u + "%";
      mark.style.top = 100 * p.v + "%";
    }
    const read_one = ({ name, classes: { width, height, found } }) => {
      const x = clamp(Math.floor((p.u - view.x) / view.z * width), 0, width - 1);
      const y = clamp(Math.floor((p.v - view.y) / view.z * height), 0, height - 1);
      return `${name}: ${classes[found[y * width + x]]?.name ?? (name === "truth" ? "not scored" : "void")}`;
    };
    read.textContent = layers.map(read_one).join(" · ");
  });
  panes.addEventListener("pointerleave", () => all(".pane i", panes).forEach((mark) => { mark.hidden = true; }));
  const keys = (event) => {
    const act = {
      ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), Home: () => go(0), End: () => go(order.length - 1),
      "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), "0": () => zoom(1 / 16),
    }[event.key];
    if (act) { act(); event.preventDefault(); }
  };
  panes.addEventListener("keydown", keys);
  film.addEventListener("keydown", keys);
  id("in").addEventListener("click", () => zoom(2));
  id("out").addEventListener("click", () => zoom(0.5));
  id("previous").addEventListener("click", () => go(at - 1));
  id("next").addEventListener("click", () => go(at + 1));
  all("[data-go]").forEach((button) => button.addEventListener("click", () => {
    const known = order.filter((frame) => value(frame) !== null).length || order.length;
    go(Math.round(button.dataset.go * (known - 1)));
  }));
  for (const key of ["measure", "arm", "than", "order"]) controls[key].addEventListener("change", () => sort(false));
  controls.view.addEventListener("change", show);

  // Deep links: #frame=NAME&arm=ARM&than=ARM&measure=KEY&order=worst&view=errors.
  let quiet = true;
  function remember() {
    if (quiet) return;
    const link = new URLSearchParams({ frame: order[at].name });
    for (const [key, control] of Object.entries(controls)) if (control.value) link.set(key, control.value);
    history.replaceState(null, "", "#" + link);
  }
  function follow() {
    const link = new URLSearchParams(location.hash.slice(1));
    if (!link.has("frame")) return false;
    for (const [key, control] of Object.entries(controls)) {
      const legal = [...control.options].some((option) => option.value === link.get(key));
      if (legal) control.value = link.get(key);
    }
    sort(false);
    const wanted = order.findIndex((frame) => frame.name === link.get("frame"));
    if (wanted >= 0) go(wanted);
    id("frames").scrollIntoView();
    return true;
  }
  id("browser").hidden = false;
  if (!follow()) sort(false);
  quiet = false;
  addEventListener("hashchange", follow);
}
if (data.frames.length) browser();

// On paper everything is open, but the configuration.
let opened = [];
addEventListener("beforeprint", () => {
  opened = all("details.print:not([open])");
  opened.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
