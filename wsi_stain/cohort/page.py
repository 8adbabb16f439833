"""Style and sorting of `summary.html`."""

CSS = """
body { margin: 0; background: #fff; color: #222; font: 14px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 10px; } p { max-width: 90ch; }
.warning { background: #fdf3e4; border-left: 4px solid #c77d1e; padding: 8px 14px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #333; padding: 6px 10px; white-space: nowrap; background: #fff;
  position: sticky; top: 0; }
th[data-sorts] { cursor: pointer; } th[data-sorts]::after { content: " ↕"; color: #999; }
th[aria-sort="ascending"]::after { content: " ↑"; color: #222; }
th[aria-sort="descending"]::after { content: " ↓"; color: #222; }
td { border-bottom: 1px solid #e3e3e3; padding: 8px 10px; vertical-align: top; overflow-wrap: anywhere; }
td small, td a { display: block; color: #666; font-size: 12px; } td a { color: #1a5fb4; white-space: nowrap; }
td small { max-width: 42ch; } tr.failed td { background: #fdf0ef; }
.picture { width: 196px; padding: 6px; } .picture img { display: block; max-width: 192px; height: auto; }
span.failed, span.fail { color: #b3261e; font-weight: 600; } span.done, span.pass { color: #1b6e3c; }
.counts { color: #666; }
@media print { th { position: static; } }
"""

SORTING = """
for (const head of document.querySelectorAll("th[data-sorts]")) {
  head.tabIndex = 0;
  const sort = () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const body = head.closest("table").tBodies[0];
    const value = row => row.cells[head.cellIndex].dataset.value ?? "";
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // unknown values come last in both orders
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => event.key === "Enter" && sort());
}
"""
