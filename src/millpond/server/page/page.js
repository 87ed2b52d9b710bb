"use strict";
/* Models, a form to try them, and meters. Everything shown is made by `make`, as text and never as
   markup; every request goes to this server. */

const ROOT = document.documentElement.dataset.root;
const KEY = "millpond-key"; // its place in sessionStorage
const PERIOD_MS = 2000;
const POINTS = 60; // of a meter: two minutes
const MOST_TEXTS = 2000;
const OWN_ROUTES = /^\/(|docs|metrics|health|static\/.*)$/; // asked by pages and probes
const byId = (id) => document.getElementById(id);

let models = [];

/* An element with its properties and children. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/* Requests. */

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  const options = { headers, method: body ? "POST" : "GET", body: body && JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(ROOT + path, options);
  } catch {
    throw new Refused(0, "the server does not answer");
  }
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    const body = await answer.json();
    return (body.error && body.error.message) || body.message || body.error;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

/* The state of the server, and its models. */

function say(id, text, bad = false) {
  byId(id).textContent = text;
  byId(id).classList.toggle("bad", bad);
}

async function load() {
  try {
    models = (await (await ask("/v1/models")).json()).data;
  } catch (error) {
    if (error.status === 401) askForKey();
    else say("status", `Not ready: ${error.message}`, true);
    return;
  }
  byId("key-form").hidden = true;
  say("status", models.length === 1 ? `Ready: ${models[0].id}` : `Ready: ${models.length} models`);
  byId("model").replaceChildren(...models.map((one) => make("option", { value: one.id }, one.id)));
  byId("models").replaceChildren(...models.map(describe));
  byId("run").disabled = false;
  choose();
}

function askForKey() {
  const wrong = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  say("status", "A key is needed");
  if (wrong) say("key-note", "The server does not take this key.", true);
  byId("key-form").hidden = false;
  byId("run").disabled = true;
  byId("key").focus();
}

const KINDS = {
  embed: { does: "gives embeddings", verb: "Find the nearest", run: nearest },
  score: { does: "reranks", verb: "Rerank", run: rerank },
  multi_vector: { does: "reranks, by late interaction", verb: "Rerank", run: rerank },
  classify: { does: "classifies", verb: "Classify", run: classify },
};

function chosen() {
  return models.find((one) => one.id === byId("model").value);
}

/* Fit the form to the kind of the chosen model. */
function choose() {
  const model = chosen();
  const kind = KINDS[model.kind];
  byId("model-note").textContent = kind
    ? `It ${kind.does}.`
    : `There is no form for its kind here (${model.kind}); see the API.`;
  byId("run").disabled = !kind;
  if (kind) byId("run").textContent = kind.verb;
  byId("query-label").hidden = model.kind === "classify";
}

function describe(model) {
  const facts = {
    kind: model.kind,
    [model.labels.length ? "labels" : "dimensions"]: model.labels.join(", ") || model.dimension,
    "longest text": model.max_model_len === null ? "no limit" : `${model.max_model_len} tokens`,
    device: `${model.device}, ${model.dtype}`,
    runs: model.execution,
  };
  const rows = Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]);
  return make("div", {}, make("h3", {}, model.id), make("dl", {}, ...rows));
}

/* The form. */

async function submit() {
  const query = byId("query").value;
  const texts = byId("texts").value.split("\n").filter((line) => line.trim());
  const model = chosen();
  byId("results").replaceChildren();
  byId("vector").hidden = true;
  if (!texts.length) return say("outcome", "There are no texts: write one on each line.", true);
  if (texts.length > MOST_TEXTS) return say("outcome", `At most ${MOST_TEXTS} texts.`, true);
  byId("run").disabled = true;
  say("outcome", "…");
  const began = performance.now();
  try {
    const { rows, about } = await KINDS[model.kind].run(model, query, texts);
    const took = (performance.now() - began).toFixed(0);
    byId("results").replaceChildren(...rows);
    say("outcome", `${texts.length} ${texts.length === 1 ? "text" : "texts"} in ${took} ms${about}`);
  } catch (error) {
    if (error.status === 401) askForKey();
    say("outcome", error.message, true);
  } finally {
    byId("run").disabled = models.length === 0;
  }
}

