"use strict";
// The rows: what is known of all of them, which ones the filters leave and in which order, and the details of
// one, which are parsed (report) or fetched (review) when it is shown.

const index = JSON.parse(document.getElementById("index").textContent);
const isReview = index.mode === "review";
const STATUSES = ["edited", "redacted", "untouched", "withheld"];
const PER_PAGE = 20;

const state = {
  status: new Set(), groups: new Set(), reason: "", decision: "", split: "",
  score: "", low: null, high: null, order: "worst", page: 0, view: "slider", regions: true,
};

const valueOf = (name, number) => (name === "attempts" ? index.attempts : index.checks[name])[number];

function isShown(number) {
  if (state.status.size && !state.status.has(index.status[number])) return false;
  if (state.groups.size && !index.groups[number].some((group) => state.groups.has(group))) return false;
  if (state.reason && index.reason[number] !== state.reason) return false;
  if (state.decision && (index.decision[number] || "none") !== state.decision) return false;
  if (state.split && index.split[number] !== state.split) return false;
  if (!state.score) return true;
  const value = valueOf(state.score, number);
  return value !== null && (state.low === null || value >= state.low) && (state.high === null || value <= state.high);
}

// A row without the value stands after all that have one.
const descending = (values) => (a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity) || a - b;

function orderBy(order) {
  if (order === "row") return (a, b) => a - b;
  if (order === "worst") return (a, b) => index.worst[a] - index.worst[b];
  if (order === "attempts") return descending(index.attempts);
  return descending(index.checks[order]);
}

function shownRows() {
  const rows = [];
  for (let number = 0; number < index.row.length; number++) if (isShown(number)) rows.push(number);
  return rows.sort(orderBy(state.order));
}

async function detailsOf(number) {
  if (!isReview) return JSON.parse(document.getElementById(`row-${number}`).textContent);
  return answerOf(await fetch(`rows/${number}`));
}

async function sendDecision(number, decision) {
  const body = JSON.stringify({ number, decision });
  const answer = await fetch("decisions", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  return (await answerOf(answer)).decision;
}

async function answerOf(response) {
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
  return answer;
}

function count(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return counts;
}

// Elements are made from text, never from markup: a caption can't become part of the page.
function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "rect", "line", "text", "title", "g"].includes(tag);
  const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const figure = (value) => value.toLocaleString("en", { maximumFractionDigits: 3 });
