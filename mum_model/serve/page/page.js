"use strict";
// Photos -> features by this server -> colours (PCA) and matches (nearest neighbours both ways), drawn here; and
// reconstructions, drawn by the server, where it has the whole model.

const VIEW_HEIGHT = 480; // pixels of a drawn photo; the style sheet shows it smaller
const MOST_LINES = 60;
const element = (id) => document.getElementById(id);

/** A photo with its patch tokens: {name, bitmap, rows, columns, tokens: Float32Array[L * D], dim, colours, canvas}. */
let views = [];
let chosen = null; // {view, patch}

// Talking to the server

let models = []; // {name, reconstructs}

async function listModels() {
  models = await (await fetch("page/models")).json();
  element("model").replaceChildren(...models.map(({ name }) => new Option(name)));
}

async function ask(route, query, body, headers = {}) {
  const url = `v2/models/${encodeURIComponent(element("model").value)}/${route}?${new URLSearchParams(query)}`;
  const answer = await fetch(url, { method: "POST", body, headers });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error ?? `HTTP ${answer.status}`);
  return content;
}

async function encode(file) {
  const query = { size: element("size").value, outputs: "patch_tokens" };
  const body = await ask("images", query, file, { "Content-Type": "application/octet-stream" });
  const [{ rows, columns, patch_tokens: tokens }] = body.images;
  const dim = tokens[0].length;
  return { name: file.name, bitmap: await createImageBitmap(file), rows, columns, dim, tokens: Float32Array.from(tokens.flat()) };
}

// Linear algebra on rows: a matrix is {data: Float32Array[count * dim], count, dim}

function rowsOf(view, normalise) {
  const { tokens, dim } = view, count = view.rows * view.columns, data = Float32Array.from(tokens);
  for (let i = 0; normalise && i < count; i++) {
    let square = 0;
    for (let d = 0; d < dim; d++) square += data[i * dim + d] ** 2;
    for (let d = 0, length = Math.sqrt(square); d < dim; d++) data[i * dim + d] /= length;
  }
  return { data, count, dim };
}

function dot(a, i, b, j, dim) {
  let sum = 0;
  for (let d = 0; d < dim; d++) sum += a[i * dim + d] * b[j * dim + d];
  return sum;
}

/** Scores of all rows along the three main directions, each within 0..1: power iteration with deflation. */
function mainDirections(matrix) {
  const { data, count, dim } = matrix, mean = new Float32Array(dim), scores = [];
  for (let i = 0; i < count; i++) for (let d = 0; d < dim; d++) mean[d] += data[i * dim + d] / count;
  for (let i = 0; i < count; i++) for (let d = 0; d < dim; d++) data[i * dim + d] -= mean[d];
  for (let k = 0; k < 3; k++) {
    let direction = Float32Array.from({ length: dim }, (_, d) => Math.sin(1 + d * (k + 1)));
    let along = new Float32Array(count);
    for (let round = 0; round < 20; round++) {
      const next = new Float32Array(dim);
      for (let i = 0; i < count; i++) {
        const score = dot(data, i, direction, 0, dim);
        for (let d = 0; d < dim; d++) next[d] += score * data[i * dim + d];
      }
      const length = Math.sqrt(dot(next, 0, next, 0, dim)) || 1;
      direction = next.map((x) => x / length);
    }
    for (let i = 0; i < count; i++) {
      along[i] = dot(data, i, direction, 0, dim);
      for (let d = 0; d < dim; d++) data[i * dim + d] -= along[i] * direction[d];
    }
    const sorted = Float32Array.from(along).sort();
    const low = sorted[Math.floor(0.02 * (count - 1))], high = sorted[Math.ceil(0.98 * (count - 1))];
    scores.push(along.map((x) => Math.min(1, Math.max(0, (x - low) / (high - low || 1)))));
  }
  return scores;
}

function colour() {
  const all = views.map((view) => rowsOf(view, false)), dim = all[0].dim;
  const count = all.reduce((sum, one) => sum + one.count, 0), data = new Float32Array(count * dim);
  let start = 0;
  for (const one of all) { data.set(one.data, start * dim); start += one.count; }
  const scores = mainDirections({ data, count, dim });
  start = 0;
  for (const view of views) {
    const patches = view.rows * view.columns, end = start + patches;
    view.colours = scores.map((channel) => channel.slice(start, end));
    start = end;
  }
}

/** Pairs of patches that are each other's most similar, best first: [patch of a, patch of b, cosine]. */
function mutualMatches(a, b) {
  const x = rowsOf(a, true), y = rowsOf(b, true);
  const bestOfX = new Int32Array(x.count), bestOfY = new Int32Array(y.count);
  const forX = new Float32Array(x.count).fill(-2), forY = new Float32Array(y.count).fill(-2);
  for (let i = 0; i < x.count; i++) for (let j = 0; j < y.count; j++) {
    const cosine = dot(x.data, i, y.data, j, x.dim);
    if (cosine > forX[i]) { forX[i] = cosine; bestOfX[i] = j; }
    if (cosine > forY[j]) { forY[j] = cosine; bestOfY[j] = i; }
  }
  return [...bestOfX.keys()].filter((i) => bestOfY[bestOfX[i]] === i).map((i) => [i, bestOfX[i], forX[i]])
    .sort((p, q) => q[2] - p[2]);
}

