"use strict";
// What the server says goes onto the page as text and numbers; nothing is parsed as HTML.
const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#0aa5a5", "#f032e6", "#8a9a00", "#9a6324", "#5a5aff"];
const FLOOR = 0.05;
const byId = (id) => document.getElementById(id);
const drop = byId("drop"), canvas = byId("canvas");
let models = {}, file = null, bitmap = null, boxes = [], request = null;

function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", isBad);
}

function colour(name) {
  const names = [...new Set(boxes.map((box) => box.name))].sort();
  return COLOURS[names.indexOf(name) % COLOURS.length];
}

function draw() {
  const least = Number(byId("score").value);
  byId("least").textContent = least.toFixed(2);
  if (!bitmap) return;
  const shown = boxes.filter((box) => box.score >= least);
  const pen = canvas.getContext("2d");
  const longest = Math.max(bitmap.width, bitmap.height), zoom = Math.max(1, 640 / longest);
  canvas.width = bitmap.width * zoom;
  canvas.height = bitmap.height * zoom;
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const unit = (longest * zoom) / 640;
  pen.lineWidth = 2.5 * unit;
  pen.font = `${14 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  for (const { box, score, name } of [...shown].reverse()) {
    const [x1, y1, x2, y2] = box.map((side) => side * zoom);
    const text = `${name} ${score.toFixed(2)}`;
    const width = pen.measureText(text).width + 6 * unit, height = 18 * unit;
    const top = Math.max(0, y1 - height), left = Math.max(0, Math.min(x1, canvas.width - width));
    pen.strokeStyle = pen.fillStyle = colour(name);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    pen.fillRect(left, top, width, height);
    pen.fillStyle = "#fff";
    pen.fillText(text, left + 3 * unit, top + 2 * unit);
  }
  byId("found").replaceChildren(...shown.map(({ score, name }) => {
    const line = document.createElement("li");
    line.textContent = `${name} ${score.toFixed(2)}`;
    line.style.color = colour(name);
    return line;
  }));
  if (request === null && boxes.asked) {
    say(`${shown.length} of ${boxes.length} boxes; the model took ${boxes.seconds.toFixed(2)} s`);
  }
}

async function find() {
  if (!file) return say("Drop a picture first.");
  const model = byId("model").value;
  if (!byId("names").value.trim() && !(models[model] || []).length) return say("Type what to find, divided by commas.");
  request?.abort();
  const mine = request = new AbortController();
  const form = new FormData();
  form.append("image", file);
  form.append("names", byId("names").value);
  form.append("model", model);
  form.append("min_score", FLOOR);
  say("Looking…");
  drop.classList.add("busy");
  try {
    const response = await fetch("predict", { method: "POST", body: form, signal: mine.signal });
    const answer = await response.json();
    if (mine !== request) return;
    request = null;
    if (!response.ok) {
      boxes = [];
      draw();
      return say(answer.message || `The server says ${response.status}.`, true);
    }
    boxes = answer.boxes;
    boxes.asked = true;
    boxes.seconds = answer.seconds;
    draw();
  } catch (error) {
    if (error.name === "AbortError") return;
    request = null;
    say(`The server does not answer: ${error.message}`, true);
  } finally {
    if (request === null) drop.classList.remove("busy");
  }
}

async function take(chosen) {
  if (!chosen) return;
  let opened;
  try {
    opened = await createImageBitmap(chosen);
  } catch {
    return say(`${chosen.name}: no picture that this browser can show.`, true);
  }
  [file, bitmap, boxes] = [chosen, opened, []];
  canvas.hidden = false;
  byId("hint").hidden = true;
  draw();
  find();
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); find(); });
byId("score").addEventListener("input", draw);
byId("model").addEventListener("change", () => {
  byId("names").placeholder = (models[byId("model").value] || []).join(", ") || "a dog, a red frisbee";
});
byId("file").addEventListener("change", (event) => take(event.target.files[0]));
document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
drop.addEventListener("keydown", (event) => { if (event.key === "Enter") byId("file").click(); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}

(async () => {
  models = await (await fetch("models")).json();
  byId("model").append(...Object.keys(models).map((name) => new Option(name, name)));
  byId("model").dispatchEvent(new Event("change"));
})().catch((error) => say(`The server does not answer: ${error.message}`, true));
