// Judging pairs, one after the other: by mouse, by touch and by keys. `saving.js` has what becomes of decisions.
const editor = byId("editor"), canvas = byId("canvas"), stage = byId("stage");
const NEAR = { mouse: 7, pen: 12, touch: 22 }, LEAST = 3, STEP = 0.01;
let current = null, phrases = [], past = [], chosen = { phrase: -1, box: -1 }, gesture = null, isDrawing = false, naming = null;

const copy = (value) => JSON.parse(JSON.stringify(value));
const round = (value) => Math.round(value * 100) / 100;
const clamp = (value, most) => Math.min(Math.max(value, 0), most);
const chosenBox = () => phrases[chosen.phrase]?.boxes[chosen.box];

function openEditor(pair) {
  leaveNaming();
  current = pair;
  phrases = copy(labelsOf(pair));
  past = [];
  chosen = { phrase: phrases.length ? 0 : -1, box: -1 };
  gesture = null;
  setDrawing(false);
  if (!editor.open) editor.showModal();
  canvas.focus({ preventScroll: true });
  tellOpen(pair);
  draw();
}

function closeEditor() {
  editor.close();
  tellOpen(null);
  const card = current && main.querySelector(`article[data-number="${current.number}"]`);
  if (card) { card.scrollIntoView({ block: "nearest" }); card.focus({ preventScroll: true }); }
  current = null;
}

function change(edit) {
  past.push(JSON.stringify({ phrases, chosen }));
  edit();
  draw();
}

function fit() {
  if (!current) return;
  const w = Math.max(current.w, 1), h = Math.max(current.h, 1), space = getComputedStyle(stage);
  const width = stage.clientWidth - 2 * parseFloat(space.paddingLeft), height = stage.clientHeight - 2 * parseFloat(space.paddingTop);
  const scale = Math.max(0.01, Math.min(width / w, height / h));
  canvas.style.width = `${w * scale}px`;
  canvas.style.height = `${h * scale}px`;
}

