"use strict";
// The review page: worklist, slide with its cells, verdicts. Every verdict is sent at once; the server keeps the log.

const CELL_VERDICTS = ["abnormal", "normal", "not a cell", "unsure"];
const SLIDE_VERDICTS = ["positive", "negative", "unsure", "cannot be read"];
const RING_FROM_PX = 3; // radius on the screen from which cells are drawn as rings and not as dots
const MAX_RINGS = 4000;
const LOOK_FOR_NEWS_MS = 5000;

const $ = (id) => document.getElementById(id);
const state = { reader: "", slides: [], number: -1, slide: null, cells: null, ids: null, chosen: "", fade: 0.7, shown: true, ticket: 0, known: null };
let viewer = null;

// ---- talking to the server

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const joiner = path.includes("?") ? "&" : "?";
  let answer;
  try {
    answer = await fetch(`${path}${joiner}reader=${encodeURIComponent(state.reader)}`, options);
  } catch {
    throw new Error("The server does not answer. Start `cytomil review` again and open the address that it prints.");
  }
  if (answer.status === 403) throw new Error("This page is no longer valid. Open the address that `cytomil review` printed.");
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `The server answered ${answer.status}.`);
  return answer;
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

function guarded(action) {
  return (...values) => Promise.resolve(action(...values)).catch((error) => say(error.message));
}

// ---- worklist

async function loadWorklist() {
  const list = await (await ask("/api/worklist")).json();
  state.slides = list.slides;
  state.created = list.created;
  // Slides that this window has not listed yet are marked until they are opened.
  const names = list.slides.map((slide) => slide.slide);
  if (!state.known) state.known = new Set(names);
  $("news").hidden = true;
  const body = document.querySelector("#worklist tbody");
  body.replaceChildren(...list.slides.map((slide) => {
    const row = document.createElement("tr");
    row.dataset.number = slide.number;
    row.tabIndex = 0;
    const call = cell(slide.call, `call-${slide.call.replaceAll(" ", "-")}`);
    const own = [slide.verdict || "", slide.judged ? `${slide.judged} cells` : ""].filter(Boolean).join(", ");
    row.append(cell(slide.rank), cell(slide.slide), call, cell(own));
    row.classList.toggle("chosen", slide.number === state.number);
    row.classList.toggle("new", !state.known.has(slide.slide));
    row.addEventListener("click", guarded(() => openSlide(slide.number)));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") row.click(); });
    return row;
  }));
  if (list.log_faults.length) say(`The review log was changed outside of this program: ${list.log_faults[0]}.`);
}

// `cytomil rank --watch` writes the worklist again while it is open here. It is offered, and never changes under the reader's hand.
async function lookForNews() {
  if (document.hidden || !state.known) return;
  let now;
  try {
    now = await (await ask("/api/state")).json();
  } catch {
    return; // the next action says so
  }
  if (now.fault) { say(`The worklist shown is an earlier one: ${now.fault}`); return; }
  if (now.created === state.created) return;
  const listed = new Set(state.slides.map((slide) => slide.slide));
  const added = now.slides.filter((name) => !listed.has(name)).length;
  const gone = state.slides.filter((slide) => !now.slides.includes(slide.slide)).length;
  const parts = [added ? `${added} new slide${added > 1 ? "s" : ""}` : "", gone ? `${gone} removed` : ""].filter(Boolean);
  $("news").textContent = `The folder was ranked again${parts.length ? `: ${parts.join(", ")}` : ""}. Show the new list`;
  $("news").hidden = false;
}

// The slide at a distance from the open one in the worklist; the first one if the open one is no longer listed.
function neighbour(by) {
  const now = state.slides.findIndex((slide) => slide.number === state.number);
  return state.slides[now < 0 ? 0 : now + by];
}