/* What a request took, by the server's headers. */
function told(answer, tokens) {
  const ms = (part) => Number(answer.headers.get(`x-millpond-${part}-ms`)).toFixed(1);
  const cut = Number(answer.headers.get("x-millpond-truncated-texts"));
  const lost = cut ? `; ${cut} longer than the model reads` : "";
  return `: ${ms("queue")} in the queue, ${ms("forward")} in the model, ${tokens} tokens${lost}`;
}

function result(score, share, text) {
  const bar = make("i", {});
  bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return make("li", {}, make("span", { className: "score" }, score), make("span", {}, text),
    make("span", { className: "bar", ariaHidden: "true" }, bar));
}

async function nearest(model, query, texts) {
  const embed = (input, type) => ask("/v1/embeddings", { model: model.id, input, input_type: type });
  const [one, several] = await Promise.all([embed(query, "query"), embed(texts, "document")]);
  const vector = (await one.json()).data[0].embedding;
  const answer = await several.json();
  const found = answer.data.map((item) => [cosine(vector, item.embedding), texts[item.index]]);
  found.sort((left, right) => right[0] - left[0]);
  plot(vector);
  const rows = found.map(([score, text]) => result(score.toFixed(3), score, text));
  return { rows, about: told(several, answer.usage.total_tokens) };
}

function cosine(a, b) {
  const dot = (left, right) => left.reduce((sum, value, place) => sum + value * right[place], 0);
  return dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
}

/* The numbers of a vector as lines up and down from the middle. */
function plot(vector) {
  const largest = Math.max(...vector.map(Math.abs)) || 1;
  const step = 384 / vector.length;
  const line = (value, place) => `M${(place + 0.5) * step} 30v${(-28 * value) / largest}`;
  document.querySelector("#vector-plot path").setAttribute("d", vector.map(line).join(""));
  byId("vector-note").textContent = `The query's vector: ${vector.length} numbers, the largest ${largest.toFixed(3)}`;
  byId("vector").hidden = false;
}

async function rerank(model, query, texts) {
  const answer = await ask("/rerank", { model: model.id, query, documents: texts });
  const { results, usage } = await answer.json();
  const scores = results.map((one) => one.relevance_score);
  /* Scores may be logits: the bars go from the lowest to the highest, unless they are shares. */
  const low = Math.min(0, ...scores), high = Math.max(1, ...scores);
  const rows = results.map((one) =>
    result(one.relevance_score.toFixed(3), (one.relevance_score - low) / (high - low), texts[one.index]));
  return { rows, about: told(answer, usage.total_tokens) };
}

async function classify(model, query, texts) {
  const answer = await ask("/classify", { model: model.id, input: texts });
  const { data, usage } = await answer.json();
  const rows = data.map((one) => {
    const share = Math.max(...one.probs);
    return result(share.toFixed(3), share, `${one.label}: ${texts[one.index]}`);
  });
  return { rows, about: told(answer, usage.total_tokens) };
}

/* Metrics in Prometheus' text format: name -> [{labels, value}]. */
function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

function sum(metrics, name, keep = () => true) {
  const samples = (metrics.get(name) || []).filter((one) => keep(one.labels));
  return samples.reduce((total, one) => total + one.value, 0);
}

const isCall = (labels) => !OWN_ROUTES.test(labels.route);

/* Seconds below which a share of the requests between two readings were answered. */
function quantile(now, before, share) {
  const counts = new Map();
  for (const [metrics, sign] of [[now, 1], [before, -1]]) {
    for (const { labels, value } of metrics.get("millpond_http_request_seconds_bucket") || []) {
      if (isCall(labels)) counts.set(labels.le, (counts.get(labels.le) || 0) + sign * value);
    }
  }
  const buckets = [...counts].map(([le, count]) => [le === "+Inf" ? Infinity : Number(le), count]);
  buckets.sort((left, right) => left[0] - right[0]);
  const total = buckets.length ? buckets[buckets.length - 1][1] : 0;
  let lower = 0, below = 0;
  for (const [upper, count] of buckets) {
    if (total && count >= share * total) {
      if (upper === Infinity) return lower;
      return lower + ((upper - lower) * (share * total - below)) / (count - below);
    }
    [lower, below] = [upper, count];
  }
  return null;
}