function draw() {
  const place = shown.indexOf(current), by = current.judged ? `reviewed by ${current.judged.reviewer}` : current.openBy ? `${current.openBy} looks at it too` : "";
  const box = chosenBox(), found = box ? foundBy(current, phrases[chosen.phrase], box, true) : "";
  byId("at").textContent = [place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`, by, found].filter(Boolean).join(" · ");
  fit();
  let image = canvas.querySelector("img");
  if (!image || image.dataset.key !== String(current.number)) {
    canvas.replaceChildren();
    if (current.image) {
      image = element("img");
      image.alt = current.caption;
      image.src = current.image;
      image.dataset.key = current.number;
      canvas.append(image);
    } else canvas.append(element("span", current.reason || "no picture", "none"));
  }
  canvas.querySelectorAll("svg, .tag").forEach((each) => each.remove());
  canvas.append(...overlay(current, phrases, (phrase) => phrase.boxes, (phrase, box) => (phrase === chosen.phrase && box === chosen.box ? "chosen" : "")));
  drawGrips();
  byId("sentence").replaceChildren(caption(current, phrases));
  byId("chips").replaceChildren(...phrases.map(chip));
}

function drawGrips() {
  const box = chosenBox();
  if (!box) return;
  const [x1, y1, x2, y2] = box, svg = canvas.querySelector("svg");
  const size = (5 * Math.max(current.w, 1)) / Math.max(canvas.clientWidth, 1);
  for (const x of [x1, (x1 + x2) / 2, x2]) for (const y of [y1, (y1 + y2) / 2, y2]) {
    if (x !== (x1 + x2) / 2 || y !== (y1 + y2) / 2) svg.append(svgElement("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size, class: "grip" }));
  }
}

function chip(phrase, number) {
  const item = element("li"), state = phrase.boxes.length ? `${phrase.boxes.length} ×` : phrase.verdict === "absent" ? "not there" : "open";
  const button = element("button", `${phrase.text} · ${state}`, phrase.verdict === "absent" && !phrase.boxes.length ? "absent" : "");
  button.style.setProperty("--mark", colourOf(number));
  button.setAttribute("aria-pressed", number === chosen.phrase);
  button.addEventListener("click", () => { chosen = { phrase: number, box: -1 }; draw(); });
  item.append(button);
  return item;
}

// What is done

function acceptAndGoOn(judged) {
  if (!byId("reviewer").value.trim()) return askWho(judged);
  decide(current, judged.map(({ text, spans, boxes, verdict }) => ({
    text, spans, boxes, verdict: boxes.length ? "right" : verdict === "absent" ? "absent" : "open",
  })));
  const place = shown.indexOf(current);
  const waiting = (pair) => !pair.judged && !pair.openBy;
  const following = shown.slice(place + 1).find(waiting) || shown.find(waiting);
  if (following) return openEditor(following);
  closeEditor();
}

function askWho(judged) {
  naming = { kind: "reviewer", judged };
  byId("name").placeholder = "your name";
  byId("name").value = "";
  byId("naming").hidden = false;
  byId("name").focus();
}

function reject() {
  const phrase = phrases[chosen.phrase];
  if (!phrase) return;
  change(() => {
    if (chosenBox()) phrase.boxes.splice(chosen.box, 1);
    else if (phrase.boxes.length) phrase.boxes = [];
    else { phrase.verdict = phrase.verdict === "absent" ? "open" : "absent"; return; }
    chosen.box = -1;
    if (!phrase.boxes.length) phrase.verdict = "absent"; // it was said to be there, and is not
  });
}

function addBox(xyxy) {
  change(() => {
    phrases[chosen.phrase].boxes.push([...xyxy.map(round), 1]);
    chosen.box = phrases[chosen.phrase].boxes.length - 1;
  });
}

function setDrawing(value) {
  isDrawing = value;
  editor.querySelector("[data-do=draw]").setAttribute("aria-pressed", value);
}

function drawByKey() { // a box in the middle, for the arrow keys to move
  if (!phrases[chosen.phrase]) return startNaming("add");
  const { w, h } = current;
  addBox([0.35 * w, 0.35 * h, 0.65 * w, 0.65 * h]);
}

function startNaming(kind) {
  if (kind === "rename" && !phrases[chosen.phrase]) return;
  naming = { kind };
  byId("name").placeholder = "";
  byId("name").value = kind === "rename" ? phrases[chosen.phrase].text : "";
  byId("naming").hidden = false;
  byId("name").focus();
  byId("name").select();
}

function leaveNaming() {
  naming = null;
  byId("naming").hidden = true;
}

function spansOf(text) { // the first place where it stands in the caption as words, counted as Python counts
  const words = Array.from(current.caption), sought = Array.from(text), isWord = (letter) => /[\p{L}\p{N}_]/u.test(letter || "");
  for (let at = 0; at + sought.length <= words.length; at++) {
    const end = at + sought.length;
    if (words.slice(at, end).join("").toLowerCase() !== text.toLowerCase()) continue;
    if (!isWord(words[at - 1]) && !isWord(words[end])) return [[at, end]];
  }
  return [];
}

byId("naming").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("name").value.trim(), { kind, judged } = naming ?? {};
  leaveNaming();
  canvas.focus({ preventScroll: true });
  if (!text) return;
  if (kind === "reviewer") { byId("reviewer").value = text; rememberReviewer(); return acceptAndGoOn(judged); }
  change(() => {
    if (kind === "rename") Object.assign(phrases[chosen.phrase], { text, spans: spansOf(text) });
    else {
      phrases.push({ text, spans: spansOf(text), boxes: [], verdict: "open" });
      chosen = { phrase: phrases.length - 1, box: -1 };
    }
  });
});

function undo() {
  if (past.length) {
    ({ phrases, chosen } = JSON.parse(past.pop()));
    draw();
    return;
  }
  const taken = withdraw(current);
  if (!taken) return;
  openEditor(taken.pair); // as it was decided; another undo takes it as it came
  past = [JSON.stringify({ phrases, chosen })];
  phrases = taken.phrases;
  draw();
}

function go(by) {
  const place = shown.indexOf(current) + by;
  if (place >= 0 && place < shown.length) openEditor(shown[place]);
}

const ACTIONS = {
  accept: () => acceptAndGoOn(phrases),
  nothing: () => acceptAndGoOn(phrases.map((phrase) => ({ ...phrase, boxes: [], verdict: "absent" }))),
  reject, undo,
  draw: () => setDrawing(!isDrawing),
  rename: () => startNaming("rename"),
  add: () => startNaming("add"),
  previous: () => go(-1),
  next: () => go(1),
  close: closeEditor,
};
for (const button of editor.querySelectorAll("[data-do]")) button.addEventListener("click", () => ACTIONS[button.dataset.do]());

// By keys

function chooseNext(back) {
  const places = phrases.flatMap((phrase, number) => phrase.boxes.map((_, box) => ({ phrase: number, box })));
  if (!places.length) return;
  const at = places.findIndex(({ phrase, box }) => phrase === chosen.phrase && box === chosen.box);
  chosen = places[(at + (back ? (at < 0 ? 0 : -1) : 1) + places.length) % places.length];
  draw();
}

function nudge(key, isResize) {
  const box = chosenBox(), dx = { ArrowLeft: -1, ArrowRight: 1 }[key] || 0, dy = { ArrowUp: -1, ArrowDown: 1 }[key] || 0;
  const { w, h } = current, step = Math.max(1, STEP * Math.max(w, h));
  change(() => {
    const [x1, y1, x2, y2] = box;
    if (isResize) { box[2] = clamp(Math.max(x1 + 1, x2 + dx * step), w); box[3] = clamp(Math.max(y1 + 1, y2 + dy * step), h); }
    else moveBox(box, [x1, y1, x2, y2], dx * step, dy * step);
  });
}

function moveBox(box, [x1, y1, x2, y2], dx, dy) {
  dx = Math.min(Math.max(dx, -x1), current.w - x2);
  dy = Math.min(Math.max(dy, -y1), current.h - y2);
  [x1 + dx, y1 + dy, x2 + dx, y2 + dy].forEach((value, i) => { box[i] = round(value); });
}

const KEYS = { Enter: "accept", a: "accept", x: "reject", Delete: "reject", Backspace: "reject", n: "nothing", r: "rename", p: "add", z: "undo", j: "next", k: "previous" };
editor.addEventListener("keydown", (event) => {
  if (event.target.id === "name") {
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); leaveNaming(); canvas.focus({ preventScroll: true }); }
    return;
  }
  const isButton = event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " " || event.key === "Tab");
  if (isButton || event.altKey || ((event.ctrlKey || event.metaKey) && event.key !== "z")) return;
  if (event.key === "Tab" && phrases.some((phrase) => phrase.boxes.length)) chooseNext(event.shiftKey);
  else if (event.key.startsWith("Arrow") && chosenBox()) nudge(event.key, event.shiftKey);
  else if (event.key === "ArrowRight" || event.key === "ArrowLeft") go(event.key === "ArrowRight" ? 1 : -1);
  else if (event.key === "d") drawByKey();
  else if (event.key >= "1" && event.key <= "9") { if (phrases[event.key - 1]) { chosen = { phrase: event.key - 1, box: -1 }; draw(); } }
  else if (KEYS[event.key]) ACTIONS[KEYS[event.key]]();
  else return;
  event.preventDefault();
});
editor.addEventListener("cancel", (event) => { // Escape
  event.preventDefault();
  if (naming) leaveNaming();
  else if (chosenBox() || isDrawing) { chosen.box = -1; setDrawing(false); draw(); }
  else closeEditor();
});

// By mouse, pen and finger

function pointOf(event) {
  const place = canvas.getBoundingClientRect();
  return [clamp(((event.clientX - place.left) / place.width) * current.w, current.w), clamp(((event.clientY - place.top) / place.height) * current.h, current.h)];
}

function sidesNear(box, [x, y], near) { // which sides a pointer has hold of: indices into the box
  const [x1, y1, x2, y2] = box, sides = [];
  if (x < x1 - near || x > x2 + near || y < y1 - near || y > y2 + near) return sides;
  const inner = (low, high) => Math.min(near, (high - low) / 4);
  if (x < x1 + inner(x1, x2)) sides.push(0); else if (x > x2 - inner(x1, x2)) sides.push(2);
  if (y < y1 + inner(y1, y2)) sides.push(1); else if (y > y2 - inner(y1, y2)) sides.push(3);
  return sides;
}

function boxAt([x, y]) { // the smallest one
  const found = phrases.flatMap((phrase, number) => phrase.boxes.map((box, place) => ({ phrase: number, box: place, xyxy: box })));
  const inside = found.filter(({ xyxy: [x1, y1, x2, y2] }) => x >= x1 && x <= x2 && y >= y1 && y <= y2);
  const area = ({ xyxy: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  return inside.sort((a, b) => area(a) - area(b))[0];
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button > 0 || !current) return;
  const at = pointOf(event), near = (NEAR[event.pointerType] || 10) * (current.w / canvas.clientWidth);
  const sides = !isDrawing && chosenBox() ? sidesNear(chosenBox(), at, near) : [], hit = isDrawing || sides.length ? null : boxAt(at);
  if (hit) chosen = { phrase: hit.phrase, box: hit.box };
  gesture = { at, sides, kind: sides.length ? "resize" : hit ? "move" : "draw", before: chosenBox()?.slice(), saved: JSON.stringify({ phrases, chosen }), hasMoved: false };
  canvas.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
  event.preventDefault();
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!gesture || !event.isPrimary) return;
  const [x, y] = pointOf(event), [x0, y0] = gesture.at, box = chosenBox();
  const least = LEAST * (current.w / canvas.clientWidth);
  if (!gesture.hasMoved && Math.hypot(x - x0, y - y0) < least) return;
  gesture.hasMoved = true;
  if (gesture.kind === "move") moveBox(box, gesture.before, x - x0, y - y0);
  else if (gesture.kind === "resize") {
    const moved = gesture.before.slice(0, 4);
    for (const side of gesture.sides) moved[side] += side % 2 ? y - y0 : x - x0;
    [Math.min(moved[0], moved[2]), Math.min(moved[1], moved[3]), Math.max(moved[0], moved[2]), Math.max(moved[1], moved[3])]
      .forEach((value, i) => { box[i] = round(clamp(value, i % 2 ? current.h : current.w)); });
  } else gesture.drawn = [Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)];
  draw();
  if (gesture.drawn) {
    const [x1, y1, x2, y2] = gesture.drawn;
    for (const layer of ["under", "line"]) canvas.querySelector("svg").append(svgElement("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: layer, stroke: colourOf(Math.max(chosen.phrase, 0)) }));
  }
});
canvas.addEventListener("pointerup", () => {
  const done = gesture, box = chosenBox();
  gesture = null;
  if (!done || !current) return;
  if (done.drawn && done.drawn[2] - done.drawn[0] >= 1 && done.drawn[3] - done.drawn[1] >= 1) {
    setDrawing(false);
    if (phrases[chosen.phrase]) addBox(done.drawn);
    else startNaming("add");
  } else if (done.hasMoved && box && done.kind !== "draw") {
    if (box[2] - box[0] < 1 || box[3] - box[1] < 1) ({ phrases } = JSON.parse(done.saved));
    else past.push(done.saved);
  } else if (done.kind === "draw") chosen.box = -1;
  draw();
});
canvas.addEventListener("pointercancel", () => { if (gesture) ({ phrases, chosen } = JSON.parse(gesture.saved)); gesture = null; if (current) draw(); });
new ResizeObserver(() => { if (current) draw(); }).observe(stage);
