"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const tip = document.getElementById("tip");

  // ---- what is shown -------------------------------------------------------------------------------------------

  const chosen = (name) => new Set([...form.querySelectorAll(`input[name="${name}"]:checked`)].map((box) => box.value));
  let wanted = null;
  const readFilters = () => {
    wanted = { setting: chosen("setting"), method: chosen("method"), fusion: chosen("fusion") };
  };
  const passes = (row) => wanted.method.has(row.method) && wanted.fusion.has(row.fusion);

  function apply() {
    readFilters();
    for (const section of document.querySelectorAll("section[data-setting]"))
      section.hidden = !wanted.setting.has(section.dataset.setting);
    for (const row of document.querySelectorAll("tr[data-method]"))
      row.hidden = !passes(row.dataset) || (row.dataset.setting !== undefined && !wanted.setting.has(row.dataset.setting));
    draw();
    const settings = data.settings.filter((one) => wanted.setting.has(one.id));
    const all = data.settings.reduce((sum, one) => sum + one.rows.length, 0);
    const shown = settings.reduce((sum, one) => sum + one.rows.filter(passes).length, 0);
    document.getElementById("shown").textContent = `${shown} of ${all} rows shown`;
  }

  // ---- drawing -------------------------------------------------------------------------------------------------

  function svg(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  function html(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const colour = (row) => `c${data.colours[row.method]}`;
  const PATHS = [
    (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
    (r) => `M0,${-1.2 * r}L${1.15 * r},${0.9 * r}H${-1.15 * r}Z`,
    (r) => `M${-0.9 * r},${-0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
    (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0Z`,
    (r) => `M0,${1.2 * r}L${1.15 * r},${-0.9 * r}H${-1.15 * r}Z`,
    (r) => {
      const [half, arm] = [0.45 * r, 0.75 * r];
      return `M${-half},${-half - arm}h${2 * half}v${arm}h${arm}v${2 * half}h${-arm}v${arm}h${-2 * half}v${-arm}h${-arm}`
        + `v${-2 * half}h${arm}Z`;
    },
    (r) => `M0,${-1.2 * r}L${1.14 * r},${-0.37 * r}L${0.71 * r},${0.97 * r}H${-0.71 * r}L${-1.14 * r},${-0.37 * r}Z`,
  ];
  function mark(row, x, y, said, radius = 5.5) {
    const kind = `point ${colour(row)}${row.shortfall ? " short" : ""}`;
    const made = svg("path", {
      class: kind, d: PATHS[data.shapes[row.fusion]](radius), transform: `translate(${x},${y})`, tabindex: 0, role: "img",
      "aria-label": `${row.label}: ${said.join(", ")}`,
    });
    const show = () => showTip(made, row.label, said);
    for (const event of ["mouseenter", "focus"]) made.addEventListener(event, show);
    for (const event of ["mouseleave", "blur"]) made.addEventListener(event, () => { tip.hidden = true; });
    return made;
  }
  function showTip(target, title, lines) {
    tip.replaceChildren(html("b", {}, title), ...lines.flatMap((line) => [document.createTextNode(line), html("br")]));
    tip.hidden = false;
    const place = target.getBoundingClientRect();
    const left = Math.min(Math.max(8, place.x + place.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = place.y - tip.offsetHeight - 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : place.bottom + 10}px`;
  }

  // ---- scales --------------------------------------------------------------------------------------------------

  function niceTicks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const ticks = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) ticks.push(at);
    return ticks;
  }
  function logTicks(low, high) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
      ticks.push(10 ** power);
    return ticks.filter((one) => one >= low && one <= high);
  }
  function padded(values, share) {
    const low = Math.min(...values), high = Math.max(...values);
    const pad = (high - low) * share || Math.abs(high) * 0.05 || 1;
    return [low - pad, high + pad];
  }
  // A cost axis is logarithmic where costs differ by more than a factor of 20; nothing at all then has a place of its own.
  function costScale(values, left, right) {
    const positive = values.filter((one) => one > 0);
    const free = positive.length < values.length;
    if (positive.length && Math.max(...positive) / Math.min(...positive) > 20) {
      const [low, high] = padded(positive.map(Math.log10), 0.08);
      const start = free ? left + 26 : left;
      const at = (value) => (value > 0 ? start + ((Math.log10(value) - low) / (high - low)) * (right - start) : left + 6);
      return { at, ticks: [...(free ? [0] : []), ...logTicks(10 ** low, 10 ** high)] };
    }
    const [low, high] = padded(values, 0.08);
    const from = free ? Math.min(0, low) : Math.max(0, low);
    return { at: (value) => left + ((value - from) / (high - from)) * (right - left), ticks: niceTicks(Math.max(0, from), high, 4) };
  }
  function short(value, unit) {
    if (value === 0) return "0";
    if (unit === "seconds") return value >= 120 ? `${+(value / 60).toPrecision(3)} min` : `${+value.toPrecision(3)} s`;
    const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
    const [size, prefix] = steps.find(([one]) => value >= one) || [1, ""];
    return `${+(value / size).toPrecision(3)}${unit === "bytes" ? ` ${prefix}B` : prefix}`;
  }
  const clipped = (text) => (text.length > 26 ? `${text.slice(0, 25)}…` : text);
  const percent = (value) => `${+(100 * value).toFixed(1)}`;

  // ---- plots ---------------------------------------------------------------------------------------------------

  function front(rows, cost) {
    const order = [...rows].sort((a, b) => a.costs[cost] - b.costs[cost] || b.quality - a.quality);
    const found = [];
    for (const row of order) if (!found.length || row.quality > found[found.length - 1].quality) found.push(row);
    return found;
  }
  // Names go where they cover neither points nor each other; a name without such a place is left to the pointer.
  function placeNames(named, marks, left, right, top, bottom) {
    const taken = marks.map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
    const found = [];
    for (const [row, x, y] of named) {
      const width = row.label.length * 6.1 + 4;
      const places = [[x + 9, y + 4, "start"], [x - 9, y + 4, "end"], [x, y - 10, "middle"], [x, y + 18, "middle"],
        [x + 7, y - 8, "start"], [x - 7, y - 8, "end"], [x + 7, y + 16, "start"], [x - 7, y + 16, "end"]];
      for (const [tx, ty, anchor] of places) {
        const start = anchor === "start" ? tx : anchor === "end" ? tx - width : tx - width / 2;
        const box = [start, ty - 10, start + width, ty + 3];
        const inside = box[0] >= left && box[2] <= right && box[1] >= top && box[3] <= bottom;
        if (inside && !taken.some((one) => one[0] < box[2] && one[2] > box[0] && one[1] < box[3] && one[3] > box[1])) {
          taken.push(box);
          found.push(svg("text", { class: "name halo", x: tx, y: ty, "text-anchor": anchor }, row.label));
          break;
        }
      }
    }
    return found;
  }
  function pareto(setting, rows, cost, width) {
    const measured = rows.filter((row) => row.costs[cost.name] !== undefined);
    const caption = html("figcaption", {}, cost.title);
    if (!measured.length) return html("figure", {}, caption, html("p", { class: "about" }, "Not measured."));
    const height = 270, left = 34, right = width - 10, top = 14, bottom = height - 26;
    const [low, high] = padded(rows.map((row) => row.quality), 0.1);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    const x = costScale(measured.map((row) => row.costs[cost.name]), left + 8, right);
    const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group",
      "aria-label": `${setting.metric} against ${cost.title} on ${setting.label}; the table below has the numbers` });
    for (const tick of niceTicks(low, high, 5)) {
      made.append(svg("line", { class: "gridline", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
      made.append(svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, percent(tick)));
    }
    for (const tick of x.ticks) {
      made.append(svg("line", { class: "gridline", x1: x.at(tick), x2: x.at(tick), y1: top, y2: bottom }));
      made.append(svg("text", { x: x.at(tick), y: bottom + 16, "text-anchor": "middle" }, short(tick, cost.unit)));
    }
    made.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    const best = front(measured.filter((row) => !row.shortfall), cost.name);
    const at = (row) => [x.at(row.costs[cost.name]), y(row.quality)];
    const steps = best.map((row, place) => `${place ? `H${at(row)[0]}V` : `M${at(row)[0]},`}${at(row)[1]}`).join("");
    if (best.length) made.append(svg("path", { class: "front", d: `${steps}H${right}` }));
    for (const row of [...measured].sort((a, b) => best.includes(a) - best.includes(b))) {
      const said = [`${setting.metric} ${row.shown}`, `${cost.title} ${row.amounts[cost.name]}`];
      if (best.includes(row)) said.push("on the front");
      if (row.shortfall) said.push(row.shortfall);
      const point = mark(row, ...at(row), said);
      if (best.includes(row)) point.classList.add("on-front");
      made.append(point);
    }
    const named = [...best].reverse().map((row) => [row, ...at(row)]);
    made.append(...placeNames(named, measured.map(at), left, width, 0, bottom));
    return html("figure", {}, caption, made);
  }
  function intervals(setting, rows, width) {
    const room = Math.min(190, 20 + 7 * Math.max(...rows.map((row) => clipped(row.label).length), 4));
    const step = 24, top = 8, bottom = top + step * rows.length, height = bottom + 24;
    const left = room, right = width - (width > 640 ? 150 : 12);
    const [low, high] = padded(rows.flatMap((row) => [row.quality, row.low ?? row.quality, row.high ?? row.quality]), 0.04);
    const x = (value) => left + ((value - low) / (high - low)) * (right - left);
    const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group",
      "aria-label": `${setting.metric} on ${setting.label} with 95% intervals; the table below has the numbers` });
    for (const tick of niceTicks(low, high, width > 640 ? 10 : 4)) {
      made.append(svg("line", { class: "gridline", x1: x(tick), x2: x(tick), y1: top, y2: bottom }));
      made.append(svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, percent(tick)));
    }
    const reference = rows.find((row) => row.label === setting.reference);
    if (reference) made.append(svg("line", { class: "reference", x1: x(reference.quality), x2: x(reference.quality), y1: top, y2: bottom }));
    rows.forEach((row, place) => {
      const y = top + step * (place + 0.5);
      const said = [`${setting.metric} ${row.shown}`, ...(row.shortfall ? [row.shortfall] : [])];
      made.append(svg("text", { class: "name", x: left - 12, y: y + 4, "text-anchor": "end" }, clipped(row.label)));
      if (row.low !== null) made.append(svg("line", { class: `whisker ${colour(row)}`, x1: x(row.low), x2: x(row.high), y1: y, y2: y }));
      made.append(mark(row, x(row.quality), y, said));
      if (width > 640) made.append(svg("text", { x: right + 12, y: y + 4 }, row.shortfall ? row.shortfall : row.shown));
    });
    const note = reference ? ` – the dashed line is ${setting.reference}` : "";
    return html("figure", {}, html("figcaption", {}, `${setting.metric}, percent`, html("span", {}, note)), made);
  }

  function draw() {
    tip.hidden = true;
    for (const setting of data.settings) {
      if (!wanted.setting.has(setting.id)) continue;
      const rows = setting.rows.filter(passes);
      const plots = document.querySelector(`[data-plots="${setting.id}"]`);
      const lines = document.querySelector(`[data-intervals="${setting.id}"]`);
      if (!rows.length) {
        for (const place of [plots, lines]) place.replaceChildren(html("p", { class: "about" }, "No row passes the filters."));
        continue;
      }
      const columns = getComputedStyle(plots).gridTemplateColumns.split(" ").length;
      const width = Math.floor((plots.clientWidth - 20 * (columns - 1)) / columns);
      plots.replaceChildren(...data.costs.map((cost) => pareto(setting, rows, cost, width)));
      lines.replaceChildren(intervals(setting, rows, Math.min(lines.clientWidth, 1000)));
    }
  }

  // ---- tables --------------------------------------------------------------------------------------------------

  function sortBy(head) {
    const body = head.closest("table").tBodies[0];
    const place = head.cellIndex;
    const up = head.getAttribute("aria-sort") === "descending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[place].dataset.order;
    const text = (row) => row.cells[place].textContent;
    const compare = (a, b) => {
      const [one, two] = [key(a), key(b)];
      if (one === undefined || two === undefined)
        return one === two ? (up ? 1 : -1) * text(a).localeCompare(text(b)) : one === undefined ? 1 : -1;
      return (up ? 1 : -1) * (Number(one) - Number(two));
    };
    body.append(...[...body.rows].sort(compare));
  }
  async function copy(button) {
    const code = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  document.addEventListener("click", (event) => {
    const head = event.target.closest("thead th");
    if (head && event.target.closest("button")) sortBy(head);
    const button = event.target.closest(".copy");
    if (button) copy(button);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  if (innerWidth <= 640) form.querySelector("details").open = false;
  let drawn = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== drawn) { drawn = innerWidth; draw(); } });
  apply();
})();