/* What a meter shows of two readings and the seconds between them; null for nothing to show. */
const rate = (name, keep) => (now, before, seconds) => (sum(now, name, keep) - sum(before, name, keep)) / seconds;
function mean(name) {
  return (now, before) => {
    const count = sum(now, `${name}_count`) - sum(before, `${name}_count`);
    return count ? (sum(now, `${name}_sum`) - sum(before, `${name}_sum`)) / count : null;
  };
}
const METERS = [
  { name: "Requests", unit: "a second", of: rate("millpond_http_requests_total", isCall) },
  { name: "Response time, 95 %", unit: "ms", of: (now, before) => {
    const seconds = quantile(now, before, 0.95);
    return seconds === null ? null : seconds * 1000;
  } },
  { name: "Texts", unit: "a second", of: rate("millpond_texts_total") },
  { name: "Tokens", unit: "a second", of: rate("millpond_tokens_total") },
  { name: "Queue", unit: "tokens", of: (now) => sum(now, "millpond_queue_tokens") },
  { name: "Batch", unit: "texts", of: mean("millpond_batch_texts") },
  { name: "Forward pass", unit: "ms", of: (now, before) => {
    const seconds = mean("millpond_batch_forward_seconds")(now, before);
    return seconds === null ? null : seconds * 1000;
  } },
  { name: "In the engine", unit: "requests", of: (now) => sum(now, "millpond_engine_requests_in_progress") },
];

const SVG = document.querySelector("svg").namespaceURI;

function draw(meter) {
  meter.values = [];
  meter.number = make("strong", {}, "–");
  const paths = ["area", "line"].map((kind) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", kind);
    return path;
  });
  const plotted = document.createElementNS(SVG, "svg");
  plotted.setAttribute("viewBox", `0 0 ${POINTS - 1} 34`);
  plotted.setAttribute("preserveAspectRatio", "none");
  plotted.setAttribute("aria-hidden", "true");
  plotted.append(...paths);
  meter.paths = paths;
  return make("div", { className: "meter" }, make("p", {}, meter.name), meter.number, plotted);
}

function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(0)} k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

function show(meter, value) {
  meter.values = [...meter.values, value].slice(-POINTS);
  meter.number.replaceChildren(value === null ? "–" : short(value), " ", make("small", {}, meter.unit));
  const highest = Math.max(...meter.values.map((one) => one || 0)) || 1;
  const start = POINTS - meter.values.length;
  const points = meter.values.map((one, place) => `${start + place} ${32 - (29 * (one || 0)) / highest}`);
  const [area, line] = meter.paths;
  line.setAttribute("d", `M${points.join("L")}`);
  area.setAttribute("d", `M${start} 34L${points.join("L")}L${POINTS - 1} 34Z`);
}

let last = null; // {metrics, at}

async function measure() {
  if (document.hidden || byId("pause").getAttribute("aria-pressed") === "true") {
    last = null;
    return;
  }
  try {
    const metrics = parse(await (await ask("/metrics")).text());
    const at = performance.now();
    if (last) for (const meter of METERS) show(meter, meter.of(metrics, last.metrics, (at - last.at) / 1000));
    if (!last && models.length === 0 && byId("key-form").hidden) load();
    last = { metrics, at };
  } catch (error) {
    if (error.status !== 401) say("status", `Not ready: ${error.message}`, true);
    last = null;
    if (error.status !== 401) models = [];
  }
}

async function watch() {
  await measure();
  setTimeout(watch, PERIOD_MS);
}

/* What people do. */

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  load();
});
byId("try-form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("try-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("run").disabled) submit();
});
byId("model").addEventListener("change", () => {
  byId("results").replaceChildren();
  byId("vector").hidden = true;
  say("outcome", "");
  choose();
});
byId("pause").addEventListener("click", () => {
  const paused = byId("pause").getAttribute("aria-pressed") !== "true";
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Go on" : "Pause";
});
byId("meters").replaceChildren(...METERS.map(draw));
load();
watch();
