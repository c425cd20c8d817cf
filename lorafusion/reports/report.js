// The theme's button, and what pointing at a loss curve tells.
"use strict";

(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();

  const jobs = JSON.parse(document.getElementById("data").textContent);
  const cards = [...document.querySelectorAll(".card")];
  const together = document.getElementById("together"), nearest = document.getElementById("nearest");
  const lines = together ? jobs.map((_, index) => together.querySelector(`.j${index}`)) : [];
  const number = (value, digits = 4) => value === null || value === undefined ? "not finite" : value.toPrecision(digits);
  let chosen = -1;

  // Index of the kept step that is closest.
  function closest(steps, step) {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  }

  const shareAt = (event, element) => {
    const frame = element.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
  };

  function choose(index) {
    if (index === chosen) return;
    for (const at of [chosen, index]) {
      if (lines[at]) lines[at].classList.toggle("chosen", at === index);
      if (cards[at]) cards[at].classList.toggle("chosen", at === index);
    }
    if (together) together.classList.toggle("dim", index >= 0);
    chosen = index;
  }

  function told(job, at) {
    const parts = [`step ${job.steps[at]}: loss ${number(job.losses[at])}`];
    parts.push(`smoothed ${number(job.smooth[at])}`, `rate ${job.rates[at].toExponential(2)}`);
    const done = job.evals.filter(([step]) => step <= job.steps[at]).pop();
    if (done) parts.push(`held-out ${number(done[1])} (step ${done[0]})`);
    return parts.join(", ");
  }

  cards.forEach((card, index) => {
    const job = jobs[index], said = card.querySelector("output"), before = said.textContent;
    const chart = card.querySelector(".chart"), cursor = card.querySelector(".cursor");
    const place = (x) => {
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, x);
      cursor.setAttribute("visibility", "visible");
    };
    const leave = () => { choose(-1); cursor.setAttribute("visibility", "hidden"); said.textContent = before; };
    card.addEventListener("pointermove", (event) => {
      choose(index);
      if (!job.steps.length) return;
      const at = closest(job.steps, shareAt(event, chart) * Number(card.dataset.last));
      place(`${100 * job.steps[at] / Number(card.dataset.last)}%`);
      said.textContent = told(job, at);
    });
    card.addEventListener("pointerleave", leave);
  });

  if (together) {
    const { last, low, high, top, height } = Object.fromEntries(
      Object.entries(together.dataset).map(([key, value]) => [key, Number(value)]));
    const before = nearest.textContent;
    together.addEventListener("pointermove", (event) => {
      const step = shareAt(event, together) * last;
      const y = event.clientY - together.getBoundingClientRect().top - top;
      const value = high - y / height * (high - low);
      let best = -1, least = Infinity, found = 0;
      jobs.forEach((job, index) => {
        if (!job.steps.length || step > job.steps[job.steps.length - 1] + last / 50) return;
        const at = closest(job.steps, step), apart = Math.abs((job.smooth[at] ?? Infinity) - value);
        if (apart < least) { least = apart; best = index; found = at; }
      });
      choose(best);
      nearest.textContent = best < 0 ? before : `${jobs[best].name}, ${told(jobs[best], found)}`;
    });
    together.addEventListener("pointerleave", () => { choose(-1); nearest.textContent = before; });
  }

  const filter = document.getElementById("filter");
  if (filter) {
    filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      cards.forEach((card, index) => { card.hidden = !jobs[index].name.toLowerCase().includes(wanted); });
    });
  }
})();
