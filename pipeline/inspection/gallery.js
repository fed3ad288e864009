"use strict";
// Everything from the data goes in as text or as numbers; nothing is parsed as HTML.
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page").textContent);
const pairs = JSON.parse(byId("data").textContent);
// Bright, over a dark line: on any picture one of the two stands out.
const COLOURS = ["#ffd400", "#00e5ff", "#ff5ad1", "#7dff3a", "#ff9a3c", "#c3adff", "#ff5c5c", "#3affc8", "#f0ff8a", "#9ccbff"];
const AT_ONCE = 60, MANY_BOXES = 16, ROW = 8, GAP = 13;
const STATE = ["phrase", "score", "which", "order"], TOGGLES = ["boxes", "names"];
const main = byId("pairs");
let shown = [], next = 0;

// By this a box is known again until somebody moves it.
function placeOf(phrase, box) { return `${box.slice(0, 4)} ${phrase.text}`; }

pairs.forEach((pair, number) => {
  pair.number = number;
  pair.judged = null; // what was decided: {phrases, reviewer, isSaved}
  pair.found = new Map(pair.phrases.flatMap((phrase) => (phrase.found || []).map((each, place) => [placeOf(phrase, phrase.boxes[place]), each])));
  pair.best = Math.max(-1, ...pair.phrases.flatMap((phrase) => phrase.boxes.map((box) => box[4])));
});

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function svgElement(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

const colourOf = (number) => COLOURS[number % COLOURS.length];
const labelsOf = (pair) => (pair.judged ? pair.judged.phrases : pair.phrases);
const searched = () => byId("phrase").value.trim().toLowerCase();
const isAsked = (phrase) => phrase.text.toLowerCase().includes(searched());

function kept(phrase) {
  const least = Number(byId("score").value);
  return phrase.boxes.filter((box) => box[4] >= least);
}

// Says of a machine's box how many of several teachers found it and in which pass; [teachers, agreement, pass] are given.
function foundBy(pair, phrase, box, names = false) {
  const [teachers, agreement, pass] = (!pair.judged && pair.found.get(placeOf(phrase, box))) || [];
  const has = (value) => value !== null && value !== undefined;
  return [has(agreement) ? `${Math.round(100 * agreement)} % agree` : "", has(pass) ? `pass ${pass}` : "",
    names && teachers?.length ? `by ${teachers.join(", ")}` : ""].filter(Boolean).join(", ");
}

function matches(pair) {
  const which = byId("which").value;
  if (which === "open" || which === "judged") { if (Boolean(pair.judged) !== (which === "judged")) return false; }
  const phrases = labelsOf(pair);
  const asked = phrases.filter(isAsked);
  if (searched() && !asked.length) return false;
  const hasBoxes = asked.some((phrase) => kept(phrase).length);
  if (which === "boxes") return hasBoxes;
  if (which === "none") return !hasBoxes;
  return hasBoxes || Number(byId("score").value) === 0;
}

function caption(pair, phrases) {
  const line = element("p", undefined, "caption");
  const starts = phrases
    .flatMap((phrase, number) => phrase.spans.map(([start, end]) => ({ start, end, number })))
    .sort((a, b) => a.start - b.start);
  // Spans count characters as Python does, not UTF-16 units.
  const letters = Array.from(pair.caption);
  let at = 0;
  for (const { start, end, number } of starts) {
    if (start < at) continue;
    line.append(letters.slice(at, start).join(""));
    const mark = element("mark", letters.slice(start, end).join(""));
    mark.style.setProperty("--mark", colourOf(number));
    line.append(mark);
    at = end;
  }
  line.append(letters.slice(at).join(""));
  return line;
}

// Puts boxes of all phrases, with their names, over a picture; `classes` says what else each is.
function overlay(pair, phrases, boxesOf, classes) {
  const svg = svgElement("svg", { viewBox: `0 0 ${Math.max(pair.w, 1)} ${Math.max(pair.h, 1)}`, preserveAspectRatio: "none" });
  const tags = [];
  phrases.forEach((phrase, number) => {
    boxesOf(phrase).forEach((box, place) => {
      const [x1, y1, x2, y2, score] = box, extra = classes(number, place);
      for (const layer of ["under", "line"]) {
        const rect = svgElement("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: `${layer} ${extra}` });
        if (layer === "line") rect.setAttribute("stroke", colourOf(number));
        rect.dataset.phrase = number;
        svg.append(rect);
      }
      const isHigh = y1 > 0.07 * pair.h, isFar = x1 > 0.7 * pair.w;
      const tag = element("span", `${phrase.text} ${score.toFixed(2)}`, `tag ${isHigh ? "above" : "below"} ${isFar ? "left" : ""} ${extra}`);
      tag.style.cssText = `left:${(100 * (isFar ? x2 : x1)) / pair.w}%;top:${(100 * y1) / pair.h}%`;
      tag.style.setProperty("--mark", colourOf(number));
      tag.dataset.phrase = number;
      tags.push(tag);
    });
  });
  return [svg, ...tags];
}

function frame(pair, phrases) {
  const holder = element("div", undefined, "frame");
  const ratio = Math.max(pair.w, 1) / Math.max(pair.h, 1);
  holder.style.aspectRatio = `${ratio}`;
  holder.style.maxWidth = `${26 * ratio}rem`;
  if (pair.image) {
    const image = element("img");
    image.alt = pair.caption;
    image.decoding = "async";
    image.loading = "lazy";
    image.src = pair.image;
    holder.append(image);
  } else {
    holder.append(element("span", pair.reason || "no picture", "none"));
  }
  const asked = searched();
  holder.append(...overlay(pair, phrases, kept, (number) => (asked && isAsked(phrases[number]) ? "lit" : "")));
  holder.classList.toggle("many", phrases.reduce((sum, phrase) => sum + kept(phrase).length, 0) > MANY_BOXES);
  return holder;
}

function said(pair, phrase) {
  const boxes = kept(phrase);
  const withFound = (score, found) => (found ? `${score} (${found})` : score);
  if (boxes.length) return boxes.map((box) => withFound(box[4].toFixed(2), foundBy(pair, phrase, box))).join(", ");
  return `– ${phrase.verdict === "absent" ? "not there" : phrase.reason || (phrase.boxes.length ? "below the score" : "no box")}`;
}

function card(pair) {
  const made = element("article"), phrases = labelsOf(pair);
  made.tabIndex = 0;
  made.dataset.number = pair.number;
  const words = element("div", undefined, "words");
  const list = element("ul");
  phrases.forEach((phrase, number) => {
    const item = element("li", `${phrase.text} ${said(pair, phrase)}`, kept(phrase).length ? "" : "without");
    item.style.setProperty("--mark", colourOf(number));
    item.addEventListener("pointerenter", () => light(made, (each) => each === number));
    item.addEventListener("pointerleave", () => lightSearched(made, phrases));
    list.append(item);
  });
  words.append(caption(pair, phrases), list);
  if (pair.judged) {
    const { reviewer, isSaved } = pair.judged;
    words.append(element("p", isSaved ? `✓ reviewed by ${reviewer}` : "not saved yet", isSaved ? "stamp" : "stamp waiting"));
  }
  words.append(element("p", [pair.key, pair.source, pair.reason].filter(Boolean).join(" · "), "head"));
  made.append(frame(pair, phrases), words);
  lightSearched(made, phrases);
  made.addEventListener("click", () => openEditor(pair));
  made.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); openEditor(pair); } });
  return made;
}

