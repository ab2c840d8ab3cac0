(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const sections = () => [...document.querySelectorAll("article.slide > details")];

  const table = byId("worklist-table");
  if (table) {
    const body = table.tBodies[0];
    const headers = [...table.tHead.rows[0].cells];
    const rows = [...body.rows];
    const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
    const call = byId("filter-call");
    const words = byId("filter-text");
    let sorted = "";

    const report = () => {
      const hidden = rows.filter((row) => row.hidden).length;
      const filtered = hidden ? `Showing ${rows.length - hidden} of ${rows.length} slides; the filter hides ${hidden}.` : "";
      byId("status").textContent = [filtered, sorted].filter(Boolean).join(" ");
      byId("status").classList.toggle("hiding", hidden > 0);
      byId("filter-reset").hidden = !call.value && !words.value;
    };

    const filter = () => {
      const wanted = words.value.trim().toLowerCase();
      for (const row of rows) {
        row.hidden = (call.value !== "" && !row.classList.contains(call.value)) || !text.get(row).includes(wanted);
      }
      report();
    };

    const valueOf = (row, column) => {
      const cell = row.cells[column];
      return (cell.dataset.value ?? cell.textContent).trim();
    };

    const sort = (column) => {
      const header = headers[column];
      const kind = header.dataset.sort;
      const before = header.getAttribute("aria-sort");
      const rising = before ? before === "descending" : !kind.includes("falling");
      const missing = (value) => value === "" || value === "–";
      const compare = (a, b) => {
        // Whatever the order, a slide nobody has assessed must not sink to where nobody looks.
        const top = b.classList.contains("not-assessed") - a.classList.contains("not-assessed");
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        if (top || missing(x) || missing(y)) return top || missing(x) - missing(y);
        const order = kind.includes("number") ? x - y : collator.compare(x, y);
        return rising ? order : -order;
      };
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", rising ? "ascending" : "descending");
      rows.sort(compare);
      body.append(...rows);
      sorted = `Sorted by ${header.textContent.toLowerCase()}, ${rising ? "ascending" : "descending"}.`;
      report();
    };

    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sort(column));
      header.replaceChildren(button);
    });
    byId("filter").hidden = false;
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
    byId("filter").addEventListener("reset", () => setTimeout(filter));
    byId("filter").addEventListener("input", filter);
    byId("filter").addEventListener("change", filter);

    byId("open-close").hidden = false;
    byId("open-all").addEventListener("click", () => sections().forEach((section) => { section.open = true; }));
    byId("close-all").addEventListener("click", () => sections().forEach((section) => { section.open = false; }));
  }

  const openTarget = () => {
    const target = location.hash.length > 1 && byId(location.hash.slice(1));
    const section = target && target.closest("details");
    if (!section) return;
    section.open = true;
    section.scrollIntoView();
    target.focus({ preventScroll: true });
  };
  addEventListener("hashchange", openTarget);
  document.addEventListener("click", (event) => {
    // The address does not change when the same link is followed twice, but its slide may have been closed in between.
    const link = event.target.closest('a[href^="#slide-"]');
    if (link && link.hash === location.hash) openTarget();
  });
  openTarget();

  // Pictures wait until the page stands, so that it opens fast; a picture still waiting would print as an empty frame.
  const waiting = [...document.querySelectorAll('img[loading="lazy"]')];
  const load = (count) => waiting.splice(0, count).forEach((image) => { image.loading = "eager"; });
  addEventListener("load", function step() {
    load(200);
    if (waiting.length) setTimeout(step, 20);
  });

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = sections().filter((section) => !section.open);
    closed.forEach((section) => { section.open = true; });
    load(waiting.length);
  });
  addEventListener("afterprint", () => closed.forEach((section) => { section.open = false; }));
})();