function similarities(view, patch, other) {
  const x = rowsOf(view, true), y = rowsOf(other, true);
  return Float32Array.from({ length: y.count }, (_, j) => dot(x.data, patch, y.data, j, x.dim));
}

// Drawing

function patchImage(view, pixel) {
  const image = new ImageData(view.columns, view.rows);
  for (let i = 0; i < view.rows * view.columns; i++) image.data.set([...pixel(i), 255], 4 * i);
  const small = document.createElement("canvas");
  small.width = view.columns; small.height = view.rows;
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

function heat(share) {
  return [255 * Math.min(1, 1.6 * share), 255 * share ** 2, 90 * (1 - share)];
}

function centre(view, patch, width, height) {
  return [((patch % view.columns) + 0.5) * width / view.columns, (Math.floor(patch / view.columns) + 0.5) * height / view.rows];
}

function draw(view) {
  const { canvas } = view, context = canvas.getContext("2d");
  context.drawImage(view.bitmap, 0, 0, canvas.width, canvas.height);
  let image = patchImage(view, (i) => view.colours.map((channel) => 255 * channel[i])), mark = null;
  if (chosen?.view === view) mark = chosen.patch;
  else if (chosen) {
    const alike = similarities(chosen.view, chosen.patch, view), high = Math.max(...alike), low = Math.min(...alike);
    image = patchImage(view, (i) => heat((alike[i] - low) / (high - low || 1)));
    mark = alike.indexOf(high);
  }
  context.globalAlpha = element("opacity").value / 100;
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  if (mark === null) return;
  const [x, y] = centre(view, mark, canvas.width, canvas.height), side = canvas.width / view.columns;
  context.lineWidth = 3;
  for (const [stroke, more] of [["#000", 2], ["#fff", 0]]) {
    context.strokeStyle = stroke;
    context.strokeRect(x - side / 2 - more, y - side / 2 - more, side + 2 * more, side + 2 * more);
  }
}

function drawMatches() {
  const canvas = element("matches"), context = canvas.getContext("2d");
  const [a, b] = [views[element("left").value], views[element("right").value]], gap = 24;
  canvas.width = a.canvas.width + gap + b.canvas.width; canvas.height = VIEW_HEIGHT;
  context.drawImage(a.bitmap, 0, 0, a.canvas.width, VIEW_HEIGHT);
  context.drawImage(b.bitmap, a.canvas.width + gap, 0, b.canvas.width, VIEW_HEIGHT);
  const matches = a === b ? [] : mutualMatches(a, b);
  matches.slice(0, MOST_LINES).forEach(([i, j], rank) => {
    const [x, y] = centre(a, i, a.canvas.width, VIEW_HEIGHT), [u, v] = centre(b, j, b.canvas.width, VIEW_HEIGHT);
    context.strokeStyle = `hsl(${(rank * 137) % 360} 90% 55%)`;
    context.lineWidth = 2;
    context.beginPath(); context.moveTo(x, y); context.lineTo(a.canvas.width + gap + u, v); context.stroke();
  });
  element("count").value = `${matches.length} patches choose each other; the ${Math.min(MOST_LINES, matches.length)} most alike are drawn.`;
}

function picture(view, kind, what) {
  const image = document.createElement("img");
  image.src = `data:image/png;base64,${view[kind]}`;
  image.alt = `${view.name}: ${what}`;
  return image;
}

function heading(text, scope) {
  const cell = document.createElement("th");
  cell.scope = scope; cell.textContent = cell.title = text;
  return cell;
}

/** A table with a column a view: the photo, what the model saw, what it made of it. */
function drawScene(scene) {
  const table = document.createElement("table"), head = table.insertRow();
  head.append(document.createElement("td"), ...scene.map((view) => heading(view.name, "col")));
  for (const [kind, title] of [["input", "Photo"], ["seen", "Seen"], ["reconstruction", "Reconstruction"]]) {
    const row = table.insertRow();
    row.append(heading(title, "row"));
    for (const view of scene) row.insertCell().append(picture(view, kind, title.toLowerCase()));
  }
  element("scene").replaceChildren(table);
}

function drawAll() {
  views.forEach(draw);
}

// What a person does

function choose(view, patch) {
  chosen = { view, patch };
  drawAll();
  const best = views.filter((other) => other !== view).map((other) => {
    const alike = similarities(view, patch, other), high = Math.max(...alike), j = alike.indexOf(high);
    return `${other.name} row ${Math.floor(j / other.columns) + 1}, column ${(j % other.columns) + 1} (cosine ${high.toFixed(2)})`;
  });
  const place = `row ${Math.floor(patch / view.columns) + 1}, column ${(patch % view.columns) + 1}`;
  say(`${view.name} ${place}` + (best.length ? ` is most like ${best.join("; ")}.` : "."));
}

function onKey(event, view) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Escape") { chosen = null; drawAll(); say("No patch chosen."); }
  if (!step) return;
  event.preventDefault();
  const patch = chosen?.view === view ? chosen.patch : Math.floor(view.rows / 2) * view.columns + Math.floor(view.columns / 2);
  const row = Math.min(view.rows - 1, Math.max(0, Math.floor(patch / view.columns) + step[0]));
  const column = Math.min(view.columns - 1, Math.max(0, (patch % view.columns) + step[1]));
  choose(view, row * view.columns + column);
}

