// What the page does beyond HTML: it opens what an address points to, filters the claims, and copies commands.
// Without it, all parts can still be opened by hand.
const main = document.querySelector("main");
const form = document.querySelector(".filter");
const claims = [...document.querySelectorAll(".claim")];
const opened = new Set(); // claims that the filter has opened

const chosen = () => [...form.querySelectorAll("[aria-pressed=true]")].map((button) => button.value);
const words = () => form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
const text = (part) => part.textContent.toLowerCase();

function filter() {
  const verdicts = chosen(), all = words(), active = verdicts.length + all.length > 0;
  for (const claim of claims) {
    const title = text(claim.closest("main > section").querySelector("h2"));
    claim.hidden = verdicts.length > 0 && !verdicts.includes(claim.dataset.verdict)
      || !all.every((word) => `${title} ${text(claim)}`.includes(word));
    document.querySelector(`.overview a[href="#${claim.id}"]`).classList.toggle("faint", claim.hidden);
    const summary = `${title} ${text(claim.querySelector("summary"))}`;
    if (!claim.hidden && !claim.open && !all.every((word) => summary.includes(word))) {
      claim.open = true; // a word is in the folded part
      opened.add(claim);
    } else if (opened.has(claim) && all.every((word) => summary.includes(word))) {
      claim.open = false;
      opened.delete(claim);
    }
  }
  const shown = claims.filter((claim) => !claim.hidden).length;
  for (const section of main.querySelectorAll("section:not(#claims), footer")) {
    section.hidden = active && !section.querySelector(".claim:not([hidden])");
  }
  main.classList.toggle("filtering", active);
  form.querySelector("[type=reset]").hidden = !active;
  form.querySelector("output").value = !active ? "" : shown ? `${shown} of ${claims.length} claims` : "no claim matches";
}

function keep() { // the filter, in the address
  const state = new URLSearchParams(chosen().map((verdict) => ["verdict", verdict]));
  if (words().length) state.set("words", form.querySelector("input").value.trim());
  history.replaceState(null, "", state.size ? `#?${state}` : "#top");
}

function choose(state) {
  for (const button of form.querySelectorAll("[aria-pressed]")) {
    button.ariaPressed = state.getAll("verdict").includes(button.value);
  }
  form.querySelector("input").value = state.get("words") ?? "";
  filter();
}

function place() { // the id in the address
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // not written by this page
  }
}

function follow() { // the address: a filter, or a place on the page
  if (location.hash.startsWith("#?")) {
    if (form) choose(new URLSearchParams(location.hash.slice(2)));
    return;
  }
  const target = document.getElementById(place());
  if (!target) return;
  for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  if (form && !target.getClientRects().length) choose(new URLSearchParams()); // the filter hides it
  target.scrollIntoView();
}

if (form) {
  form.hidden = false;
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[aria-pressed]");
    if (!button) return;
    button.ariaPressed = button.ariaPressed !== "true";
    filter();
    keep();
  });
  form.addEventListener("input", () => { filter(); keep(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => { event.preventDefault(); choose(new URLSearchParams()); keep(); });
}
addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  document.querySelector(".bar details").open &&= !link || !link.closest(".bar");
  if (link && link.getAttribute("href") === location.hash) follow(); // the address stays, so that no hashchange follows
});
follow();

for (const block of navigator.clipboard ? document.querySelectorAll(".command") : []) {
  const button = document.createElement("button");
  button.textContent = "copy";
  button.onclick = async () => {
    await navigator.clipboard.writeText(block.querySelector("code").textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
  block.append(button);
}
