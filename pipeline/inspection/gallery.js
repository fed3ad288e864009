"use strict";
// Everything from the data goes in as text or as numbers; nothing is parsed as HTML.
const pairs = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#0aa5a5", "#f032e6", "#8a9a00", "#9a6324", "#5a5aff"];
const AT_ONCE = 60;
const byId = (id) => document.getElementById(id);
const main = byId("pairs");
let shown = [], next = 0;

for (const pair of pairs) {
  pair.best = Math.max(-1, ...pair.phrases.flatMap((phrase) => phrase.boxes.map((box) => box[4])));
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function kept(phrase) {
  const least = Number(byId("score").value);
  return phrase.boxes.filter((box) => box[4] >= least);
}

function matches(pair) {
  const words = byId("phrase").value.trim().toLowerCase();
  const which = byId("which").value;
  const asked = pair.phrases.filter((phrase) => !words || phrase.text.toLowerCase().includes(words));
  if (words && !asked.length) return false;
  const hasBoxes = asked.some((phrase) => kept(phrase).length);
  if (which === "boxes") return hasBoxes;
  if (which === "none") return !hasBoxes;
  return hasBoxes || Number(byId("score").value) === 0;
}

function caption(pair) {
  const line = element("p", undefined, "caption");
  const starts = pair.phrases
    .flatMap((phrase, number) => phrase.spans.map(([start, end]) => ({ start, end, number })))
    .sort((a, b) => a.start - b.start);
  // Spans count characters as Python does, not UTF-16 units.
  const letters = Array.from(pair.caption);
  let at = 0;
  for (const { start, end, number } of starts) {
    if (start < at) continue;
    line.append(letters.slice(at, start).join(""));
    const mark = element("mark", letters.slice(start, end).join(""));
    mark.style.setProperty("--mark", COLOURS[number % COLOURS.length]);
    line.append(mark);
    at = end;
  }
  line.append(letters.slice(at).join(""));
  return line;
}

function frame(pair) {
  const holder = element("div", undefined, "frame");
  holder.style.aspectRatio = `${Math.max(pair.w, 1)} / ${Math.max(pair.h, 1)}`;
  holder.style.maxHeight = "26rem";
  if (pair.image) {
    const image = element("img");
    image.alt = pair.caption;
    image.decoding = "async";
    image.src = `data:image/jpeg;base64,${pair.image}`;
    holder.append(image);
  } else {
    holder.append(element("span", pair.reason || "no picture", "none"));
  }
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  pair.phrases.forEach((phrase, number) => {
    for (const [x1, y1, x2, y2] of kept(phrase)) {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 }).forEach(([k, v]) => rect.setAttribute(k, v));
      rect.setAttribute("stroke", COLOURS[number % COLOURS.length]);
      rect.dataset.phrase = number;
      svg.append(rect);
    }
  });
  holder.append(svg);
  return holder;
}

function card(pair) {
  const made = element("article");
  made.tabIndex = 0;
  const words = element("div", undefined, "words");
  const list = element("ul");
  pair.phrases.forEach((phrase, number) => {
    const boxes = kept(phrase);
    const scores = boxes.map((box) => box[4].toFixed(2)).join(", ");
    const why = phrase.reason || (phrase.boxes.length ? "below the score" : "no box");
    const item = element("li", `${phrase.text} ${boxes.length ? scores : "– " + why}`, boxes.length ? "" : "without");
    item.style.setProperty("--mark", COLOURS[number % COLOURS.length]);
    item.addEventListener("pointerenter", () => light(made, number));
    item.addEventListener("pointerleave", () => light(made, null));
    list.append(item);
  });
  words.append(caption(pair), list, element("p", [pair.key, pair.source, pair.reason].filter(Boolean).join(" · "), "head"));
  made.append(frame(pair), words);
  made.addEventListener("click", () => made.classList.toggle("open")); // for fingers, which do not hover
  return made;
}

function light(article, number) {
  article.classList.toggle("one", number !== null);
  for (const rect of article.querySelectorAll("rect")) rect.classList.toggle("lit", Number(rect.dataset.phrase) === number);
}

function more() {
  const part = document.createDocumentFragment();
  for (const pair of shown.slice(next, next + AT_ONCE)) part.append(card(pair));
  next += AT_ONCE;
  main.append(part);
}

function show() {
  byId("least").textContent = Number(byId("score").value).toFixed(2);
  shown = pairs.filter(matches);
  const order = byId("order").value;
  if (order !== "stored") shown.sort((a, b) => (order === "best" ? b.best - a.best : a.best - b.best));
  byId("count").textContent = `${shown.length.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} pairs`;
  main.replaceChildren();
  next = 0;
  more();
  const state = new URLSearchParams();
  for (const id of ["phrase", "score", "which", "order"]) state.set(id, byId(id).value);
  history.replaceState(null, "", `#${state}`);
}

// A link keeps what was searched for.
const wanted = new URLSearchParams(location.hash.slice(1));
for (const id of ["phrase", "score", "which", "order"]) if (wanted.has(id)) byId(id).value = wanted.get(id);
for (const id of ["score", "which", "order"]) byId(id).addEventListener("input", show);
let pause;
byId("phrase").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(show, 120); });
// Cards are made when the reader comes near the end of those that are there.
new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting) && next < shown.length) more(); },
  { rootMargin: "1500px" }).observe(byId("end"));
show();