function onPoint(event, view) {
  const box = view.canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / box.width * view.columns);
  const row = Math.floor((event.clientY - box.top) / box.height * view.rows);
  choose(view, Math.min(row, view.rows - 1) * view.columns + Math.min(column, view.columns - 1));
}

function show() {
  element("features").hidden = views.length === 0;
  element("matching").hidden = views.length < 2;
  chosen = null;
  if (views.length === 0) { element("views").replaceChildren(); return; }
  colour();
  element("views").replaceChildren(...views.map((view) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    view.canvas = document.createElement("canvas");
    view.canvas.height = VIEW_HEIGHT; view.canvas.width = Math.round(VIEW_HEIGHT * view.bitmap.width / view.bitmap.height);
    view.canvas.tabIndex = 0;
    view.canvas.setAttribute("role", "application");
    view.canvas.setAttribute("aria-label", `Features of ${view.name}; arrow keys choose a patch`);
    view.canvas.addEventListener("keydown", (event) => onKey(event, view));
    view.canvas.addEventListener("click", (event) => onPoint(event, view));
    caption.textContent = `${view.name}: ${view.rows} x ${view.columns} patches`;
    figure.append(view.canvas, caption);
    return figure;
  }));
  drawAll();
  if (views.length < 2) return;
  for (const [id, index] of [["left", 0], ["right", 1]]) {
    element(id).replaceChildren(...views.map((view, i) => new Option(view.name, i, false, i === index)));
  }
  drawMatches();
}

function say(text, isError = false, id = "status") {
  element(id).textContent = text;
  element(id).classList.toggle("error", isError);
}

let files = []; // what the shown views were made of

async function add(added) {
  files = [...files, ...added];
  await encodeAll();
}

let asked = 0; // reconstructions so far; only the last one is shown

async function reconstruct() {
  const mine = ++asked, offered = models.find(({ name }) => name === element("model").value)?.reconstructs;
  element("reconstruction").hidden = !offered || files.length === 0;
  if (element("reconstruction").hidden) return;
  const form = new FormData();
  for (const file of files) form.append("file", file);
  const query = { size: element("size").value, mask_ratio: element("ratio").value / 100, seed: element("seed").value };
  say("Computing ...", false, "progress");
  element("scene").classList.add("stale");
  try {
    const { views: scene, rows, columns } = await ask("reconstruct", query, form);
    if (mine !== asked) return;
    drawScene(scene);
    say(`${scene[0].visible.length} of ${rows * columns} patches of each photo were seen.`, false, "progress");
  } catch (error) {
    if (mine !== asked) return;
    element("scene").replaceChildren();
    say(error.message, true, "progress");
  }
  element("scene").classList.remove("stale");
}

async function encodeAll() {
  const done = [], failures = [], kept = [];
  for (const file of files) {
    say(`Computing ${file.name} ...`);
    try {
      done.push(await encode(file)); kept.push(file);
    } catch (error) {
      failures.push(`${file.name}: ${error.message}`);
    }
  }
  files = kept; views = done;
  show();
  if (failures.length) say(failures.join(" "), true);
  else say(files.length === 0 ? "No photos yet." : `${files.length} photo${files.length > 1 ? "s" : ""}.`);
  await reconstruct();
}

element("files").addEventListener("change", (event) => add([...event.target.files]));
element("model").addEventListener("change", encodeAll);
element("size").addEventListener("change", encodeAll);
element("opacity").addEventListener("input", drawAll);
element("ratio").addEventListener("input", () => { element("share").value = `${element("ratio").value} %`; });
for (const id of ["ratio", "seed"]) element(id).addEventListener("change", reconstruct);
element("reshuffle").addEventListener("click", () => { element("seed").stepUp(); reconstruct(); });
for (const id of ["controls", "masking"]) element(id).addEventListener("submit", (event) => event.preventDefault());
element("clear").addEventListener("click", () => { files = []; element("files").value = ""; encodeAll(); });
for (const id of ["left", "right"]) element(id).addEventListener("change", drawMatches);
addEventListener("dragover", (event) => { event.preventDefault(); element("drop").classList.add("over"); });
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  add([...event.dataTransfer.files]);
});
listModels();