function cell(text, name = "") {
  const made = document.createElement("td");
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

// ---- one slide

async function openFirst() {
  if (state.slides.length) await openSlide(state.slides[0].number);
  else say("The worklist is empty.");
}

async function openSlide(number) {
  if (!state.reader) { say("Enter your initials first."); $("reader").focus(); return; }
  const ticket = ++state.ticket;
  say("");
  const slide = await (await ask(`/api/slides/${number}`)).json();
  if (ticket !== state.ticket) return;
  Object.assign(state, { number, slide, cells: null, ids: null, chosen: "" });
  state.known.add(slide.slide);
  $("worklist").classList.remove("open");
  $("show-list").setAttribute("aria-expanded", "false");
  const facts = [slide.call];
  if (slide.probability !== null && !slide.is_unlike) facts.push(`probability ${slide.probability.toFixed(2)}`);
  facts.push(`${slide.n_cells.toLocaleString("en")} cells`);
  $("slide-name").textContent = slide.slide;
  $("slide-facts").textContent = facts.join(" · ");
  $("cautions").replaceChildren(...[slide.reason, slide.fault, slide.earlier, ...slide.cautions].filter(Boolean).map(item));
  $("remark").value = slide.own.remark;
  showPyramid(slide.pyramid, number);
  drawKeys();
  drawJudgements();
  $("cell").hidden = true;
  await act("open");
  await loadWorklist();
  if (walked().length) chooseCell(walked()[0].instance_id, false);
  if (slide.pyramid) loadCells(number, ticket).catch((error) => say(error.message));
  if (slide.call !== "not assessed") checkSlide(number, ticket).catch((error) => say(error.message));
}

async function loadCells(number, ticket) {
  const numbers = new Float32Array(await (await ask(`/api/slides/${number}/cells`)).arrayBuffer());
  if (ticket !== state.ticket) return;
  state.cells = prepared(numbers);
  redraw();
  const ids = await (await ask(`/api/slides/${number}/ids`)).json();
  if (ticket === state.ticket) state.ids = ids;
}

async function checkSlide(number, ticket) {
  const { unchanged } = await (await ask(`/api/slides/${number}/check`)).json();
  if (ticket === state.ticket && !unchanged) say("This slide's file is no longer the one that was ranked. Rank again before you rely on these cells.");
}

function item(text) {
  const made = document.createElement("li");
  made.textContent = text;
  return made;
}

// ---- pyramid and overlay

function showPyramid(pyramid, number) {
  if (viewer) { viewer.destroy(); viewer = null; }
  $("viewer").hidden = !pyramid;
  $("gallery").hidden = Boolean(pyramid);
  $("tools").hidden = !pyramid;
  if (!pyramid) return;
  viewer = OpenSeadragon({
    element: $("pyramid"),
    tileSources: {
      width: pyramid.width, height: pyramid.height, tileSize: pyramid.tile, tileOverlap: 0, minLevel: 0, maxLevel: pyramid.max_level,
      getTileUrl: (level, x, y) => `/api/slides/${number}/tiles/${level}/${x}/${y}`,
    },
    drawer: "canvas", showNavigationControl: false, showNavigator: false, immediateRender: true, animationTime: 0.4,
    maxZoomPixelRatio: 4, visibilityRatio: 0.5, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  });
  viewer.innerTracker.keyHandler = null;
  viewer.innerTracker.keyDownHandler = null;
  for (const event of ["update-viewport", "open", "resize"]) viewer.addHandler(event, redraw);
  viewer.addHandler("tile-load-failed", (event) => say(`A part of the slide cannot be read. ${event.message || ""}`));
  viewer.addHandler("canvas-click", (event) => { if (event.quick) chooseAt(event.position); });
}

// Cells in order of falling score, so that the first ones are drawn last and lie on top.
function prepared(numbers) {
  const n = numbers.length / 4;
  const order = Uint32Array.from({ length: n }, (_, i) => i).sort((a, b) => numbers[4 * a + 3] - numbers[4 * b + 3]);
  const x = new Float32Array(n), y = new Float32Array(n), r = new Float32Array(n), heat = new Float32Array(n);
  let max = 1;
  for (let i = 0; i < n; i++) max = Math.max(max, numbers[4 * i + 3]);
  order.forEach((from, i) => {
    x[i] = numbers[4 * from]; y[i] = numbers[4 * from + 1]; r[i] = numbers[4 * from + 2];
    // From 0 at an average normal cell's score to 1 at the slide's highest, by logarithm.
    heat[i] = max > 1 ? Math.max(0, Math.log(Math.max(numbers[4 * from + 3], 1)) / Math.log(max)) : 0;
  });
  return { n, x, y, r, heat, order, max };
}

const drawn = { pixels: null };

function redraw() {
  const canvas = $("overlay");
  if (!viewer || !viewer.world.getItemCount()) return;
  const width = $("viewer").clientWidth, height = $("viewer").clientHeight;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width; canvas.height = height;
    drawn.pixels = null;
  }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const image = viewer.world.getItemAt(0);
  const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
  const scale = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0)).x / 1000 - origin.x / 1000;
  $("scale").textContent = state.slide.mpp ? `${(state.slide.mpp / scale).toPrecision(2)} µm per pixel` : "";
  if (state.cells && state.shown && state.fade > 0) drawCells(context, width, height, origin, scale);
  drawKeyRings(context, origin, scale);
}

