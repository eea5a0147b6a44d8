/* The interactive parts of a run's page.

The page reads without this script. Each part has a place, `[data-part]`, with a static `.fallback` in it. A part is
built beside its fallback, which is hidden once the part stands. A part that fails leaves its fallback.

Names of classes and paths come from the user's data and may hold anything. They enter the page as text nodes and
attributes, never as HTML. */
(function () {
  "use strict";

  const PICTURES_AT_ONCE = 24;
  const CLASSES_AT_ONCE = 12;
  const ANY = "any";

  const root = document.documentElement;
  root.classList.replace("no-script", "script");

  /* What parts offer each other: the gallery shows what the confusion matrix and the map ask for. */
  const parts = {};
  const redraws = [];
  const kept = {};

  // ---------------------------------------------------------------------------------------------- elements and text

  function fallbacksOf(host) {
    return host.querySelectorAll(".fallback");
  }

  function setAttributes(node, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      node.setAttribute(name, value === true ? "" : value);
    }
    return node;
  }

  /* A new element. Children that are strings become text nodes. */
  function element(tag, attributes = {}, ...children) {
    const node = setAttributes(document.createElement(tag), attributes);
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  function drawing(tag, attributes = {}, ...children) {
    const node = setAttributes(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
    node.append(...children);
    return node;
  }

  /* A small drawing for a legend. */
  function sample(viewBox, shape) {
    return drawing("svg", { viewBox, "aria-hidden": "true" }, shape);
  }

  /* A name from the data, in its own writing direction. The style sheet cuts off a long one; the title has it all. */
  function nameOf(text) {
    return element("bdi", { class: "name", title: text }, text);
  }

  /* A path, which may break after its slashes. */
  function pathOf(text) {
    const pieces = text.split("/").flatMap((piece, place) => (place ? ["/", element("wbr"), piece] : [piece]));
    return element("bdi", { dir: "ltr" }, ...pieces);
  }

  /* A long name without its middle, since names may begin alike. */
  function shortened(text) {
    const letters = Array.from(text);
    return letters.length > 40 ? [...letters.slice(0, 24), "…", ...letters.slice(-15)].join("") : text;
  }

  /* AVC and AVH are about 1 / K for K classes, so small numbers have more digits. */
  function fraction(value, digits = 3) {
    if (value === null) return "–";
    return value !== 0 && Math.abs(value) < 0.02 ? value.toPrecision(3) : value.toFixed(digits);
  }

  /* Counts are written like those of the tables: 12,345. */
  function counted(count) {
    return count.toLocaleString("en-US");
  }

  function plural(count, singular) {
    return `${counted(count)} ${singular}${count === 1 ? "" : "s"}`;
  }

  function percent(share) {
    return share === null ? "–" : `${(100 * share).toFixed(1)} %`;
  }

  function oracle() {
    return element("abbr", { class: "oracle", title: "needs target labels, which training never sees" }, "oracle");
  }

  function colour(variable) {
    return getComputedStyle(root).getPropertyValue(`--${variable}`).trim();
  }

  let controls = 0;
  function labelled(text, control) {
    control.id = `control-${(controls += 1)}`;
    return element("div", { class: "control" }, element("label", { for: control.id }, text), control);
  }

  /* A <select> of [value, text] pairs, with its label. */
  function selectOf(title, options, chosen, changed) {
    const select = element("select");
    for (const [value, text] of options) {
      select.append(element("option", { value, title: text.length > 24 ? text : null }, shortened(text)));
    }
    select.value = chosen;
    select.addEventListener("change", changed);
    return { select, control: labelled(title, select) };
  }

  /* [value, text] pairs of entries that have a text. */
  function namesOf(entries) {
    return entries.map(([value, { text }]) => [value, text]);
  }

  /* Choose an option by its value, if there is one. */
  function pick(select, value) {
    if ([...select.options].some((option) => option.value === String(value))) select.value = value;
  }

  function searchField(title, changed) {
    const input = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    input.addEventListener("input", changed);
    return { input, control: labelled(title, input) };
  }

  /* A group of radio buttons that looks like one control. `changed` is called with the chosen value. */
  let groups = 0;
  function radioGroup(title, options, chosen, changed) {
    const name = `choice-${(groups += 1)}`;
    const choices = element("span", { class: "choices" });
    for (const [value, text] of options) {
      const input = element("input", { type: "radio", name, value });
      input.checked = value === chosen;
      input.addEventListener("change", () => changed(value));
      choices.append(element("label", {}, input, element("span", {}, text)));
    }
    return element("fieldset", { class: "segmented" }, element("legend", {}, title), choices);
  }

  function matches(text, query) {
    return text.toLocaleLowerCase().includes(query.trim().toLocaleLowerCase());
  }

  function scrollTo(node) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    node.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }

  // ----------------------------------------------------------------------------------------------------------- data

  function readData() {
    const holder = document.getElementById("page-data");
    return holder ? JSON.parse(holder.textContent) : {};
  }

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  /* Browsers run on little-endian machines alone, which is the order of the data. */
  function numbersOf(Numbers, base64) {
    return base64 === null ? null : new Numbers(bytesOf(base64).buffer);
  }

  /* Index of the state that the confusion matrix and the map show. */
  function finalState(data) {
    return data.confusion ? data.confusion.state : data.states.length - 1;
  }

  function unitOf(data) {
    return data.unit === "round" ? "Round" : "Report";
  }

  // --------------------------------------------------------------------------------------------------------- curves

  const SERIES = 7;
  const WHOLE_STEPS = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((step) => step * 10 ** power));
  const DASHES = [[], [9, 4], [2, 3], [11, 4, 2, 4], [16, 4], [5, 2], [11, 2, 2, 2, 2, 2]];

  /* Colour and dash of a series. The first 49 all look different. */
  function lookOf(index) {
    return { variable: `series-${(index % SERIES) + 1}`, dash: DASHES[(index + Math.floor(index / SERIES)) % SERIES] };
  }

  function digitsFor(values) {
    const known = values.filter((value) => value !== null);
    if (known.every(Number.isInteger)) return 0;
    const most = Math.max(...known.map(Math.abs));
    return most >= 10 ? 1 : most >= 0.1 ? 3 : 5;
  }

  function lineSample(look) {
    const stroke = { stroke: `var(--${look.variable})`, "stroke-width": 2.5, "stroke-dasharray": look.dash.join(" ") };
    return sample("0 0 30 10", drawing("line", { x2: 30, y1: 5, y2: 5, ...stroke }));
  }

  function lastOf(values) {
    for (let index = values.length - 1; index >= 0; index -= 1) if (values[index] !== null) return index;
    return null;
  }

  function curveInWords(curve, lines, shown) {
    const told = lines.map(({ name, values, level }) => {
      const first = values.findIndex((value) => value !== null);
      if (first < 0) return `${name}: no value`;
      if (level) return `${name}: ${shown(values[first])}`;
      const last = lastOf(values);
      const [from, to] = [first, last].map((index) => `${shown(values[index])} at ${curve.xlabel} ${curve.x[index]}`);
      return `${name}: ${from}, ${to}`;
    });
    return `${curve.title}. ${told.join("; ")}.`;
  }

  /* The legend tells the values under the pointer, or the last ones. Its buttons show and hide the lines. */
  function curveLegend(curve, lines, shown, toggle) {
    const at = element("li", { class: "at" });
    const list = element("ul", { class: "legend curve-legend" }, at);
    const cells = lines.map(({ name, look }, index) => {
      const value = element("span", { class: "value" });
      const content = [lineSample(look), nameOf(name), value];
      const button = element("button", { type: "button", "aria-pressed": "true" }, ...content);
      button.addEventListener("click", () => {
        const visible = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(visible));
        toggle(index, visible);
      });
      list.append(element("li", {}, button));
      return value;
    });
    function read(position) {
      at.textContent = `${curve.xlabel} ${position === null ? curve.x[curve.x.length - 1] : curve.x[position]}`;
      cells.forEach((cell, index) => {
        const { values } = lines[index];
        const place = position === null ? lastOf(values) : position;
        cell.textContent = place === null || values[place] === null ? "–" : shown(values[place]);
      });
    }
    read(null);
    return { list, read };
  }

  function curveAxis(format) {
    return {
      stroke: () => colour("soft"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: () => colour("faint"), width: 1 },
      ticks: { show: false },
      ...format,
    };
  }

  /* The single runs that a line is the mean of. The legend shows and hides them with their line. */
  function paleRuns(curve) {
    return curve.series.flatMap(({ runs }, owner) => (runs || []).map((values) => ({ owner, values })));
  }

  function drawCurve(figure, curve) {
    const pale = paleRuns(curve);
    const lines = curve.series.map((series, index) => ({ ...series, look: lookOf(index) }));
    curve.baselines.forEach(({ name, value }, index) => {
      const look = { variable: "soft", dash: index === curve.baselines.length - 1 ? [3, 4] : [1, 4] };
      lines.push({ name, values: curve.x.map(() => value), look, level: true });
    });
    const digits = digitsFor(lines.flatMap(({ values }) => values));
    const shown = (value) => (digits ? value.toFixed(digits) : counted(value));
    const words = curveInWords(curve, lines, shown);
    const host = element("div", { class: "curve", role: "img", "aria-label": words, "data-live": "" });
    const legend = curveLegend(curve, lines, shown, (index, show) => {
      plot.setSeries(index + 1, { show });
      pale.forEach(({ owner }, place) => owner === index && plot.setSeries(lines.length + place + 1, { show }));
    });
    const unit = element("div", { class: "unit", "data-live": "" }, curve.ylabel);
    legend.list.setAttribute("data-live", "");
    figure.append(unit, host, legend.list);

    const options = {
      width: Math.max(host.clientWidth, 240),
      height: 224,
      legend: { show: false },
      // All curves tell the same round, wherever the pointer is.
      cursor: { sync: { key: "curves", setSeries: false }, drag: { x: false, y: false }, y: false },
      scales: { x: { time: false } },
      axes: [
        curveAxis({ incrs: WHOLE_STEPS, size: 28, gap: 4 }),
        curveAxis({ size: (self, ticks) => 14 + 7 * Math.max(2, ...(ticks || []).map((tick) => tick.length)), gap: 4 }),
      ],
      series: [
        {},
        ...lines.map(({ name, look, level }) => ({
          label: name,
          stroke: () => colour(look.variable),
          width: level ? 1.25 : 2,
          dash: look.dash,
          spanGaps: Boolean(curve.joined),
          points: { show: !level && curve.x.length <= 40, size: 6, fill: () => colour(look.variable) },
        })),
        ...pale.map(({ owner }) => ({
          stroke: () => colour(lines[owner].look.variable),
          width: 1,
          alpha: 0.35,
          spanGaps: Boolean(curve.joined),
          points: { show: false },
        })),
      ],
      hooks: { setCursor: [(self) => legend.read(self.cursor.idx === undefined ? null : self.cursor.idx)] },
    };
    const plot = new uPlot(options, [curve.x, ...[...lines, ...pale].map(({ values }) => values)], host);
    redraws.push(() => plot.redraw());
    new ResizeObserver(() => {
      if (host.clientWidth > 0 && host.clientWidth !== plot.width)
        plot.setSize({ width: host.clientWidth, height: 224 });
    }).observe(host);
  }

  function buildCurves(host, data) {
    const drawn = [];
    for (const curve of data.curves || []) {
      const figure = [...host.querySelectorAll("[data-curve]")].find((each) => each.dataset.curve === curve.id);
      if (!figure) continue;
      drawCurve(figure, curve);
      drawn.push(...fallbacksOf(figure));
    }
    return drawn;
  }

  // ------------------------------------------------------------------------------------------------------ selection

  const PLOT = { width: 240, height: 60 };

  /* The hatching of wrong pseudo-labels, for all histograms of the page. */
  function hatching() {
    const ground = drawing("rect", { class: "hatch-ground", width: 5, height: 5 });
    const line = drawing("line", { class: "hatch-line", y2: 5, "stroke-width": 3 });
    const turned = { patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
    const pattern = drawing("pattern", { id: "hatch", width: 5, height: 5, ...turned }, ground, line);
    return drawing("svg", { width: 0, height: 0, "aria-hidden": "true", style: "position: absolute" }, pattern);
  }

  const sum = (counts) => counts.reduce((total, count) => total + count, 0);

  function layersOf(figures) {
    return [figures.right, figures.wrong, figures.unknown].map((counts) => counts || []);
  }

  function tallestBin(figures, bins) {
    const layers = layersOf(figures);
    let most = 0;
    for (let bin = 0; bin < bins; bin += 1) most = Math.max(most, sum(layers.map((counts) => counts[bin] || 0)));
    return most;
  }

  /* The outlines of the stacked bars, one path per layer. */
  function stackedBars(figures, bins, most) {
    const width = PLOT.width / bins;
    const floor = new Array(bins).fill(PLOT.height);
    return layersOf(figures).map((counts) => {
      let path = "";
      counts.forEach((count, bin) => {
        if (!count) return;
        const height = (PLOT.height * count) / most;
        path += `M${bin * width + 0.5} ${floor[bin]}v${-height}h${width - 1}v${height}z`;
        floor[bin] -= height;
      });
      return path;
    });
  }

  /* The figures of a class in a round, by their titles. */
  const CLASS_FIGURES = {
    "TP rate": { text: (of) => percent(of.tp_rate), oracle: true },
    AVC: { text: (of) => fraction(of.avc) },
    AVH: { text: (of) => fraction(of.avh) },
    confidence: { text: (of) => fraction(of.confidence) },
    norm: { text: (of) => fraction(of.norm, 2) },
  };

  /* One class: its histogram and its figures. `show` fills in those of a round. */
  function classCard(data, number) {
    const { rounds, bins } = data.selection;
    const most = Math.max(1, ...rounds.map((round) => tallestBin(round.classes[number], bins)));
    const [low, high] = rounds[0].range;
    const bars = ["right", "wrong", "unknown"].map((layer) => drawing("path", { class: `bars-${layer}` }));
    const below = drawing("rect", { class: "below", height: PLOT.height });
    const fine = { "vector-effect": "non-scaling-stroke" };
    const line = drawing("line", { class: "threshold-line", y2: PLOT.height, ...fine });
    const stretched = { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, preserveAspectRatio: "none", role: "img" };
    const histogram = drawing("svg", stretched, ...bars, below, line);
    const threshold = element("span", { class: "threshold" });
    const images = element("span");
    const figures = element("dl", { class: "figures" });
    const told = Object.entries(CLASS_FIGURES).filter(([, { oracle }]) => data.labelled || !oracle);
    const values = told.map(([title, figure]) => {
      const value = element("dd");
      const term = element("dt", {}, title, ...(figure.oracle ? [" ", oracle()] : []));
      figures.append(element("div", {}, term, value));
      return value;
    });
    const title = element("div", { class: "title" }, nameOf(data.classes[number]), images);
    const plot = element("div", { class: "histogram" }, threshold, histogram);
    const ends = [low, high].map((end) => element("span", {}, fraction(end)));
    const card = element("li", {}, title, plot, element("div", { class: "ends" }, ...ends), figures);

    function showThreshold(lambda) {
      const known = lambda !== null;
      line.style.display = below.style.display = known ? "" : "none";
      threshold.textContent = known ? `λ ${fraction(lambda)}` : "";
      if (!known) return;
      const share = Math.min(Math.max((lambda - low) / (high - low || 1), 0), 1);
      threshold.style.setProperty("--at", (100 * share).toFixed(2));
      below.setAttribute("width", PLOT.width * share);
      line.setAttribute("x1", PLOT.width * share);
      line.setAttribute("x2", PLOT.width * share);
    }

    function show(round) {
      const of = round.classes[number];
      stackedBars(of, bins, most).forEach((path, layer) => bars[layer].setAttribute("d", path));
      showThreshold(of.lambda);
      const selected = `${counted(of.selected)} of ${counted(of.images)} selected`;
      images.textContent = selected;
      told.forEach(([, figure], index) => (values[index].textContent = figure.text(of)));
      const limit = of.lambda === null ? "no threshold" : `threshold ${fraction(of.lambda)}`;
      const words = `Scores of the images with pseudo-label ${data.classes[number]}`;
      histogram.setAttribute("aria-label", `${words}: ${selected}, ${limit}`);
    }
    return { card, show };
  }

  function histogramLegend(data) {
    const list = element("ul", { class: "legend" });
    const add = (kind, text) => {
      const bar = drawing("rect", { class: `bars-${kind}`, width: 16, height: 16 });
      list.append(element("li", {}, sample("0 0 16 16", bar), text));
    };
    if (data.labelled) {
      add("right", "right");
      add("wrong", "wrong");
      if (data.selection.rounds.some(({ classes }) => classes.some(({ unknown }) => sum(unknown)))) {
        add("unknown", "not labelled");
      }
      list.append(element("li", {}, oracle()));
    }
    list.append(element("li", { class: "soft" }, "pale: below the threshold λ, not selected"));
    return list;
  }

  const missingLast = (value, missing) => (value === null ? missing : value);
  const CLASS_ORDERS = {
    name: { text: "name", value: null },
    selected: { text: "fewest selected", value: (of) => of.selected },
    tp_rate: { text: "lowest TP rate (oracle)", value: (of) => missingLast(of.tp_rate, Infinity), oracle: true },
    images: { text: "most images", value: (of) => -of.images },
  };

  function classesInOrder(data, round, order, query) {
    const found = [...data.classes.keys()].filter((number) => matches(data.classes[number], query));
    const { value } = CLASS_ORDERS[order];
    const byName = (a, b) => data.classes[a].localeCompare(data.classes[b], undefined, { numeric: true });
    if (!value) return found.sort(byName);
    const key = new Map(found.map((number) => [number, value(round.classes[number])]));
    // Infinity - Infinity is no number.
    return found.sort((a, b) => (key.get(a) === key.get(b) ? byName(a, b) : key.get(a) - key.get(b)));
  }

  function buildSelection(host, data) {
    if (!data.selection || !data.selection.rounds.length) return [];
    const { rounds } = data.selection;
    const last = rounds.length - 1;
    const range = element("input", { type: "range", min: 0, max: last, step: 1, id: "selection-round" });
    range.value = last;
    const output = element("span", { class: "value", "aria-hidden": "true" });
    const orders = Object.entries(CLASS_ORDERS).filter(([, order]) => data.labelled || !order.oracle);
    const first = data.classes.length > CLASSES_AT_ONCE ? "images" : "name";
    const order = selectOf("Order", namesOf(orders), first, show);
    const search = searchField("Search classes", show);
    const count = element("p", { class: "count", role: "status" });
    const list = element("ul", { class: "classes" });
    const cards = new Map();

    function cardOf(number) {
      if (!cards.has(number)) cards.set(number, classCard(data, number));
      return cards.get(number);
    }
    function show() {
      const round = rounds[range.value];
      const text = `${data.unit} ${round.round}`;
      output.textContent = text;
      range.setAttribute("aria-valuetext", `${text} of ${rounds[0].round} to ${rounds[last].round}`);
      const found = classesInOrder(data, round, order.select.value, search.input.value);
      const shown = found.slice(0, CLASSES_AT_ONCE).map(cardOf);
      shown.forEach((card) => card.show(round));
      const wanted = shown.map(({ card }) => card);
      if (wanted.length !== list.children.length || wanted.some((card, place) => list.children[place] !== card)) {
        list.replaceChildren(...wanted);
      }
      const told = `${shown.length} of ${data.classes.length} shown`;
      if (count.textContent !== told) count.textContent = told;
    }
    range.addEventListener("input", show);
    show();

    const title = element("label", { for: "selection-round" }, unitOf(data));
    const slider = element("div", { class: "slider" }, title, range, output);
    const choices = element("div", { class: "controls" }, search.control, order.control);
    host.append(element("div", { "data-live": "" }, hatching(), slider, choices, histogramLegend(data), count, list));
    kept.selection = {
      save: () => ({
        at: Number(range.value) === last ? null : rounds[range.value].round,
        order: order.select.value,
        query: search.input.value,
      }),
      restore(was) {
        const place = rounds.findIndex((round) => round.round === was.at);
        range.value = place < 0 ? last : place;
        pick(order.select, was.order);
        search.input.value = was.query;
        show();
      },
    };
    return fallbacksOf(host);
  }

  // --------------------------------------------------------------------------------------------------------- tables

  function valueOf(row, column) {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "" || text === "-" || text === "–" ? null : text;
  }

  /* Empty cells come last in both directions. */
  function inOrder(rows, column, direction) {
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [row, valueOf(row, column)]);
    keyed.sort(([, a], [, b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      if (typeof a === "number" && typeof b === "number") return sign * (a - b);
      return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
    });
    return keyed.map(([row]) => row);
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const head = table.tHead && table.tHead.rows[table.tHead.rows.length - 1];
    if (!head || !body) return null;
    const sorted = { column: null, direction: null };

    function sort(column, direction) {
      for (const cell of head.cells) cell.removeAttribute("aria-sort");
      head.cells[column].setAttribute("aria-sort", direction);
      body.append(...inOrder([...body.rows], column, direction));
      Object.assign(sorted, { column, direction });
    }
    [...head.cells].forEach((cell, column) => {
      if (cell.colSpan > 1 || !cell.textContent.trim()) return;
      const button = element("button", { type: "button", class: "sort" }, ...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const numbers = [...body.rows].some((row) => typeof valueOf(row, column) === "number");
        const first = numbers ? "descending" : "ascending";
        const other = numbers ? "ascending" : "descending";
        sort(column, sorted.column === column && sorted.direction === first ? other : first);
      });
    });
    return { sorted, sort };
  }

  function filterable(table) {
    const rows = [...table.tBodies[0].rows];
    const search = searchField(table.dataset.filter, show);
    const count = element("span", { class: "count", role: "status" });
    function show() {
      let shown = 0;
      for (const row of rows) {
        row.hidden = !matches(row.cells[0].textContent, search.input.value);
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows.length} shown`;
    }
    show();
    const place = table.closest(".scroll") || table;
    place.before(element("div", { class: "controls", "data-live": "" }, search.control, count));
    return { input: search.input, show };
  }

  function enhanceTable(table, number) {
    const sorting = sortable(table);
    const filter = table.dataset.filter ? filterable(table) : null;
    kept[`table ${number}`] = {
      save: () => ({ ...(sorting && sorting.sorted), query: filter ? filter.input.value : "" }),
      restore(was) {
        if (sorting && was.direction) sorting.sort(was.column, was.direction);
        if (!filter) return;
        filter.input.value = was.query;
        filter.show();
      },
    };
  }

  function buildHeat(host) {
    const measures = [...host.querySelectorAll("[data-measure]")];
    if (measures.length < 2) return [];
    const show = (name) => measures.forEach((measure) => (measure.hidden = measure.dataset.measure !== name));
    const options = measures.map((measure) => [measure.dataset.measure, measure.dataset.title]);
    const choice = radioGroup("Show", options, options[0][0], show);
    host.prepend(element("div", { class: "controls", "data-live": "" }, choice));
    show(options[0][0]);
    kept.heat = {
      save: () => choice.querySelector("input:checked").value,
      restore(was) {
        const input = [...choice.querySelectorAll("input")].find((each) => each.value === was);
        if (input) input.click();
      },
    };
    return [];
  }

  // ------------------------------------------------------------------------------------------------------ confusion

  /* The cells are one stop of the tab key. Arrow keys move among them, Enter opens the gallery. */
  function buildConfusion(host, data) {
    const table = host.querySelector("table");
    if (!data.confusion || !parts.gallery || !table) return [];
    const rows = [...table.rows]
      .map((row) => [...row.querySelectorAll("[data-truth][data-label]")])
      .filter((row) => row.length);
    if (!rows.length) return [];
    table.setAttribute("role", "grid");
    for (const cell of rows.flat()) {
      const truth = Number(cell.dataset.truth);
      const label = Number(cell.dataset.label);
      const count = data.confusion.counts[truth][label];
      cell.title = `${plural(count, "image")} of ${data.classes[truth]}, labelled ${data.classes[label]}`;
      cell.setAttribute("aria-label", cell.title);
      cell.tabIndex = -1;
    }
    let current = rows[0][0];
    current.tabIndex = 0;

    function goTo(cell) {
      current.tabIndex = -1;
      current = cell;
      current.tabIndex = 0;
      current.focus();
    }
    function open(cell) {
      parts.gallery.show({ state: finalState(data), truth: cell.dataset.truth, label: cell.dataset.label });
    }
    table.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-truth][data-label]");
      if (!cell) return;
      goTo(cell);
      open(cell);
    });
    table.addEventListener("keydown", (event) => {
      const row = rows.findIndex((cells) => cells.includes(event.target));
      if (row < 0) return;
      const column = rows[row].indexOf(event.target);
      const steps = {
        ArrowUp: [row - 1, column],
        ArrowDown: [row + 1, column],
        ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1],
        Home: [row, 0],
        End: [row, rows[row].length - 1],
      };
      if (event.key === "Enter" || event.key === " ") open(event.target);
      else if (!steps[event.key]) return;
      else {
        const [to, along] = steps[event.key];
        if (rows[to] && rows[to][along]) goTo(rows[to][along]);
      }
      event.preventDefault();
    });
    return [];
  }

  // -------------------------------------------------------------------------------------------------------- gallery

  /* Who chose an image. 0: nobody. */
  const CHOSEN = { softmax: 1, selector: 2, both: 3 };

  /* What the truth of an image says about a label: "right", "wrong" or null where the truth is not known.
     `truth` is an index into the truths, or, where there are too many classes for that, a class number. */
  function verdictOf(data, truth, label) {
    if (!data.labelled || truth === -1) return null;
    if (data.truth_is_class && truth === data.truths.length - 1) return null;
    return truth === label ? "right" : "wrong";
  }

  function truthName(data, truth) {
    if (data.truth_is_class) return data.truths[truth];
    return { [-1]: "not labelled", [-2]: "another class" }[truth] || data.classes[truth];
  }

  function chosenMatches(chosen, wanted) {
    if (wanted === "chosen") return chosen >= CHOSEN.selector;
    if (wanted === "not") return chosen < CHOSEN.selector;
    return wanted === ANY || chosen === CHOSEN[wanted];
  }

  /* All target images of a state that pass the filters, with a picture or without. */
  function countInCube(data, filters) {
    const { cube } = data.states[filters.state];
    const width = data.truths.length;
    const verdicts = data.truth_is_class ? null : ["right", "wrong", null];
    let total = 0;
    for (let place = 0; place < cube.length; place += 2) {
      const key = cube[place];
      const truth = Math.floor(key / 8) % width;
      const label = Math.floor(key / 8 / width);
      const verdict = !data.labelled ? null : verdicts ? verdicts[truth] : verdictOf(data, truth, label);
      const image = { label, truth, verdict, chosen: (key >> 1) & 3, flipped: key & 1 };
      if (passes(filters, image)) total += cube[place + 1];
    }
    return total;
  }

  function passes(filters, image) {
    return (
      (filters.label === ANY || image.label === Number(filters.label)) &&
      (filters.truth === ANY || image.truth === Number(filters.truth)) &&
      (filters.verdict === ANY || image.verdict === filters.verdict) &&
      chosenMatches(image.chosen, filters.chosen) &&
      (!filters.flipped || image.flipped === 1)
    );
  }

  /* The image with a picture number `number`, in one state. */
  function pictured(data, state, number) {
    const of = data.pictures.states[state];
    const label = of.label[number];
    const truth = data.pictures.truth[number];
    return {
      number,
      label,
      truth,
      verdict: verdictOf(data, truth, label),
      chosen: of.chosen[number],
      flipped: of.flipped[number],
      score: of.score[number],
      avh: of.avh[number],
      ratio: of.threshold_ratio ? of.threshold_ratio[number] : null,
      path: data.pictures.paths[number],
      row: data.pictures.rows[number],
    };
  }

  const PICTURE_ORDERS = {
    surest: { text: "surest first", key: (image) => image.score, sign: -1 },
    hardest: { text: "hardest first (AVH)", key: (image) => image.avh, sign: -1 },
    unsure: { text: "least sure first", key: (image) => image.score, sign: 1 },
  };

  function chosenInWords(data, chosen) {
    if (data.selector === "softmax") return chosen ? "chosen" : "not chosen";
    const by = ["only by softmax", `only by ${data.selector}`, `by ${data.selector} and softmax`];
    return chosen ? `chosen ${by[chosen - 1]}` : "not chosen";
  }

  function pictureSource(data, number) {
    return `data:image/jpeg;base64,${data.pictures.jpegs[number]}`;
  }

  function pictureCard(data, state, image) {
    const label = data.classes[image.label];
    const truth = data.labelled ? truthName(data, image.truth) : null;
    const words = [`Image ${image.path}, ${state.chooses ? "pseudo-label" : "label"} ${label}`];
    if (image.verdict) words.push(`true class ${truth}: ${image.verdict}`);
    const named = { alt: words.join(", "), title: image.path };
    const picture = element("img", { src: pictureSource(data, image.number), decoding: "async", ...named });
    const card = element("li", { class: image.verdict, "data-picture": image.number }, picture);
    card.append(element("div", { class: "path", title: image.path }, pathOf(image.path)));
    const line = element("div", {}, "label ", element("strong", {}, nameOf(label)));
    card.append(line);
    if (image.verdict) {
      line.append(" ", element("span", { class: "verdict" }, image.verdict === "right" ? "✓ right" : "✗ wrong"));
      card.append(element("div", {}, "is ", nameOf(truth), " ", oracle()));
    } else if (truth !== null) card.append(element("div", {}, nameOf(truth)));
    const ratio = image.ratio === null ? "" : ` = ${fraction(image.ratio, 2)} λ`;
    const notes = [`score ${fraction(image.score)}${ratio}`];
    if (image.avh !== null) notes.push(`AVH ${fraction(image.avh)}`);
    if (state.chooses) notes.push(chosenInWords(data, image.chosen));
    if (image.flipped) notes.push("label has changed");
    for (const note of notes) card.append(element("div", { class: "soft" }, note));
    return card;
  }

  const VERDICT_OPTIONS = Object.entries({ [ANY]: "right or wrong", right: "right", wrong: "wrong" });

  function chosenOptions(selector) {
    const by = selector || "the run";
    const apart = { selector: `only by ${by}`, softmax: "only by softmax", both: "by both" };
    const own = { [ANY]: "chosen or not", chosen: `chosen by ${by}` };
    return Object.entries({ ...own, ...(by === "softmax" ? {} : apart), not: `not by ${by}` });
  }

  function galleryControls(data, changed) {
    const named = (names) => names.map((name, number) => [String(number), name]);
    const selects = {};
    const add = (key, title, options, chosen = ANY) => (selects[key] = selectOf(title, options, chosen, changed));
    const anyClass = [ANY, "any class"];
    const last = String(data.states.length - 1);
    add("state", unitOf(data), named(data.states.map(({ name }) => name)), last);
    add("label", "Label", [anyClass, ...named(data.classes)]);
    if (data.labelled && data.truth_is_class) add("truth", "True class (oracle)", [anyClass, ...named(data.truths)]);
    if (data.labelled) add("verdict", "Label is (oracle)", VERDICT_OPTIONS);
    if (data.states.some(({ chooses }) => chooses)) add("chosen", "Chosen", chosenOptions(data.selector));
    add("order", "Order", namesOf(Object.entries(PICTURE_ORDERS)), data.labelled ? "surest" : "unsure");
    const flipped = element("input", { type: "checkbox" });
    flipped.addEventListener("change", changed);
    const text = element("span", {}, `label changed since the ${data.unit} before`);
    const check = element("label", { class: "control check" }, flipped, text);
    return { selects, flipped, check };
  }

  function buildGallery(host, data) {
    if (!data.pictures || !data.pictures.paths.length) return [];
    const { selects, flipped, check } = galleryControls(data, () => changed());
    const chip = element("button", { type: "button", class: "chip", hidden: true });
    const clear = element("button", { type: "button", class: "button", hidden: true }, "Clear filters");
    const count = element("p", { class: "count", role: "status" });
    const list = element("ul", { class: "gallery" });
    const more = element("button", { type: "button", class: "button script-only" }, "Show more pictures");
    const form = element("form", { class: "controls gallery-filters" });
    form.append(...Object.values(selects).map(({ control }) => control), check, clear, chip);
    form.addEventListener("submit", (event) => event.preventDefault());
    let marked = null; // { rows: Set of target rows, total: filters -> number of marked images that pass }
    let most = PICTURES_AT_ONCE;

    function filters() {
      const value = (key) => (selects[key] ? selects[key].select.value : ANY);
      const state = Number(value("state"));
      return {
        state,
        label: value("label"),
        truth: value("truth"),
        verdict: value("verdict"),
        flipped: flipped.checked,
        chosen: data.states[state].chooses ? value("chosen") : ANY,
      };
    }
    function found(wanted) {
      const all = data.pictures.paths.map((path, number) => pictured(data, wanted.state, number));
      const { key, sign } = PICTURE_ORDERS[selects.order.select.value];
      const rank = (image) => missingLast(key(image), sign * Infinity);
      return all
        .filter((image) => passes(wanted, image) && (!marked || marked.rows.has(image.row)))
        .sort((a, b) => (rank(a) === rank(b) ? a.number - b.number : sign * (rank(a) - rank(b))));
    }
    function tell(shown, pictures, wanted) {
      const total = marked ? marked.total(wanted) : countInCube(data, wanted);
      if (total === null) return `${shown} shown, of ${plural(marked.rows.size, "image")} marked in the map`;
      const more = shown === pictures && pictures < total;
      const why = more ? ` The page has ${shown ? "no other" : "no"} picture of them.` : "";
      return `${shown} of ${counted(total)} shown.${why}`;
    }
    function show() {
      const wanted = filters();
      const images = found(wanted);
      const shown = images.slice(0, most);
      list.replaceChildren(...shown.map((image) => pictureCard(data, data.states[wanted.state], image)));
      count.textContent = tell(shown.length, images.length, wanted);
      more.hidden = images.length <= most;
      if (selects.chosen) selects.chosen.control.hidden = !data.states[wanted.state].chooses;
      check.hidden = wanted.state === 0;
      clear.hidden = !["label", "truth", "verdict", "chosen"].some((key) => wanted[key] !== ANY) && !wanted.flipped;
      for (const { select } of Object.values(selects)) select.title = select.selectedOptions[0].title;
    }
    function changed() {
      most = PICTURES_AT_ONCE;
      if (Number(selects.state.select.value) === 0) flipped.checked = false;
      show();
    }
    function reset() {
      for (const key of ["label", "truth", "verdict", "chosen"]) if (selects[key]) selects[key].select.value = ANY;
      flipped.checked = false;
    }
    function set(values) {
      for (const [key, value] of Object.entries(values)) if (selects[key]) pick(selects[key].select, value);
    }
    function mark(images) {
      marked = images;
      chip.hidden = marked === null;
      changed();
    }
    clear.addEventListener("click", () => {
      reset();
      changed();
      selects.label.select.focus();
    });
    more.addEventListener("click", () => {
      most += PICTURES_AT_ONCE;
      const next = list.children.length;
      show();
      list.children[next].setAttribute("tabindex", "-1");
      list.children[next].focus({ preventScroll: true });
    });
    chip.replaceChildren("images marked in the map ", element("span", { "aria-hidden": "true" }, "✕"));
    chip.setAttribute("aria-label", "Remove the filter: images marked in the map");
    chip.addEventListener("click", () => {
      mark(null);
      parts.map.clear();
      selects.label.select.focus();
    });
    // Confident mistakes come first, if there are any.
    set({ verdict: "wrong" });
    if (!found(filters()).length) reset();
    show();
    host.append(element("div", { "data-live": "" }, form, count, list, more));
    host.setAttribute("tabindex", "-1");

    const goTo = () => {
      scrollTo(host);
      host.focus({ preventScroll: true });
    };
    parts.gallery = {
      goTo,
      show(values) {
        reset();
        if (marked) parts.map.clear();
        set(values);
        mark(null);
        goTo();
      },
      mark(rows, total) {
        reset();
        set({ state: finalState(data) });
        mark({ rows, total });
      },
      unmark() {
        if (marked) mark(null);
      },
    };
    kept.gallery = {
      save: () => ({
        state: data.states[selects.state.select.value].name,
        flipped: flipped.checked,
        most,
        values: Object.fromEntries(Object.entries(selects).map(([key, { select }]) => [key, select.value])),
      }),
      restore(was) {
        const state = data.states.findIndex(({ name }) => name === was.state);
        set({ ...was.values, state: state < 0 ? data.states.length - 1 : state });
        flipped.checked = was.flipped;
        most = was.most;
        show();
      },
    };
    return fallbacksOf(host);
  }

  // ------------------------------------------------------------------------------------------------------------ map

  const MAP_KEYS =
    "Arrow keys move a box, plus and minus change its size, Enter marks the images in it, Escape clears.";
  const MAP = { full: 65535, unknown: 65535, other: 65534, margin: 12, hitRadius: 9, legend: 24 };

  function readMap(map) {
    return {
      x: numbersOf(Uint16Array, map.x),
      y: numbersOf(Uint16Array, map.y),
      label: numbersOf(Uint16Array, map.label),
      truth: numbersOf(Uint16Array, map.truth),
      domain: bytesOf(map.domain),
      chosen: map.chosen === null ? null : bytesOf(map.chosen),
      row: numbersOf(Int32Array, map.row),
    };
  }

  /* A colour per class. Beyond seven classes they are hues in a circle, of three shades. */
  function classColour(number, classes) {
    if (classes <= SERIES) return colour(`series-${number + 1}`);
    const dark = matchMedia("screen and (prefers-color-scheme: dark)").matches;
    const shade = (dark ? [70, 58, 80] : [34, 44, 26])[number % 3];
    return `hsl(${Math.round((number * 360) / classes)} 65% ${shade}%)`;
  }

  /* The ways to colour the map: entries of the legend, and for each point the index of its entry. */
  function mapColourings(data, points) {
    const { domains } = data.map;
    const isTarget = (point) => domains[points.domain[point]].target;
    const entry = (name, variable, shape) => ({ name, paint: () => colour(variable), shape });
    const source = entry(data.words.source, "edge", "ring");
    const ways = {
      class: {
        text: "class",
        entries: data.classes.map((name, number) => ({ name, paint: () => classColour(number, data.classes.length) })),
        entryOf: (point) => points.label[point],
      },
    };
    if (domains.length > 1) {
      ways.domain = {
        text: "domain",
        entries: domains.map(({ name, target }, number) =>
          entry(name, `series-${(number % SERIES) + 1}`, target ? "dot" : "ring"),
        ),
        entryOf: (point) => points.domain[point],
      };
    }
    if (points.chosen) {
      ways.chosen = {
        text: "chosen",
        entries: [
          entry("target, not chosen", "edge", "dot"),
          entry("target, chosen in the last round", "accent", "dot"),
          source,
        ],
        entryOf: (point) => points.chosen[point],
      };
    }
    if (data.labelled && points.truth) {
      ways.right = {
        text: "right or wrong (oracle)",
        entries: [
          entry("right", "right", "dot"),
          entry("wrong", "wrong", "cross"),
          entry("not labelled", "edge", "dot"),
          source,
        ],
        entryOf: (point) => {
          if (!isTarget(point)) return 3;
          if (points.truth[point] === MAP.unknown) return 2;
          return points.truth[point] === points.label[point] ? 0 : 1;
        },
      };
    }
    return ways;
  }

  /* Outlines of radius 1. The dot alone is filled. */
  const CIRCLE = "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0";
  const SHAPES = { dot: CIRCLE, ring: CIRCLE, cross: "M-.9 -.9L.9 .9M.9 -.9L-.9 .9" };

  function shapeSample(shape, paint) {
    const look = shape === "dot" ? { fill: paint } : { fill: "none", stroke: paint, "stroke-width": 0.45 };
    return sample("-1.6 -1.6 3.2 3.2", drawing("path", { d: SHAPES[shape], ...look }));
  }

  /* The picture of a point, drawn once: its colour, and the places and shares of its pixels in an image `width` wide.
     Placing these pixels by hand is several times as fast as the canvas's own drawing. */
  function stampOf(shape, paint, radius, scale, opacity, width) {
    const size = 2 * Math.ceil((radius + 1) * scale) + 1;
    const context = element("canvas", { width: size, height: size }).getContext("2d", { willReadFrequently: true });
    context.fillStyle = context.strokeStyle = paint;
    context.setTransform(radius * scale, 0, 0, radius * scale, size / 2, size / 2);
    context.lineWidth = 1.4 / radius;
    context[shape === "dot" ? "fill" : "stroke"](new Path2D(SHAPES[shape]));
    const { data } = context.getImageData(0, 0, size, size);
    const middle = (size - 1) / 2;
    const stamp = { colour: [0, 0, 0], places: [], shares: [] };
    let most = 0;
    for (let pixel = 0; pixel < size * size; pixel += 1) {
      const alpha = data[4 * pixel + 3];
      if (!alpha) continue;
      stamp.places.push(4 * ((Math.floor(pixel / size) - middle) * width + (pixel % size) - middle));
      stamp.shares.push((alpha / 255) * opacity);
      if (alpha > most) [most, stamp.colour] = [alpha, [...data.slice(4 * pixel, 4 * pixel + 3)]];
    }
    return stamp;
  }

  /* Blend a stamp into opaque pixels. `at` is the index of its middle. No point is so near the edge that it is cut. */
  function press(pixels, { colour: [red, green, blue], places, shares }, at) {
    for (let index = 0; index < places.length; index += 1) {
      const to = at + places[index];
      const share = shares[index];
      pixels[to] += share * (red - pixels[to]);
      pixels[to + 1] += share * (green - pixels[to + 1]);
      pixels[to + 2] += share * (blue - pixels[to + 2]);
    }
  }

  function inside(polygon, x, y) {
    let within = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a, a += 1) {
      const [ax, ay] = polygon[a];
      const [bx, by] = polygon[b];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
    }
    return within;
  }

  const corners = (x0, y0, x1, y1) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];

  /* The points on their canvas: where they lie, how they look, which are near. */
  function scatter(canvas, data, points) {
    const { count, domains } = data.map;
    const isTarget = Uint8Array.from(points.domain, (number) => (domains[number].target ? 1 : 0));
    const x = new Float32Array(count);
    const y = new Float32Array(count);
    const size = { width: 0, height: 0, scale: 1 };

    function place() {
      size.width = canvas.clientWidth;
      size.height = canvas.clientHeight;
      size.scale = Math.min(window.devicePixelRatio || 1, 2);
      canvas.width = Math.round(size.width * size.scale);
      canvas.height = Math.round(size.height * size.scale);
      for (let point = 0; point < count; point += 1) {
        x[point] = MAP.margin + (points.x[point] / MAP.full) * (size.width - 2 * MAP.margin);
        y[point] = size.height - MAP.margin - (points.y[point] / MAP.full) * (size.height - 2 * MAP.margin);
      }
    }
    /* Points of one look follow each other, those in the background first. */
    function buckets(way, isBright) {
      const found = [];
      for (let point = 0; point < count; point += 1) {
        const layer = (isBright(point) ? 2 : 0) + (isTarget[point] ? 1 : 0);
        const key = layer * way.entries.length + way.entryOf(point);
        if (found[key]) found[key].push(point);
        else found[key] = [point];
      }
      return found.filter(Boolean);
    }
    function draw(way, isBright) {
      if (!size.width) return;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const { scale } = size;
      const radius = count > 4000 ? 2 : count > 1000 ? 2.6 : 3.4;
      context.fillStyle = colour("paper");
      context.fillRect(0, 0, canvas.width, canvas.height);
      const image = context.getImageData(0, 0, canvas.width, canvas.height);
      for (const members of buckets(way, isBright)) {
        const first = members[0];
        const entry = way.entries[way.entryOf(first)];
        const shape = entry.shape || (isTarget[first] ? "dot" : "ring");
        const bright = isBright(first);
        const paint = bright ? entry.paint() : colour("edge");
        const stamp = stampOf(shape, paint, radius, scale, bright ? 0.85 : 0.16, image.width);
        for (const point of members) {
          press(image.data, stamp, 4 * (Math.round(y[point] * scale) * image.width + Math.round(x[point] * scale)));
        }
      }
      context.putImageData(image, 0, 0);
    }
    function within(polygon) {
      const xs = polygon.map(([px]) => px);
      const ys = polygon.map(([, py]) => py);
      const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
      const found = [];
      for (let point = 0; point < count; point += 1) {
        if (x[point] < left || x[point] > right || y[point] < top || y[point] > bottom) continue;
        if (inside(polygon, x[point], y[point])) found.push(point);
      }
      return found;
    }
    function nearest(px, py) {
      let best = null;
      let least = MAP.hitRadius ** 2;
      for (let point = 0; point < count; point += 1) {
        const distance = (x[point] - px) ** 2 + (y[point] - py) ** 2;
        if (distance < least) [best, least] = [point, distance];
      }
      return best;
    }
    return { x, y, size, place, draw, within, nearest };
  }

  function mapLegend(data, way) {
    const list = element("ul", { class: "legend" });
    if (way.entries.length <= MAP.legend) {
      for (const entry of way.entries) {
        list.append(element("li", {}, shapeSample(entry.shape || "dot", entry.paint()), nameOf(entry.name)));
      }
    } else
      list.append(element("li", { class: "soft" }, `${way.entries.length} classes. Choose one to see where it lies.`));
    if (!way.entries.some(({ shape }) => shape) && data.map.domains.some(({ target }) => !target)) {
      const paint = "var(--soft)";
      list.append(
        element("li", { class: "soft" }, shapeSample("ring", paint), data.words.source),
        element("li", { class: "soft" }, shapeSample("dot", paint), data.words.target),
      );
    }
    return list;
  }

  /* What is known of a point, beside it. */
  function mapTooltip(data, points, pictureOf) {
    const box = element("div", { class: "tooltip", hidden: true });
    function fill(point) {
      const domain = data.map.domains[points.domain[point]];
      const picture = pictureOf.get(points.row[point]);
      const name = element("strong", {}, nameOf(data.classes[points.label[point]]));
      const pieces = [element("div", {}, domain.target ? "label " : "class ", name)];
      if (domain.target && data.labelled && points.truth && points.truth[point] !== MAP.unknown) {
        const truth = points.truth[point] === MAP.other ? "another class" : data.classes[points.truth[point]];
        const right = points.truth[point] === points.label[point];
        pieces.push(element("div", {}, right ? "✓ right" : "✗ wrong: is ", ...(right ? [] : [nameOf(truth)])));
      }
      pieces.push(element("div", {}, nameOf(domain.name), ` (${data.words[domain.target ? "target" : "source"]})`));
      if (picture !== undefined) {
        pieces.unshift(element("img", { src: pictureSource(data, picture), alt: "" }));
        pieces.push(element("div", { class: "path" }, pathOf(data.pictures.paths[picture])));
      }
      box.replaceChildren(...pieces);
    }
    return {
      box,
      show(point, x, y, size) {
        fill(point);
        box.hidden = false;
        const left = x > size.width / 2 ? x - box.offsetWidth - 14 : x + 14;
        const top = y > size.height / 2 ? y - box.offsetHeight - 10 : y + 10;
        box.style.left = `${Math.max(4, Math.min(left, size.width - box.offsetWidth - 4))}px`;
        box.style.top = `${Math.max(4, Math.min(top, size.height - box.offsetHeight - 4))}px`;
      },
      hide() {
        box.hidden = true;
      },
    };
  }

  /* How many marked target images pass the gallery's filters, or null where the map does not know: it has the labels of
     the final model alone. */
  function countMarked(data, points, members, filters) {
    if (filters.state !== finalState(data) || filters.flipped || filters.chosen !== ANY) return null;
    const known = data.classes.length;
    return members.filter((point) => {
      const label = points.label[point];
      const told = points.truth ? points.truth[point] : MAP.unknown;
      const verdict = told === MAP.unknown ? null : told === label ? "right" : "wrong";
      const truth = told === MAP.unknown ? known + 1 : told === MAP.other ? known : told;
      return passes(filters, { label, truth, verdict });
    }).length;
  }

  function drawOutline(canvas, { width, height, scale }, shape) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    if (!shape) return;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.beginPath();
    shape.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.strokeStyle = context.fillStyle = colour("accent");
    context.lineWidth = 1.5;
    context.setLineDash([6, 4]);
    context.stroke();
    context.globalAlpha = 0.08;
    context.fill();
  }

  /* The pointer draws a box or a lasso, by `plot.dataset.tool`, or only looks. `outlined` is told each shape on the
     way, `drawn` the last one: null for a click. */
  function drawByPointer(plot, cloud, tooltip, outlined, drawn) {
    let path = null;

    function position(event) {
      const bounds = plot.getBoundingClientRect();
      return [event.clientX - bounds.left - plot.clientLeft, event.clientY - bounds.top - plot.clientTop];
    }
    function look([x, y]) {
      const point = cloud.nearest(x, y);
      if (point === null) tooltip.hide();
      else tooltip.show(point, cloud.x[point], cloud.y[point], cloud.size);
    }
    function shape() {
      if (path.length < 2) return null;
      return plot.dataset.tool === "box" ? corners(...path[0], ...path[path.length - 1]) : path;
    }
    function end(finish) {
      if (!path) return;
      const last = shape();
      path = null;
      outlined(null);
      if (finish) drawn(last);
    }
    plot.addEventListener("pointerdown", (event) => {
      look(position(event));
      if (plot.dataset.tool === "look" || event.button !== 0) return;
      tooltip.hide();
      path = [position(event)];
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointermove", (event) => {
      if (!path) return look(position(event));
      path.push(position(event));
      outlined(shape());
    });
    plot.addEventListener("pointerup", () => end(true));
    plot.addEventListener("pointercancel", () => end(false));
    plot.addEventListener("pointerleave", () => tooltip.hide());
  }

  const MAP_STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const MAP_GROWTH = { "+": 1.25, "=": 1.25, "-": 0.8 };

  /* The keyboard moves a box, which the first key puts in the middle. */
  function drawByKeys(plot, cloud, outlined, drawn) {
    let cursor = null;

    function box() {
      const { x, y, half } = cursor;
      return corners(x - half, y - half, x + half, y + half);
    }
    function move(key) {
      const { width, height } = cloud.size;
      const [dx, dy] = MAP_STEPS[key] || [0, 0];
      const step = Math.max(8, cursor.half / 3);
      cursor.x = Math.min(Math.max(cursor.x + dx * step, 0), width);
      cursor.y = Math.min(Math.max(cursor.y + dy * step, 0), height);
      cursor.half = Math.min(Math.max(cursor.half * (MAP_GROWTH[key] || 1), 6), Math.max(width, height));
    }
    plot.addEventListener("keydown", (event) => {
      const { key } = event;
      const known = key === "Enter" || key === "Escape" || key in MAP_STEPS || key in MAP_GROWTH;
      if (!known || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (key === "Escape") {
        cursor = null;
        drawn(null);
      } else if (!cursor) {
        const { width, height } = cloud.size;
        cursor = { x: width / 2, y: height / 2, half: Math.min(width, height) / 8 };
        outlined(box());
      } else if (key === "Enter") {
        drawn(box());
        outlined(box());
      } else {
        move(key);
        outlined(box());
      }
    });
  }

  function buildMap(host, data) {
    if (!data.map || !data.map.count) return [];
    const { domains, count, method } = data.map;
    const points = readMap(data.map);
    const ways = mapColourings(data, points);
    const rows = data.pictures ? data.pictures.rows : [];
    const tooltip = mapTooltip(data, points, new Map(rows.map((row, number) => [row, number])));
    const base = element("canvas", { "aria-hidden": "true" });
    const above = element("canvas", { "aria-hidden": "true" });
    const plot = element("div", { class: "map-plot", tabindex: 0, role: "application" }, base, above, tooltip.box);
    plot.setAttribute("aria-roledescription", "map of images");
    plot.setAttribute("aria-label", `Map of ${plural(count, "image")} by ${method}. ${MAP_KEYS}`);
    plot.dataset.tool = matchMedia("(pointer: coarse)").matches ? "look" : "box";
    const status = element("p", { class: "count", role: "status" });
    const clearing = element("button", { type: "button", class: "button", hidden: true }, "Clear marks");
    const opening = element("button", { type: "button", class: "button", hidden: true }, "See them in the gallery");
    const legend = element("div");
    const cloud = scatter(base, data, points);
    let colouring = "class";
    let highlighted = ANY;
    let marked = null; // Uint8Array: 1 for the marked points
    let outline = null;

    const isBright = (point) =>
      (!marked || marked[point] === 1) && (highlighted === ANY || points.label[point] === Number(highlighted));

    function draw() {
      cloud.draw(ways[colouring], isBright);
    }
    function showLegend() {
      legend.replaceChildren(mapLegend(data, ways[colouring]));
    }
    function outlined(shape) {
      outline = shape;
      drawOutline(above, cloud.size, outline);
    }
    function resize() {
      if (!plot.clientWidth) return;
      cloud.place();
      draw();
      outlined(outline);
    }
    function clear() {
      marked = null;
      status.textContent = "";
      clearing.hidden = opening.hidden = true;
      draw();
      outlined(null);
    }
    function drawn(shape) {
      const members = shape ? cloud.within(shape) : [];
      if (members.length) return mark(members);
      clear();
      if (parts.gallery) parts.gallery.unmark();
    }
    function mark(members) {
      const targets = members.filter((point) => domains[points.domain[point]].target);
      const sources = members.length - targets.length;
      marked = new Uint8Array(count);
      for (const point of members) marked[point] = 1;
      draw();
      const others = sources ? ` and ${plural(sources, `${data.words.source} image`)}` : "";
      status.textContent = `${plural(targets.length, `${data.words.target} image`)}${others} marked.`;
      clearing.hidden = false;
      opening.hidden = !parts.gallery || !targets.length;
      if (!parts.gallery) return;
      if (!targets.length) return parts.gallery.unmark();
      const marks = new Set(targets.map((point) => points.row[point]));
      parts.gallery.mark(marks, (filters) => countMarked(data, points, targets, filters));
    }

    drawByPointer(plot, cloud, tooltip, outlined, drawn);
    drawByKeys(plot, cloud, outlined, drawn);
    clearing.addEventListener("click", () => {
      drawn(null);
      plot.focus();
    });
    if (parts.gallery) opening.addEventListener("click", parts.gallery.goTo);

    const wayNames = namesOf(Object.entries(ways));
    const colourings = radioGroup("Colour", wayNames, colouring, (value) => {
      colouring = value;
      showLegend();
      draw();
    });
    const classes = [[ANY, "all classes"], ...data.classes.map((name, number) => [String(number), name])];
    const highlight = selectOf("Highlight", classes, ANY, () => {
      highlighted = highlight.select.value;
      draw();
    });
    const toolNames = ["look", "box", "lasso"].map((name) => [name, name]);
    const tools = radioGroup("Pointer", toolNames, plot.dataset.tool, (value) => (plot.dataset.tool = value));
    const choices = element("div", { class: "controls" }, wayNames.length > 1 ? colourings : null);
    choices.append(highlight.control, tools);
    const marks = element("div", { class: "controls" }, status, opening, clearing);
    showLegend();
    host.append(element("div", { "data-live": "" }, choices, plot, legend, marks));
    resize();
    new ResizeObserver(resize).observe(plot);
    redraws.push(() => {
      showLegend();
      resize();
    });
    parts.map = { clear, isMarked: () => marked !== null };
    return fallbacksOf(host);
  }

  // --------------------------------------------------------------------------------------------- reload while it runs

  /* file:// may forbid the storage, and what it holds may be of another version: then the page starts afresh. */
  const STORE = `uda page ${location.pathname}`;

  function savePage() {
    try {
      const saved = Object.fromEntries(Object.entries(kept).map(([name, { save }]) => [name, save()]));
      const open = [...document.querySelectorAll("details")].map((details) => details.open);
      sessionStorage.setItem(STORE, JSON.stringify({ saved, open, scroll: window.scrollY }));
      history.scrollRestoration = "manual";
    } catch {
      // Nothing is kept.
    }
  }

  function restorePage() {
    try {
      const was = JSON.parse(sessionStorage.getItem(STORE));
      sessionStorage.removeItem(STORE);
      if (!was) return;
      document.querySelectorAll("details").forEach((details, number) => {
        if (number in was.open) details.open = was.open[number];
      });
      for (const [name, part] of Object.entries(kept)) if (name in was.saved) part.restore(was.saved[name]);
      window.scrollTo(0, was.scroll);
      history.scrollRestoration = "auto";
    } catch {
      // The page starts afresh.
    }
  }

  /* Nobody wants to lose what they mark, read in a dialog or type. */
  function readerIsBusy() {
    const text = window.getSelection();
    const focus = document.activeElement;
    return (
      (text && !text.isCollapsed) ||
      (parts.map && parts.map.isMarked()) ||
      document.querySelector("dialog[open]") !== null ||
      (focus !== null && focus.matches("input, select, textarea"))
    );
  }

  function reloadLater(seconds) {
    setTimeout(() => {
      if (readerIsBusy()) return reloadLater(1);
      savePage();
      location.reload();
    }, 1000 * seconds);
  }

  // ---------------------------------------------------------------------------------------------------------- mounting

  /* One failure is one line in the console, and the rest of the page stands. */
  function attempt(name, work, undo = () => {}) {
    try {
      return work();
    } catch (error) {
      undo();
      console.error(`${name} of this page failed:`, error);
      return null;
    }
  }

  /* Build a part. A builder returns the fallbacks that it replaces: none where the data has nothing for it. */
  function mount(host, build, data) {
    const replaced = attempt(
      `The part "${host.dataset.part}"`,
      () => build(host, data),
      () => host.querySelectorAll("[data-live]").forEach((live) => live.remove()),
    );
    for (const fallback of replaced || []) fallback.hidden = true;
  }

  /* Canvases do not follow the style sheet by themselves. On paper the colours are the light ones, too. */
  function followColourScheme() {
    matchMedia("screen and (prefers-color-scheme: dark)").addEventListener("change", () =>
      redraws.forEach((redraw) => redraw()),
    );
  }

  const BUILDERS = [
    ["curves", buildCurves],
    ["selection", buildSelection],
    ["heat", buildHeat],
    ["gallery", buildGallery],
    ["confusion", buildConfusion],
    ["map", buildMap],
  ];

  function start() {
    const data = attempt("The data", readData) || {};
    document.querySelectorAll("table[data-sortable]").forEach((table, number) => {
      attempt(`table ${number}`, () => enhanceTable(table, number));
    });
    for (const [name, build] of BUILDERS) {
      for (const host of document.querySelectorAll(`[data-part="${name}"]`)) mount(host, build, data);
    }
    followColourScheme();
    restorePage();
    if (data.running) reloadLater(data.running.reload_seconds);
    root.dataset.ready = "true";
  }

  start();
})();
