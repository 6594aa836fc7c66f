// What the pages do more comfortably with script; without it they all work the same.
"use strict";

// The reader's own time beside UTC.
const zone = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const withDay = new Intl.DateTimeFormat(undefined, {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
});

function showLocalTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime()) || at.getTimezoneOffset() === 0) continue;
    const isSameDay = at.getDate() === at.getUTCDate();
    const local = document.createElement("small");
    local.className = "local";
    local.textContent = `${(isSameDay ? clock : withDay).format(at)} local`;
    time.append(" ", local);
    time.dataset.local = "";
  }
}

function nameZone() {
  const place = document.querySelector(".zone");
  const now = new Date();
  if (!place || now.getTimezoneOffset() === 0) return;
  const name = zone.formatToParts(now).find((part) => part.type === "timeZoneName").value;
  place.textContent = `; beside them stands your local time, ${name}`;
  place.hidden = false;
}

// An action in a list shows what came of it in its own row.
async function sendInPlace(event) {
  const form = event.target.closest("form[data-in-place]");
  if (!form) return;
  event.preventDefault();
  const row = form.closest("tr");
  const button = form.querySelector("button");
  button.disabled = true;
  row.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      headers: { "X-Fragment": "row", Accept: "text/html" },
      body: new URLSearchParams(new FormData(form)),
    });
    const holder = document.createElement("template");
    holder.innerHTML = await answer.text();
    const fresh = holder.content.querySelector("tr");
    if (!fresh) {
      location.reload(); // signed out, or an error: the page says which
      return;
    }
    row.replaceWith(fresh);
    showLocalTimes(fresh);
    fresh.querySelector("a").focus();
  } catch {
    button.disabled = false;
    row.removeAttribute("aria-busy");
    form.submit();
  }
}

// A run that is under way: look again until it is over.
if (document.querySelector("[data-reload]")) setTimeout(() => location.reload(), 3000);

document.addEventListener("submit", sendInPlace);
showLocalTimes(document);
nameZone();