function light(article, isLit) {
  article.classList.toggle("one", Boolean(isLit));
  for (const each of article.querySelectorAll("[data-phrase]")) each.classList.toggle("lit", Boolean(isLit) && isLit(Number(each.dataset.phrase)));
}

function lightSearched(article, phrases) {
  light(article, searched() && ((number) => isAsked(phrases[number])));
}

// Cards span as many short rows of the grid as they are high, so that none leaves a hole below it.
function settle(cards) {
  for (const each of cards) each.style.gridRowEnd = "";
  const heights = cards.map((each) => each.getBoundingClientRect().height);
  cards.forEach((each, i) => { each.style.gridRowEnd = `span ${Math.ceil((heights[i] + GAP) / ROW)}`; });
}

function more() {
  const cards = shown.slice(next, next + AT_ONCE).map(card);
  next += AT_ONCE;
  main.append(...cards);
  settle(cards);
}

function redraw(pair) {
  const old = main.querySelector(`article[data-number="${pair.number}"]`);
  if (!old) return;
  const made = card(pair);
  old.replaceWith(made);
  settle([made]);
}

function explainEmpty() {
  const words = byId("phrase").value.trim(), least = Number(byId("score").value), which = byId("which").selectedOptions[0];
  const advice = [];
  if (words) advice.push(`search for something shorter than “${words}”`);
  if (least) advice.push(`lower the score from ${least.toFixed(2)}`);
  if (which.value !== "all") advice.push(`show more than those ${which.textContent}`);
  byId("empty").hidden = shown.length > 0;
  byId("everything").hidden = !advice.length;
  byId("empty").firstElementChild.textContent = advice.length ? `No pair is like that: ${advice.join(", or ")}.` : "There are no pairs on this page.";
}

function show() {
  byId("least").textContent = Number(byId("score").value).toFixed(2);
  shown = pairs.filter(matches);
  const order = byId("order").value;
  if (order !== "stored") shown.sort((a, b) => (order === "best" ? b.best - a.best : a.best - b.best));
  byId("count").textContent = `${shown.length.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} pairs`;
  for (const id of TOGGLES) main.classList.toggle(`no-${id}`, !byId(id).checked);
  main.replaceChildren();
  next = 0;
  more();
  explainEmpty();
  const state = new URLSearchParams();
  for (const id of STATE) state.set(id, byId(id).value);
  for (const id of TOGGLES) if (!byId(id).checked) state.set(id, "0");
  history.replaceState(null, "", `#${state}`);
}

// A link keeps what was searched for.
const wanted = new URLSearchParams(location.hash.slice(1));
for (const id of STATE) if (wanted.has(id)) byId(id).value = wanted.get(id);
for (const id of TOGGLES) byId(id).checked = wanted.get(id) !== "0";
for (const id of ["score", "which", "order", ...TOGGLES]) byId(id).addEventListener("input", show);
let pause;
byId("phrase").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(show, 120); });
byId("fold").addEventListener("click", () => byId("fold").setAttribute("aria-expanded", byId("head").classList.toggle("open")));
byId("everything").addEventListener("click", () => {
  for (const [id, value] of [["phrase", ""], ["score", "0"], ["which", "all"]]) byId(id).value = value;
  show();
});
// Cards are made when the reader comes near the end of those that are there.
new IntersectionObserver((seen) => { if (seen.some((each) => each.isIntersecting) && next < shown.length) more(); },
  { rootMargin: "1500px" }).observe(byId("end"));
let width = 0;
new ResizeObserver(([seen]) => {
  if (seen.contentRect.width !== width) settle([...main.children]);
  width = seen.contentRect.width;
}).observe(main);
