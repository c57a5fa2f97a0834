"use strict";
// Conveniences only: without them everything is on the page all the same.

// Clips by what they show, by class, and by who is right.
for (const filter of document.querySelectorAll(".filter")) {
  filter.hidden = false;
  const section = filter.closest("section");
  const cards = [...section.querySelectorAll(".card")];
  const buttons = [...filter.querySelectorAll("button")];
  const selects = [...filter.querySelectorAll("select")];
  const fits = (card, {value, dataset}) => {
    if (value === "") return true;
    if (dataset.by === "class") {
      return card.dataset.classes.split(" ").includes(value);
    }
    return card.dataset.right[dataset.model] === value;
  };
  const update = () => {
    const pressed = buttons.find(
      b => b.getAttribute("aria-pressed") === "true");
    const kind = pressed.dataset.show;
    let count = 0;
    for (const card of cards) {
      const shown = (kind === "" || card.dataset.kind === kind)
        && selects.every(select => fits(card, select));
      card.hidden = !shown;
      count += shown;
    }
    const tally = filter.querySelector(".tally");
    if (tally) tally.textContent = `${count} of ${cards.length}`;
    const none = section.querySelector(".none");
    if (none) none.hidden = count > 0;
  };
  filter.addEventListener("click", ({target}) => {
    const button = target.closest("button");
    if (!button) return;
    for (const b of buttons) b.setAttribute("aria-pressed", b === button);
    update();
  });
  filter.addEventListener("change", update);
  // A browser may keep what was chosen before the page was loaded again.
  update();
}

// Rows whose first cell has a text.
for (const find of document.querySelectorAll(".find")) {
  find.hidden = false;
  const rows = find.parentElement.querySelectorAll("tbody tr");
  find.querySelector("input").addEventListener("input", ({target}) => {
    const wanted = target.value.toLowerCase();
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    }
  });
}

// Tables by a column.
for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const number = (row, i) => {
    const value = parseFloat(row.cells[i].textContent);
    return isNaN(value) ? -1 : value;
  };
  heads.forEach((head, i) => {
    if (head.classList.contains("plot")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const up = head.dataset.up === "1" ? -1 : 1;
      head.dataset.up = up;
      rows.sort((a, b) => up * (i === 0
        ? a.cells[0].textContent.localeCompare(b.cells[0].textContent)
        : number(b, i) - number(a, i)));
      for (const other of heads) other.removeAttribute("aria-sort");
      // Names ascend first, numbers descend first.
      const first = i === 0 ? "ascending" : "descending";
      const second = i === 0 ? "descending" : "ascending";
      head.setAttribute("aria-sort", up === 1 ? first : second);
      table.tBodies[0].append(...rows);
    });
  });
}

// Confusion matrices: all in one order of classes, and read where pointed at.
for (const sorter of document.querySelectorAll(".sorter")) {
  sorter.hidden = false;
  const {orders, names} = JSON.parse(sorter.dataset.facts);
  const select = sorter.querySelector("select");
  const said = sorter.querySelector(".note");
  const maps = [...sorter.closest("section").querySelectorAll("[data-cells]")];
  const n = names.length;
  const matrices = new Map(maps.map(map => {
    const cells = JSON.parse(map.dataset.cells);
    const totals = new Array(n).fill(0);
    for (const [t, , count] of cells) totals[t] += count;
    return [map, {cells, totals}];
  }));
  const frameOf = map => {
    const frame = map.querySelector(".frame");
    return {
      x: frame.x.baseVal.value, y: frame.y.baseVal.value,
      cell: frame.width.baseVal.value / n,
    };
  };
  const drawCells = (map, place) => {
    const {x, y, cell} = frameOf(map);
    const {cells} = matrices.get(map);
    map.querySelectorAll(".filled").forEach((g, i) => {
      const [t, p] = cells[i];
      g.setAttribute(
        "transform", `translate(${x + place[p] * cell} ${y + place[t] * cell})`);
    });
    map.querySelectorAll(".row").forEach((g, i) => {
      g.setAttribute("transform", `translate(0 ${place[i] * cell})`);
    });
    map.querySelectorAll(".column").forEach((g, i) => {
      g.setAttribute("transform", `translate(${place[i] * cell} 0)`);
    });
  };
  const drawImage = (map, place) => {
    const {cells, totals} = matrices.get(map);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = n;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(n, n);
    for (const [t, p, count] of cells) {
      const opacity = Math.round(255 * Math.sqrt(count / totals[t]));
      const colour = t === p ? [43, 123, 196] : [213, 102, 28];
      pixels.data.set(
        [...colour, opacity], 4 * (place[t] * n + place[p]));
    }
    context.putImageData(pixels, 0, 0);
    map.querySelector("image").setAttribute("href", canvas.toDataURL());
  };
  const sort = () => {
    const place = [];
    orders[select.selectedIndex].forEach((c, i) => { place[c] = i; });
    for (const map of maps) {
      (map.querySelector("image") ? drawImage : drawCells)(map, place);
    }
  };
  const read = (map, event) => {
    const at = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(map.getScreenCTM().inverse());
    const {x, y, cell} = frameOf(map);
    const row = Math.floor((at.y - y) / cell);
    const column = Math.floor((at.x - x) / cell);
    if (Math.min(row, column) < 0 || Math.max(row, column) >= n) return;
    const order = orders[select.selectedIndex];
    const [t, p] = [order[row], order[column]];
    const {cells, totals} = matrices.get(map);
    const found = cells.find(([a, b]) => a === t && b === p);
    const model = map.closest("figure").querySelector("strong").textContent;
    const does = t === p ? "is recognised" : `is taken for ${names[p]}`;
    said.textContent =
      `${model}: ${names[t]} ${does} in ${found ? found[2] : 0} of ${totals[t]}`
      + ` ${totals[t] === 1 ? "clip" : "clips"}.`;
  };
  for (const map of maps) {
    map.addEventListener("pointermove", event => read(map, event));
    map.addEventListener("pointerdown", event => read(map, event));
  }
  select.addEventListener("change", sort);
  if (select.selectedIndex > 0) sort();
}