function drawCells(context, width, height, origin, scale) {
  const { n, x, y, r, heat } = state.cells;
  const visible = [];
  const typical = n ? r[n >> 1] * scale : 0;
  if (typical >= RING_FROM_PX) {
    for (let i = 0; i < n && visible.length <= MAX_RINGS; i++) {
      const px = origin.x + x[i] * scale, py = origin.y + y[i] * scale;
      if (px > -40 && py > -40 && px < width + 40 && py < height + 40) visible.push(i);
    }
  }
  if (typical >= RING_FROM_PX && visible.length <= MAX_RINGS) {
    context.lineWidth = 1.5;
    for (const i of visible) {
      context.strokeStyle = colour(heat[i], state.fade);
      context.beginPath();
      context.arc(origin.x + x[i] * scale, origin.y + y[i] * scale, Math.max(3, r[i] * scale), 0, 2 * Math.PI);
      context.stroke();
    }
    return;
  }
  // Too many for the canvas's own drawing: write the pixels of small squares.
  if (!drawn.pixels) drawn.pixels = context.createImageData(width, height);
  const pixels = new Uint32Array(drawn.pixels.data.buffer);
  pixels.fill(0);
  for (let i = 0; i < n; i++) {
    const side = heat[i] > 0.5 ? 4 : 2;
    const left = Math.round(origin.x + x[i] * scale - side / 2), top = Math.round(origin.y + y[i] * scale - side / 2);
    if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
    const value = packed(heat[i], state.fade);
    for (let row = top; row < top + side; row++) {
      for (let column = left; column < left + side; column++) pixels[row * width + column] = value;
    }
  }
  context.putImageData(drawn.pixels, 0, 0);
}

// Blue-grey to red; readable on pink and on blue stains.
function shade(heat) {
  return [Math.round(70 + 150 * heat), Math.round(95 * (1 - heat)), Math.round(150 * (1 - heat))];
}

function colour(heat, fade) {
  const [red, green, blue] = shade(heat);
  return `rgba(${red},${green},${blue},${(fade * (0.35 + 0.65 * heat)).toFixed(3)})`;
}

