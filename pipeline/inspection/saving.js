// What becomes of decisions: they go to the server that this page came from, or stay here until they are downloaded.
const RETRY_MS = [500, 1000, 2000, 4000, 8000], POLL_MS = 4000;
const outbox = []; // decisions that are not saved yet; of a page in a file, all of them
const lately = []; // pairs that were decided here, for undo
let isSending = false, isFollowing = false, fails = 0, version = 0, refusal = "";

function remember(name, value) { // a browser may keep nothing, as in private windows
  try { localStorage.setItem(`glip-review ${name}`, value); } catch { /* the page still has it */ }
}
function recall(name) {
  try { return localStorage.getItem(`glip-review ${name}`); } catch { return null; }
}
const rememberReviewer = () => remember("reviewer", byId("reviewer").value.trim());

function freshId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function decide(pair, judged) {
  record(pair, "judged", judged);
  lately.push(pair);
  pair.judged = { phrases: seen(judged), reviewer: byId("reviewer").value.trim(), isSaved: false };
  refresh(pair);
}

function withdraw(pair) { // takes back what was decided of a pair, else of the last one; returns it and the decision
  const isMine = pair.judged && pair.judged.reviewer === byId("reviewer").value.trim();
  const last = isMine ? pair : lately.at(-1);
  if (!last?.judged) return null;
  lately.splice(0, lately.length, ...lately.filter((each) => each !== last));
  const { phrases } = last.judged;
  record(last, "withdrawn", []);
  last.judged = null;
  refresh(last);
  return { pair: last, phrases };
}

function record(pair, verdict, judged) {
  const phrases = judged.map((phrase) => ({ ...phrase, boxes: phrase.boxes.map((box) => box.slice(0, 4)) }));
  outbox.push({ id: freshId(), key: pair.key, row: pair.print, reviewer: byId("reviewer").value.trim(), at: new Date().toISOString(), verdict, phrases });
  keepOutbox();
  send();
}

// Phrases of a decision as the page shows phrases: boxes have a score, people's the highest.
function seen(judged) {
  return judged.map(({ text, spans, boxes, verdict }) => ({ text, spans, verdict, reason: null, boxes: boxes.map((box) => [...box.slice(0, 4), 1]) }));
}

function refresh(pair) {
  redraw(pair);
  tellProgress();
}

function keepOutbox() {
  remember(`outbox ${page.id}`, JSON.stringify(outbox));
}

function tellProgress() {
  const done = pairs.filter((pair) => pair.judged && (pair.judged.isSaved || !page.is_served)).length;
  byId("progress").textContent = `${done.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} reviewed`;
  const waiting = page.is_served ? outbox.length : 0;
  const words = refusal || (waiting ? (fails ? `${waiting} not saved yet, asking again` : "saving …") : done ? (page.is_served ? "saved" : "kept in this browser") : "");
  byId("saved").textContent = words;
  byId("saved").classList.toggle("waiting", Boolean(refusal || (waiting && fails)));
  byId("download").hidden = page.is_served || !outbox.length;
  byId("download").textContent = `Download ${outbox.length.toLocaleString("en")} decisions`;
}

// To a server

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json", "X-Glip-Review": "1" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.detail || `status ${answer.status}`), { isFinal: answer.status >= 400 && answer.status < 500 });
  return said;
}

async function send() {
  if (!page.is_served) { for (const pair of pairs) if (pair.judged) pair.judged.isSaved = true; tellProgress(); return; }
  if (isSending) return;
  isSending = true;
  while (outbox.length) {
    tellProgress();
    const decision = outbox[0], pair = pairs.find((each) => each.key === decision.key && each.print === decision.row);
    try {
      await ask("decisions", decision);
      [fails, refusal] = [0, ""];
      outbox.shift();
      if (pair?.judged && !outbox.some((each) => each.row === decision.row)) pair.judged.isSaved = true;
    } catch (error) {
      if (!error.isFinal) { // the server, its disk or its store does not answer: the decision stays here
        fails += 1;
        tellProgress();
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(fails, RETRY_MS.length) - 1]));
        continue;
      }
      outbox.shift();
      refusal = `refused: ${error.message}`;
      if (pair) pair.judged = null;
    }
    keepOutbox();
    if (pair) refresh(pair);
  }
  isSending = false;
  tellProgress();
}

async function follow() { // what others have decided meanwhile, and what they look at
  if (isFollowing) return;
  isFollowing = true;
  try {
    const state = await ask(`state?since=${version}`);
    version = state.version;
    for (const pair of pairs) pair.openBy = null;
    for (const [number, name] of Object.entries(state.open)) if (name !== byId("reviewer").value.trim()) pairs[number].openBy = name;
    for (const [number, decision] of Object.entries(state.decided)) {
      const pair = pairs[number];
      if (outbox.some((each) => each.row === pair.print)) continue; // what this page says is newer
      pair.judged = decision && { phrases: seen(decision.phrases), reviewer: decision.reviewer, isSaved: true };
      redraw(pair);
    }
    tellProgress();
    // A list of what is not reviewed loses what others review; the pair that is open stays.
    if (byId("which").value === "open" && !editor.open && Object.keys(state.decided).length) show();
  } catch { /* asked again soon */ }
  isFollowing = false;
}

function tellOpen(pair) {
  if (page.is_served && byId("reviewer").value.trim()) ask("open", { number: pair ? pair.number : null, reviewer: byId("reviewer").value.trim() }).catch(() => {});
}

// Of a page in a file

byId("download").addEventListener("click", () => {
  const lines = outbox.map((decision) => `${JSON.stringify(decision)}\n`).join("");
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([lines], { type: "application/jsonl" }));
  link.download = "decisions.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

function takeUp() { // decisions of an earlier visit that were not saved or downloaded
  let before = [];
  try { before = JSON.parse(recall(`outbox ${page.id}`) || "[]"); } catch { /* not ours */ }
  for (const decision of Array.isArray(before) ? before : []) {
    const pair = pairs.find((each) => each.key === decision.key && each.print === decision.row);
    if (!pair) continue;
    outbox.push(decision);
    pair.judged = decision.verdict === "judged" ? { phrases: seen(decision.phrases), reviewer: decision.reviewer, isSaved: false } : null;
  }
}

byId("reviewer").value = recall("reviewer") || byId("reviewer").value;
byId("reviewer").addEventListener("change", rememberReviewer);
byId("review").addEventListener("click", () => { const first = shown.find((pair) => !pair.judged && !pair.openBy) || shown[0]; if (first) openEditor(first); });
byId("known").append(...[...new Set(pairs.flatMap((pair) => pair.phrases.map((phrase) => phrase.text)))].slice(0, 2000).map((text) => { const option = element("option"); option.value = text; return option; }));
takeUp();
show();
tellProgress();
if (page.is_served) {
  follow();
  setInterval(() => { if (!document.hidden) follow(); }, POLL_MS);
}
send();
