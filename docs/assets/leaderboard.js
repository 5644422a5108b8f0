// Sorting and filtering of the leaderboard. Without it the page has the whole table, in its own order.
(() => {
  const table = document.getElementById("board");
  if (!table || table.dataset.ready) return;
  table.dataset.ready = "yes";
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const lines = [...body.rows];
  const text = (line, place) => line.cells[place].textContent;

  const said = document.createElement("p");
  said.setAttribute("role", "status");
  const choices = document.createElement("form");
  choices.className = "board";
  choices.setAttribute("aria-label", "Choose lines");
  choices.addEventListener("submit", (event) => event.preventDefault());

  const labelled = (words, field) => {
    const label = document.createElement("label");
    label.append(words, field);
    choices.append(label);
    field.addEventListener("input", choose);
    return field;
  };
  const choose = () => {
    const words = search.value.trim().toLowerCase();
    let count = 0;
    for (const line of lines) {
      const fits = picks.every(([place, field]) => !field.value || text(line, place) === field.value);
      line.hidden = !(fits && line.textContent.toLowerCase().includes(words));
      count += line.hidden ? 0 : 1;
    }
    said.textContent = `${count} of ${lines.length} lines`;
  };
  const search = labelled("Search ", Object.assign(document.createElement("input"), { type: "search" }));
  const picks = table.dataset.filtered.split(",").map(Number).map((place) => {
    const field = document.createElement("select");
    const values = [...new Set(lines.map((line) => text(line, place)))].sort();
    field.append(new Option("all", ""), ...values.map((value) => new Option(value || "(none)", value)));
    return [place, labelled(`${heads[place].textContent} `, field)];
  });

  const value = (line, place) => {
    const cell = line.cells[place];
    if (!cell.classList.contains("number")) return cell.textContent.toLowerCase();
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value.replace("inf", "Infinity"));
  };
  const sort = (place) => {
    const rising = heads[place].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[place].setAttribute("aria-sort", rising ? "ascending" : "descending");
    const order = lines.map((line) => [value(line, place), line]).sort(([a], [b]) => {
      if (a === b) return 0;
      if (a === null || b === null) return a === null ? 1 : -1; // what was not measured stays last
      return (a < b ? -1 : 1) * (rising ? 1 : -1);
    });
    body.append(...order.map(([, line]) => line));
    said.textContent = `Sorted by ${heads[place].textContent}, ${rising ? "rising" : "falling"}`;
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(place));
    head.replaceChildren(button);
  });
  table.parentElement.before(choices, said);
  choose();
})();