function packed(heat, fade) {
  const [red, green, blue] = shade(heat);
  return ((Math.round(255 * fade * (0.35 + 0.65 * heat)) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function drawKeyRings(context, origin, scale) {
  const n = state.slide.key_instances.length;
  for (const [place, key] of walked().entries()) {
    const isChosen = key.instance_id === state.chosen;
    // Cells to teach the model are no finds: only the chosen one has a ring.
    if (key.x_px === null || (place >= n && !isChosen)) continue;
    const px = origin.x + key.x_px * scale, py = origin.y + key.y_px * scale;
    const radius = Math.max(9, (state.cells ? state.cells.r[0] : 30) * scale * 1.6);
    context.lineWidth = isChosen ? 3 : 2;
    context.strokeStyle = isChosen ? "#0b57d0" : "#b42318";
    context.beginPath();
    context.arc(px, py, radius, 0, 2 * Math.PI);
    context.stroke();
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = context.strokeStyle;
    context.fillText(place < n ? place + 1 : `T${place - n + 1}`, px + radius + 2, py - radius + 8);
  }
}

function chooseAt(position) {
  if (!state.cells || !state.ids) return;
  const image = viewer.world.getItemAt(0);
  const point = image.viewerElementToImageCoordinates(position);
  const { n, x, y, r, order } = state.cells;
  let best = -1, nearest = Infinity;
  for (let i = 0; i < n; i++) {
    const distance = Math.hypot(x[i] - point.x, y[i] - point.y);
    if (distance < nearest && distance < 2 * r[i]) { best = i; nearest = distance; }
  }
  if (best >= 0) chooseCell(state.ids[order[best]], false);
}

// ---- cells

function pictureOf(id, around) {
  return `/api/slides/${state.number}/cell?cell=${encodeURIComponent(id)}&around=${around ? 1 : 0}`;
}

// Key cells, and after them the cells to teach the model, in the order in which the keyboard walks them.
function walked() {
  return state.slide ? [...state.slide.key_instances, ...state.slide.to_teach] : [];
}

function listed(key, label, name) {
  const made = document.createElement("li");
  made.dataset.cell = key.instance_id;
  made.tabIndex = 0;
  const image = new Image();
  image.loading = "lazy";
  image.alt = name;
  image.src = pictureOf(key.instance_id, false);
  const number = document.createElement("span");
  number.textContent = label;
  made.append(image, number);
  made.addEventListener("click", () => chooseCell(key.instance_id, true));
  made.addEventListener("keydown", (event) => { if (event.key === "Enter") chooseCell(key.instance_id, true); });
  return made;
}

function drawKeys() {
  const keys = state.slide.key_instances, taught = state.slide.to_teach;
  $("keys").replaceChildren(...keys.map((key, place) => listed(key, place + 1, `key cell ${place + 1}`)));
  $("teach").hidden = !taught.length;
  $("taught").replaceChildren(...taught.map((key, place) => listed(key, `T${place + 1}`, `cell ${place + 1} to teach the model`)));
  $("gallery").replaceChildren(...(state.slide.pyramid ? [] : keys.map((key, place) => {
    const made = document.createElement("figure");
    made.dataset.cell = key.instance_id;
    const image = new Image();
    image.alt = `key cell ${place + 1}`;
    image.src = pictureOf(key.instance_id, false);
    const caption = document.createElement("figcaption");
    caption.textContent = `${place + 1} · score ${key.score.toPrecision(3)}`;
    made.append(image, caption);
    made.addEventListener("click", () => chooseCell(key.instance_id, false));
    return made;
  })));
}

function chooseCell(id, goThere) {
  state.chosen = id;
  const place = walked().findIndex((key) => key.instance_id === id);
  const key = walked()[place], n = state.slide.key_instances.length;
  $("cell").hidden = false;
  $("cell-name").textContent = key ? `Cell ${place < n ? place + 1 : `T${place - n + 1}`}: score ${key.score.toPrecision(3)}` : `Cell ${id}`;
  $("cell-why").textContent = !key ? "Chosen on the slide; it is not a key cell." : place < n ? key.why : "Shown to teach the model. It is not a key cell.";
  $("cell-image").src = pictureOf(id, false);
  $("cell-around").hidden = !state.slide.pyramid;
  if (state.slide.pyramid) $("cell-around").src = pictureOf(id, true);
  if (goThere && viewer && key && key.x_px !== null) {
    const image = viewer.world.getItemAt(0);
    const side = 60 / (state.slide.mpp || 0.25);
    viewer.viewport.fitBounds(image.imageToViewportRectangle(key.x_px - side / 2, key.y_px - side / 2, side, side));
  }
  drawJudgements();
  redraw();
}

function step(by) {
  const keys = walked();
  if (!keys.length) return;
  const now = keys.findIndex((key) => key.instance_id === state.chosen);
  const next = Math.min(keys.length - 1, Math.max(0, now + by));
  chooseCell(keys[now < 0 ? 0 : next].instance_id, true);
}

// ---- verdicts

function buttons(place, values, choose) {
  $(place).replaceChildren(...values.map((value, i) => {
    const made = document.createElement("button");
    made.dataset.value = value;
    made.textContent = place === "cell-buttons" ? `${i + 1} ${value}` : value;
    made.addEventListener("click", guarded(() => choose(value)));
    return made;
  }));
}

function drawJudgements() {
  const { own, others } = state.slide;
  for (const made of document.querySelectorAll("#keys li, #taught li, #gallery figure")) {
    made.classList.toggle("chosen", made.dataset.cell === state.chosen);
    made.dataset.verdict = own.cells[made.dataset.cell] || "";
  }
  for (const made of $("cell-buttons").children) made.classList.toggle("chosen", made.dataset.value === own.cells[state.chosen]);
  for (const made of $("slide-buttons").children) made.classList.toggle("chosen", made.dataset.value === own.verdict);
  const keys = state.slide.key_instances;
  const done = keys.filter((key) => own.cells[key.instance_id]).length;
  $("progress").textContent = keys.length ? `${done} of ${keys.length} judged` : "none";
  const taught = state.slide.to_teach;
  $("teach-progress").textContent = `${taught.filter((key) => own.cells[key.instance_id]).length} of ${taught.length} judged`;
  const names = Object.keys(others);
  $("cell-others").textContent = names.filter((name) => others[name].cells[state.chosen]).map((name) => `${name}: ${others[name].cells[state.chosen]}`).join(" · ");
  $("slide-others").textContent = own.verdict
    ? names.map((name) => [`${name}: ${others[name].verdict || "no verdict"}`, others[name].remark].filter(Boolean).join(", ")).join(" · ")
    : "What other readers say is shown after your verdict on the slide.";
}

async function act(action, more = {}) {
  const slide = state.slide;
  const said = await (await ask("/api/act", { reader: state.reader, action, slide: slide.slide, sha256: slide.sha256, ...more })).json();
  Object.assign(slide, said);
  if (slide === state.slide) drawJudgements();
}

async function judge(value) {
  if (!state.slide || !state.chosen) return;
  const id = state.chosen;
  await act("cell", { cell: id, value });
  say("");
  const keys = walked();
  const now = keys.findIndex((key) => key.instance_id === id);
  if (state.chosen === id && now >= 0 && now + 1 < keys.length) step(1);
}

async function undo() {
  if (!state.slide) return;
  await act("undo");
  $("remark").value = state.slide.own.remark;
  await loadWorklist();
}

// ---- controls

$("reader").addEventListener("change", guarded(async () => {
  const given = $("reader").value.trim();
  if (!/^[A-Za-z0-9À-ÿ]{1,8}$/.test(given)) { say("Initials are 1 to 8 letters or digits."); return; }
  state.reader = given;
  sessionStorage.setItem("reader", given);
  say("");
  await loadWorklist();
  if (state.number >= 0) await openSlide(state.number);
  else await openFirst();
}));
$("fade").addEventListener("input", () => { state.fade = $("fade").value / 100; redraw(); });
$("whole").addEventListener("click", () => viewer && viewer.viewport.goHome());
$("save-remark").addEventListener("click", guarded(async () => { if (state.slide) { await act("remark", { value: $("remark").value }); say("The remark is saved."); } }));
$("news").addEventListener("click", guarded(loadWorklist));
setInterval(lookForNews, LOOK_FOR_NEWS_MS);
$("show-list").addEventListener("click", () => {
  const open = $("worklist").classList.toggle("open");
  $("show-list").setAttribute("aria-expanded", String(open));
});

const KEYS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  ArrowDown: () => neighbour(1) && openSlide(neighbour(1).number),
  ArrowUp: () => neighbour(-1) && openSlide(neighbour(-1).number),
  u: undo, o: () => { state.shown = !state.shown; redraw(); },
  ...Object.fromEntries(CELL_VERDICTS.map((value, i) => [String(i + 1), () => judge(value)])),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  guarded(action)();
}, true);

buttons("cell-buttons", CELL_VERDICTS, judge);
buttons("slide-buttons", SLIDE_VERDICTS, async (value) => { if (state.slide) { await act("slide", { value }); await loadWorklist(); } });
state.reader = sessionStorage.getItem("reader") || "";
$("reader").value = state.reader;
guarded(async () => {
  await loadWorklist();
  if (state.reader) await openFirst();
  else { say("Enter your initials to begin. They stand beside each of your judgements."); $("reader").focus(); }
})();
